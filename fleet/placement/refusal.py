"""Why a replica goes nowhere: which filter took which hosts away, and how near each came. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fleet.placement.decision import Filter
from fleet.placement.options import Option, allowed, of_types, of_vendors
from fleet.placement.search import Search
from fleet.placement.table import Ints, Mask
from fleet.sizing.sizing import GpuClass

_WAYS = (Filter.COUNT, Filter.FABRIC, Filter.MEMORY, Filter.RAM, Filter.PORTS, Filter.GANG)
"""What each way to run it asks for, in this order: a host counts for how far it got with the best of them."""


@dataclass(frozen=True)
class Miss:
    """How near hosts come to one way to run the replica on cards. By row of hosts."""

    option: Option
    cards: Ints
    """So many it may use."""
    roomy: Ints
    """So many of them have room."""
    most_free: Ints
    """Bytes on one of them."""


@dataclass(frozen=True)
class Verdict:
    search: Search
    removed: dict[Filter, Mask]
    """Each host of the fleet is in exactly one."""
    misses: tuple[Miss, ...]


def verdict(search: Search) -> Verdict:
    """Of a search that found nothing."""
    misses = tuple(_miss(search, option) for band in search.bands for option in band)
    suited = search.suited
    filters = [(Filter.EXCLUDED, ~search.excluded), *suited.filters(), (Filter.AVOID, suited.unavoided)]
    removed, left = _one_by_one(filters, search.fleet.host["alive"])
    for name, hosts in _by_room(search, left, misses).items():
        removed[name] = removed.get(name, False) | hosts
    return Verdict(search, removed, misses)


def _by_room(search: Search, hosts: Mask, misses: tuple[Miss, ...]) -> dict[Filter, Mask]:
    """For hosts that suit in all that lasts."""
    if search.wish.gpus_per_replica == 0:
        return _by_ram(search, hosts)
    removed, left = _one_by_one(_card_filters(search), hosts)
    if search.cpu:
        on_cpus = search.suited.in_ram
        removed = {name: found & ~on_cpus for name, found in removed.items()}
        removed = _together(removed, _by_ram(search, hosts & ~left & on_cpus))
    return _together(removed, _by_way(search, left, misses))


def _together(one: dict[Filter, Mask], other: dict[Filter, Mask]) -> dict[Filter, Mask]:
    return {**one, **{name: one.get(name, False) | found for name, found in other.items()}}


def _one_by_one(filters: list[tuple[Filter, Mask]], among: Mask) -> tuple[dict[Filter, Mask], Mask]:
    removed: dict[Filter, Mask] = {}
    for name, suits in filters:
        removed[name] = among & ~suits
        among = among & suits
    return removed, among


def _card_filters(search: Search) -> list[tuple[Filter, Mask]]:
    """Hosts that still have a card when this filter and all before have taken theirs."""
    fleet, wish, named = search.fleet, search.wish, search.suited.named_cards
    host, cards = fleet.gpu["host"], fleet.gpu["class"] > 0
    filters = [(Filter.CARDS, _hosts_of(cards, host, fleet.host.size))]
    for name, suits in (
        (Filter.VENDORS, _of_classes(search, lambda c: of_vendors(wish, c))),
        (Filter.GPU_TYPES, _of_classes(search, lambda c: of_types(wish, c))),
        (Filter.GPU_IDS, named if named is not None else cards),
        (Filter.ACCELERATOR, _usable(search)),
        (Filter.MODEL, _of_classes(search, lambda c: any(allowed(wish, need) for need in search.needs.on(c)))),
    ):
        cards = cards & suits
        filters.append((name, _hosts_of(cards, host, fleet.host.size)))
    return filters


def _of_classes(search: Search, suits: Callable[[GpuClass], bool]) -> Mask:
    classes = search.fleet.classes
    answers = np.fromiter((c is not None and suits(c) for c in classes), np.bool_, len(classes))
    found: Mask = answers[search.fleet.gpu["class"]]
    return found


def _usable(search: Search) -> Mask:
    mask = np.zeros(search.fleet.gpu.size, np.bool_)
    for code, gpu_class in search.fleet.present_classes():
        cards = search.fleet.class_cards(code)
        mask[cards] = search.suited.usable(gpu_class)[search.fleet.gpu["host"][cards]]
    return mask


def _hosts_of(cards: Mask, host: Ints, size: int) -> Mask:
    mask = np.zeros(size, np.bool_)
    mask[host[cards]] = True
    return mask


def _by_ram(search: Search, hosts: Mask) -> dict[Filter, Mask]:
    if not search.cpu:
        return {Filter.MODEL: hosts}
    able, host = hosts & search.suited.in_ram, search.fleet.host
    alone = [need.ram_bytes for need in search.cpu if need.shape.hosts == 1]
    shares = [need for need in search.cpu if need.shape.hosts > 1]
    whole = able & (host["ram_free"] >= min(alone)) if alone else np.zeros_like(able)
    share = able & ~whole & (host["ram_free"] >= min(n.ram_bytes for n in shares)) if shares else np.zeros_like(able)
    open_ports = host["ports_free"] >= max((n.ports for n in shares), default=0)
    return {
        Filter.ACCELERATOR: hosts & ~able,
        Filter.RAM: able & ~whole & ~share,
        Filter.FABRIC: share & ~host["fabric"],
        Filter.PORTS: whole | (share & host["fabric"] & ~open_ports),
        Filter.GANG: share & host["fabric"] & open_ports,
    }


def _by_way(search: Search, hosts: Mask, misses: tuple[Miss, ...]) -> dict[Filter, Mask]:
    furthest = np.zeros(search.fleet.host.size, np.int64)
    for miss in misses:
        furthest = np.maximum(furthest, _progress(search, miss))
    return {name: hosts & (furthest == step) for step, name in enumerate(_WAYS)}


def _progress(search: Search, miss: Miss) -> Ints:
    """Which of ``_WAYS`` each host failed at."""
    need, host = miss.option.need, search.fleet.host
    count = need.shape.gpus_per_host
    passed = [
        miss.cards >= count,
        host["fabric"] | (need.shape.hosts == 1),
        miss.roomy >= count,
        host["ram_free"] >= need.ram_bytes,
        host["ports_free"] >= need.ports,
    ]
    steps: Ints = np.logical_and.accumulate(np.array(passed)).sum(axis=0)
    return steps


def _miss(search: Search, option: Option) -> Miss:
    fleet, need = search.fleet, option.need
    cards = search.cards_for(option)
    host = fleet.gpu["host"][cards]
    usable = search.usable(option)[host]
    cards, host = cards[usable], host[usable]
    free, size = fleet.gpu["free"][cards], fleet.host.size
    most = np.zeros(size, np.int64)
    np.maximum.at(most, host, free)
    roomy = np.bincount(host[free >= need.gpu_bytes], minlength=size)
    return Miss(option, np.bincount(host, minlength=size), roomy, most)
