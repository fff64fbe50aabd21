"""What a placement takes of each of its hosts. Pure."""

from dataclasses import dataclass

from fleet.placement.request import Placement


@dataclass(frozen=True)
class Part:
    """Of one host."""

    host_id: str
    rank: int
    """0: the leader's."""
    gpu_uuids: tuple[str, ...]
    gpu_bytes: int
    """Of each of these GPUs."""
    ram_bytes: int
    ports: tuple[int, ...]


def parts_of(placement: Placement) -> tuple[Part, ...]:
    """One for each host, by rank. Raises ValueError when a host, GPU or port is named twice.

    On a host without GPUs ``memory_bytes`` is RAM, and is meant to be all of it: RAM "besides" is not added to it.
    """
    members = [(placement.host_id, placement.gpu_uuids, placement.ports)]
    members += [(m.host_id, m.gpu_uuids, m.ports) for m in placement.followers]
    _named_once("host", [host_id for host_id, _, _ in members])
    _named_once("GPU", [uuid for _, gpu_uuids, _ in members for uuid in gpu_uuids])
    return tuple(
        _part(placement, rank, host_id, gpu_uuids, ports) for rank, (host_id, gpu_uuids, ports) in enumerate(members)
    )


def _part(placement: Placement, rank: int, host_id: str, gpu_uuids: tuple[str, ...], ports: tuple[int, ...]) -> Part:
    _named_once(f"port of {host_id}", list(ports))
    if gpu_uuids:
        return Part(host_id, rank, gpu_uuids, placement.memory_bytes, placement.ram_bytes, ports)
    return Part(host_id, rank, (), 0, max(placement.memory_bytes, placement.ram_bytes), ports)


def _named_once(what: str, names: list[str] | list[int]) -> None:
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):  # type: ignore[arg-type]
        raise ValueError(f"a placement names each {what} once; twice: {', '.join(twice)}")
