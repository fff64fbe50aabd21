"""How many replicas of one kind there is room for: counted at once, not placed one after the other. Pure."""

from dataclasses import dataclass

import numpy as np

from fleet.inventory import EngineBuild
from fleet.placement.builds import Software, fitting, identity
from fleet.placement.fleet import Room
from fleet.placement.needs import Need
from fleet.placement.options import Option
from fleet.placement.search import Search
from fleet.placement.table import Ints, Mask

_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Capacity:
    """For replicas of one sizing alone."""

    now: int
    empty: int
    """If nothing ran on the hosts that suit."""


def on_cards(search: Search, option: Option) -> Capacity:
    """On cards of the option's class. Exact where replicas of this one shape are all that is placed."""
    fleet = search.fleet
    return Capacity(_count(search, option, fleet.room()), _count(search, option, fleet.emptied()))


def in_ram(search: Search, need: Need) -> Capacity:
    hosts, fleet = _open(search), search.fleet
    now, empty = (int(_by_ram(need, room, hosts).sum()) for room in (fleet.room(), fleet.emptied()))
    return Capacity(now, empty)


def _open(search: Search) -> Mask:
    hosts: Mask = search.lasting & search.suited.unavoided
    return hosts


def _count(search: Search, option: Option, room: Room) -> int:
    shape, hosts = option.need.shape, _open(search) & search.usable(option)
    if shape.hosts > 1:
        hosts &= search.fleet.host["fabric"]
    per_host = np.minimum(_by_cards(search, option, room, hosts), _by_ram(option.need, room, hosts))
    if shape.hosts == 1:
        return int(per_host.sum())
    # All hosts of a gang run one build; those of the commonest make the most gangs.
    return max((_sets(per_host[_having(search, build)], shape.hosts) for build in search.gang_builds()), default=0)


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
