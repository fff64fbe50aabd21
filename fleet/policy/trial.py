"""Would there be a place if some replicas were gone? Pure."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import TypeAlias

from fleet.placement.decision import Decision
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Needs
from fleet.placement.request import PlacementRequest
from fleet.placement.search import Search
from fleet.placement.view import HostView
from fleet.policy.tenants import without

Best: TypeAlias = Callable[[PlacementRequest, Needs, Fleet], Decision | None]
"""As ``best_place``; whoever knows more (which hosts have the model's files) brings its own."""


def best_place(request: PlacementRequest, needs: Needs, fleet: Fleet) -> Decision | None:
    """As ``fleet.placement.place.place``, without the reasons against."""
    return Search(request, needs, fleet).best()


class Trial:
    """One request on one fleet, asked again and again."""

    def __init__(self, request: PlacementRequest, needs: Needs, hosts: Sequence[HostView], best: Best) -> None:
        self.request, self.needs, self.hosts = request, needs, hosts
        self._best = best
        self._by_id = {h.host_id: h for h in hosts}

    def of(self, gone: Collection[str], where: Collection[str]) -> Decision | None:
        """On the hosts ``where`` alone, without the instances ``gone``."""
        some = [without(self._by_id[h], gone) for h in where if h in self._by_id]
        return self._best(self.request, self.needs, Fleet.of(some)) if some else None

    def of_all(self, gone: Collection[str]) -> Decision | None:
        """On all hosts."""
        fleet, names = self._whole, set(gone)
        if names:
            fleet = fleet.copy()
            for host in self.hosts:
                if any(o.instance_id in names for o in host.occupants):
                    fleet.update(without(host, names))
        return self._best(self.request, self.needs, fleet)

    @cached_property
    def _whole(self) -> Fleet:
        return Fleet.of(self.hosts)
