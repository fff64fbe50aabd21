"""Which hosts are worth a close look when room is to be made: a glance at every occupant of a large fleet. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from fleet.placement.needs import Need
from fleet.placement.request import PlacementRequest
from fleet.placement.view import HostView, Occupant
from fleet.policy.cover import Ways, shortfall
from fleet.policy.priority import Standing

_WITH_ONE = 64
"""Hosts where one replica would be enough: the cheapest."""
_WITH_SEVERAL = 96
"""Hosts where it takes several: those that lack least. Looked at only where one replica costs more than several of a
lower level might."""

Key = tuple[int, bool, int, bool, float]


@dataclass(frozen=True)
class Offers:
    """What deployments may be asked to give to one of rank ``taker``."""

    taker: int
    standings: Mapping[str, Standing]
    _known: dict[tuple[str, bool, int], bool] = field(default_factory=dict, compare=False, repr=False)

    def level(self, occupant: Occupant) -> int:
        standing = self.standings.get(occupant.deployment)
        return occupant.priority if standing is None else standing.priority

    def takeable(self, occupant: Occupant) -> bool:
        """One that is not ready serves nobody: no floor is about it."""
        if occupant.leaving:
            return False
        kind = (occupant.deployment, occupant.ready, occupant.priority)
        if kind not in self._known:
            self._known[kind] = self._gives(occupant)
        return self._known[kind]

    def _gives(self, occupant: Occupant) -> bool:
        if self.level(occupant) >= self.taker:
            return False
        standing = self.standings.get(occupant.deployment)
        return standing is None or not occupant.ready or standing.spares(self.taker) != 0

    def key(self, occupant: Occupant) -> Key:
        """What it costs alone, as far as its part on one host shows."""
        standing = self.standings.get(occupant.deployment)
        size = occupant.ram_bytes
        for _, part in occupant.gpu_bytes:
            size += part
        last = occupant.ready and standing is not None and standing.ready <= 1
        age = -occupant.since.timestamp() if occupant.since is not None else 0.0
        return self.level(occupant), last, size, occupant.ready, age


def promising(request: PlacementRequest, hosts: Sequence[HostView], ways: Ways, offers: Offers) -> list[HostView]:
    """The hosts on which the cheapest replicas to take are found, as far as bytes and labels can tell."""
    suited = [h for h in hosts if _may_suit(request, h)]
    alone: list[tuple[Key, str, HostView]] = []
    lowest = offers.taker
    for host in suited:
        takeable = [o for o in host.occupants if offers.takeable(o)]
        lowest = min((lowest, *map(offers.level, takeable)))
        best = min((offers.key(o) for o in _enough_alone(host, ways, takeable)), default=None)
        if best is not None:
            alone.append((best, host.host_id, host))
    chosen = [h for _, _, h in nsmallest(_WITH_ONE, alone, key=lambda entry: entry[:2])]
    if any(key[0] == lowest for key, _, _ in alone):
        return chosen
    lacking = [(s, h.host_id, h) for h in suited if (s := shortfall(h, ways, offers.takeable)) is not None]
    several = [h for _, _, h in nsmallest(_WITH_SEVERAL, lacking, key=lambda entry: entry[:2])]
    return list({h.host_id: h for h in (*chosen, *several)}.values())


def _may_suit(request: PlacementRequest, host: HostView) -> bool:
    """Cheap things that rule a host out; all else is left to placement."""
    wishes = request.spec.placement
    if host.host_id in request.excluded_hosts or not host.occupants:
        return False
    return wishes.host_selector.items() <= host.labels.items() and host.reserved_for.items() <= request.labels.items()


def _enough_alone(host: HostView, ways: Ways, takeable: Sequence[Occupant]) -> list[Occupant]:
    """Where one card (or RAM) is all that is needed."""
    found: list[Occupant] = []
    for need in ways.on(host):
        if need.gpu_bytes == 0:
            missing = need.ram_bytes - host.ram_free_bytes
            found += [o for o in takeable if o.ram_bytes >= missing]
        elif need.shape.gpus_per_host == 1:
            found += _on_one_card(host, need, takeable)
    return found


def _on_one_card(host: HostView, need: Need, takeable: Sequence[Occupant]) -> list[Occupant]:
    missing = {g.uuid: need.gpu_bytes - g.free_bytes for g in host.gpus if g.total_bytes >= need.gpu_bytes}
    ram = need.ram_bytes - host.ram_free_bytes
    never = 1 << 62
    return [
        o
        for o in takeable
        if o.ram_bytes >= ram and any(size >= missing.get(uuid, never) for uuid, size in o.gpu_bytes)
    ]
