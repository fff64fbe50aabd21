"""Environment variables that several engines understand. Pure."""

from fleet.engines.adapter import Start, Unstartable
from fleet.inventory import AcceleratorKind
from fleet.placement.request import Member


def visible_devices(start: Start) -> dict[str, str]:
    """The claimed cards and no others. Only NVIDIA's can be named by UUID; the others' are numbered inside the
    container that has them."""
    if not start.on_gpu or start.accelerator is not AcceleratorKind.NVIDIA:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(start.gpu_uuids)}


def of_gang(start: Start) -> dict[str, str]:
    """How collectives of several hosts find each other."""
    if not start.is_gang:
        return {}
    env = {"PYTHONHASHSEED": "0"}  # hashes of prefixes are compared between hosts
    if start.interface:
        env |= {"NCCL_SOCKET_IFNAME": start.interface, "GLOO_SOCKET_IFNAME": start.interface}
    return env


def me(start: Start) -> Member:
    """Raises Unstartable."""
    return _member(start, start.rank)


def rendezvous(start: Start) -> tuple[str, int]:
    """(address, port) at the leader where the hosts of a gang meet: its second claimed port. Raises Unstartable."""
    leader = _member(start, 0)
    if len(leader.ports) < 2:
        raise Unstartable(
            "a replica on several hosts needs two claimed ports on its first host: one to serve, one to meet"
        )
    return leader.address, leader.ports[1]


def _member(start: Start, rank: int) -> Member:
    if rank >= len(start.members):
        raise Unstartable(f"this replica has {len(start.members)} hosts, and no rank {rank}")
    member = start.members[rank]
    if not member.address:
        raise Unstartable(f"host {member.host_id} has no address on a network that the hosts of a replica share")
    return member
