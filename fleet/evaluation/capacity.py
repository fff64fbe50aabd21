"""How many replicas of one kind there is room for: counted at once, not placed one after the other. Pure."""

from dataclasses import dataclass, replace

import numpy as np

from fleet.inventory import EngineBuild
from fleet.placement.builds import Software, fitting, identity
from fleet.placement.fleet import Room
from fleet.placement.needs import Need
from fleet.placement.options import Option
from fleet.placement.search import Search
from fleet.placement.table import Ints, Mask
from fleet.sizing.sizing import GpuClass

_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Capacity:
    now: int
    empty: int
    """If nothing ran on the hosts that suit."""


@dataclass(frozen=True)
class Counted:
    """For replicas of one shape alone. Arrays are by row of the fleet's hosts."""

    need: Need
    capacity: Capacity
    now: Ints
    """Replicas, or members of gangs, that each host could take."""
    empty: Ints


class Tally:
    """Counts class after class; RAM and ports that the replicas of one class take are gone for the next."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._hosts: Mask = search.lasting & search.suited.unavoided
        self._now, self._empty = search.fleet.room(), search.fleet.emptied()

    def on_cards(self, gpu: GpuClass) -> list[Counted]:
        """Every way to run it on cards of the class. Exact where replicas of one shape are all that is placed."""
        options = [o for band in self._search.bands for o in band if o.gpu_class == gpu]
        return self._taken([self._counted(o.need, o) for o in options])

    def in_ram(self) -> list[Counted]:
        return self._taken([self._counted(need, None) for need in self._search.cpu])

    def _taken(self, found: list[Counted]) -> list[Counted]:
        if found:
            best = max(found, key=lambda c: (c.capacity.now, c.capacity.empty))
            self._now = _without(self._now, best.need, best.now)
            self._empty = _without(self._empty, best.need, best.empty)
        return found

    def _counted(self, need: Need, option: Option | None) -> Counted:
        now, empty = (self._per_host(need, option, room) for room in (self._now, self._empty))
        return Counted(need, Capacity(self._sum(need, now), self._sum(need, empty)), now, empty)

    def _per_host(self, need: Need, option: Option | None, room: Room) -> Ints:
        if option is None:
            return _by_ram(need, room, self._hosts)
        hosts = self._hosts & self._search.usable(option)
        if need.shape.hosts > 1:
            hosts &= self._search.fleet.host["fabric"]
        return np.minimum(_by_cards(self._search, option, room, hosts), _by_ram(need, room, hosts))

    def _sum(self, need: Need, per_host: Ints) -> int:
        if need.shape.hosts == 1:
            return int(per_host.sum())
        if int((per_host > 0).sum()) < need.shape.hosts:
            return 0
        # All hosts of a gang run one build; those of the commonest make the most gangs.
        builds = self._search.gang_builds()
        return max((_sets(per_host[_having(self._search, b)], need.shape.hosts) for b in builds), default=0)


def _without(room: Room, need: Need, per_host: Ints) -> Room:
    return replace(room, ram=room.ram - per_host * need.ram_bytes, ports=room.ports - per_host * need.ports)


def _having(search: Search, build: EngineBuild) -> Mask:
    def has(software: Software) -> bool:
        return any(identity(b) == identity(build) for b in fitting(search.request.spec, software))

    return search.fleet.where_software(has)


def _by_cards(search: Search, option: Option, room: Room, hosts: Mask) -> Ints:
    """For each row of a host, how many replicas (or members of a gang) its cards hold."""
    cards = search.cards_for(option)
    cards = cards[hosts[search.fleet.gpu["host"][cards]]]
    per_card = room.gpu[cards] // max(1, option.need.gpu_bytes)
    where, size = search.fleet.gpu["host"][cards], search.fleet.host.size
    together = option.need.shape.gpus_per_host
    if together == 1:
        return np.bincount(where, weights=per_card, minlength=size).astype(np.int64)
    return _sets_by_host(per_card, where, size, together)


def _by_ram(need: Need, room: Room, hosts: Mask) -> Ints:
    by_ram = room.ram // need.ram_bytes if need.ram_bytes else np.full(len(hosts), _NO_LIMIT)
    by_ports = room.ports // need.ports if need.ports else np.full(len(hosts), _NO_LIMIT)
    found: Ints = np.where(hosts, np.maximum(0, np.minimum(by_ram, by_ports)), 0)
    return found


def _sets(places: Ints, size: int) -> int:
    """So many sets of ``size`` different things there are, where each thing may be in ``places`` of them.

    ``n`` sets can be made if and only if the things have ``size * n`` places, with at most ``n`` counted of each.
    """
    return int(_sets_by_host(places, np.zeros(len(places), np.int64), 1, size)[0])


def _sets_by_host(places: Ints, where: Ints, hosts: int, size: int) -> Ints:
    """The same for each host, by bisection of all at once."""
    least = np.zeros(hosts, np.int64)
    most = np.bincount(where, weights=places, minlength=hosts).astype(np.int64) // size
    while (least < most).any():
        middle = (least + most + 1) // 2
        had = np.bincount(where, weights=np.minimum(places, middle[where]), minlength=hosts)
        enough = had >= size * middle
        least, most = np.where(enough, middle, least), np.where(enough, most, middle - 1)
    return least
