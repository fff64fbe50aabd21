"""Who holds what on which hosts, and the fleet as it will be when some of them are gone. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from fleet.placement.view import GpuView, HostView, Occupant

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Tenant:
    """One replica with all that it holds, also where it is spread over several hosts: it goes as a whole."""

    instance_id: str
    deployment: str
    fence: int
    hosts: tuple[str, ...]
    gpu_bytes: tuple[tuple[str, int], ...]
    """(UUID, bytes)."""
    ram_bytes: tuple[tuple[str, int], ...]
    """(Host id, bytes)."""
    priority: int
    ready: bool
    leaving: bool
    spread: int = 1
    """Over so many hosts, also such as placement does not see."""
    since: datetime = _LONG_AGO

    @property
    def bytes(self) -> int:
        """All that is moved when it goes."""
        return sum(size for _, size in self.gpu_bytes) + sum(size for _, size in self.ram_bytes)

    @property
    def gang(self) -> bool:
        return self.spread > 1


def tenants(hosts: Iterable[HostView], among: Collection[str] | None = None) -> dict[str, Tenant]:
    """By instance id; only those ``among``, if that is given."""
    found: dict[str, list[tuple[str, Occupant]]] = {}
    for host in hosts:
        for occupant in host.occupants:
            if among is None or occupant.instance_id in among:
                found.setdefault(occupant.instance_id, []).append((host.host_id, occupant))
    return {instance_id: _whole(parts) for instance_id, parts in found.items()}


def _whole(parts: list[tuple[str, Occupant]]) -> Tenant:
    newest = max(parts, key=lambda part: part[1].fence)[1]
    return Tenant(
        instance_id=newest.instance_id,
        deployment=newest.deployment,
        fence=newest.fence,
        hosts=tuple(dict.fromkeys(host_id for host_id, _ in parts)),
        gpu_bytes=tuple(pair for _, o in parts for pair in o.gpu_bytes),
        ram_bytes=tuple((host_id, o.ram_bytes) for host_id, o in parts if o.ram_bytes),
        priority=newest.priority,
        ready=newest.ready,
        leaving=any(o.leaving for _, o in parts),
        spread=max(o.hosts for _, o in parts),
        since=newest.since or _LONG_AGO,
    )


def without(host: HostView, gone: Collection[str]) -> HostView:
    """``host`` once the instances ``gone`` have given back what they hold there."""
    return _minus(host, [o for o in host.occupants if o.instance_id in gone])


def settled(host: HostView) -> HostView:
    """``host`` once those that leave it already are gone."""
    return _minus(host, [o for o in host.occupants if o.leaving])


def _minus(host: HostView, leaving: list[Occupant]) -> HostView:
    if not leaving:
        return host
    freed: dict[str, int] = {}
    for uuid, size in (pair for o in leaving for pair in o.gpu_bytes):
        freed[uuid] = freed.get(uuid, 0) + size
    return replace(
        host,
        ram_free_bytes=host.ram_free_bytes + sum(o.ram_bytes for o in leaving),
        ports_free=host.ports_free + len(leaving),
        gpus=tuple(_with_free(g, g.free_bytes + freed.get(g.uuid, 0)) for g in host.gpus),
        occupants=tuple(o for o in host.occupants if o not in leaving),
    )


def _with_free(gpu: GpuView, free: int) -> GpuView:
    return gpu if free == gpu.free_bytes else replace(gpu, free_bytes=free)
