"""A refusal in words: host by host in a small fleet, else cause by cause. Pure."""

from collections.abc import Iterator

import numpy as np

from fleet.placement.decision import Filter, Refusal, Removed
from fleet.placement.needs import Need
from fleet.placement.options import allowed
from fleet.placement.refusal import Miss, Verdict, verdict
from fleet.placement.search import Search
from fleet.placement.table import Ints, Mask
from fleet.placement.view import HostView
from fleet.specs import PlacementSpec

_NAMED_HOSTS = 8
"""A fleet of so many hosts is told host by host."""
_NO_HOST = "no host is ready for new replicas: start one with `holdfast host`, see `holdfast hosts`"
_EXCLUDED = "excluded after failures there, and others could run it (forgotten after a while, or by `holdfast restart`)"
_OF_CARDS = (Filter.CARDS, Filter.COUNT, Filter.MEMORY, Filter.RAM, Filter.GANG)
"""Where a cordoned card might have helped."""


def explain(search: Search) -> Refusal:
    """Why ``search`` found nothing."""
    if not len(search.fleet):
        return Refusal((_NO_HOST,), ())
    found, gpus = verdict(search), search.fleet.host["gpus"]
    removed = [Removed(name, int(m.sum()), int(gpus[m].sum())) for name, m in found.removed.items() if m.any()]
    told = _by_host(found) if len(search.fleet) <= _NAMED_HOSTS else _by_filter(found)
    return Refusal(tuple(told), tuple(removed))


_VERBS = {1: ("has", "does", "is"), 2: ("have", "do", "are")}


# -- host by host ------------------------------------------------------------------------------------------------------


def _by_host(found: Verdict) -> Iterator[str]:
    order, fleet = found.search.fleet.order(), found.search.fleet
    for row in sorted(np.flatnonzero(fleet.host["alive"]).tolist(), key=lambda row: int(order[row])):
        name = next(name for name, hosts in found.removed.items() if hosts[row])
        host = fleet.known(row)
        yield f"{host.name}: {_of_host(found, name, row)}{_cordoned(host) if name in _OF_CARDS else ''}"


def _of_host(found: Verdict, name: Filter, row: int) -> str:
    search, host = found.search, found.search.fleet.known(row)
    match name:
        case Filter.LABELS:
            wanted = search.wish.host_selector
            return "lacks label " + _listed({k: v for k, v in wanted.items() if host.labels.get(k) != v})
        case Filter.RESERVED:
            return f"is reserved for deployments with label {_listed(host.reserved_for)}"
        case Filter.MEMORY:
            return _short_of_memory(found, _only(row, search))
        case Filter.COUNT:
            return _too_few(found, _only(row, search))
        case Filter.RAM:
            free, total = search.fleet.host["ram_free"][row], search.fleet.host["ram_total"][row]
            return f"needs {_gib(_least_ram(found, row))} of RAM, {_gib(free)} of {_gib(total)} is free"
        case _:
            return _cause(found, name, _only(row, search), 1)


def _only(row: int, search: Search) -> Mask:
    mask = np.zeros(search.fleet.host.size, np.bool_)
    mask[row] = True
    return mask


def _cordoned(host: HostView) -> str:
    return "".join(f"; GPU {uuid} is cordoned: {reason}" for uuid, reason in host.cordoned_gpus)


# -- cause by cause ----------------------------------------------------------------------------------------------------


def _by_filter(found: Verdict) -> Iterator[str]:
    total = len(found.search.fleet)
    for name, hosts in found.removed.items():
        for group, text in _groups(found, name, hosts):
            yield f"{int(group.sum())} of {total} hosts: {text}{_cordoned_on(found, group, name)}"


def _groups(found: Verdict, name: Filter, hosts: Mask) -> Iterator[tuple[Mask, str]]:
    """One filter may take hosts away for several causes."""
    if name is Filter.LABELS:
        yield from _by_label(found, hosts)
    elif name is Filter.RESERVED:
        yield from _by_reservation(found, hosts)
    elif hosts.any():
        yield hosts, _of_hosts(found, name, hosts)


def _by_label(found: Verdict, hosts: Mask) -> Iterator[tuple[Mask, str]]:
    for key, value in found.search.wish.host_selector.items():
        lacking = hosts & ~found.search.suited.has_label(key, value)
        hosts = hosts & ~lacking
        if lacking.any():
            yield lacking, f"lack label {key}={value}"


def _by_reservation(found: Verdict, hosts: Mask) -> Iterator[tuple[Mask, str]]:
    fleet = found.search.fleet
    codes = np.unique(fleet.host["reserved"][hosts]).tolist()
    for wanted, code in sorted((_listed(fleet.reserved[code]), code) for code in codes):
        group = hosts & (fleet.host["reserved"] == code)
        yield group, f"are reserved for deployments with label {wanted}"


def _of_hosts(found: Verdict, name: Filter, hosts: Mask) -> str:
    match name:
        case Filter.MEMORY:
            return "too little room: it " + _short_of_memory(found, hosts)
        case Filter.COUNT:
            return "too few cards: it " + _too_few(found, hosts)
        case Filter.RAM:
            free = found.search.fleet.host["ram_free"]
            best = min(np.flatnonzero(hosts).tolist(), key=lambda row: (-free[row], found.search.fleet.order()[row]))
            return f"have {_gib(free[best])} of RAM free at most, {_gib(_least_ram(found, best))} is needed"
        case _:
            return _cause(found, name, hosts, 2)


def _cordoned_on(found: Verdict, hosts: Mask, name: Filter) -> str:
    if name not in _OF_CARDS:
        return ""
    count = sum(len(found.search.fleet.known(row).cordoned_gpus) for row in np.flatnonzero(hosts).tolist())
    return f" ({count} GPUs there are cordoned)" if count else ""


# -- causes ------------------------------------------------------------------------------------------------------------


def _cause(found: Verdict, name: Filter, hosts: Mask, number: int) -> str:
    """Of filters that say the same of each host. ``number``: grammatical, 1 or 2."""
    has, do, are = _VERBS[number]
    search, spec, wish = found.search, found.search.request.spec, found.search.wish
    engine = f"{spec.engine} {spec.engine_version}".rstrip()
    docker = f"{has} no Docker engine: install one there, or set spec.runtime to 'auto' or 'process'"
    texts = {
        Filter.EXCLUDED: _EXCLUDED,
        Filter.RUNTIME: docker if spec.runtime == "docker" else f"{has} no way to run engines as {spec.runtime}",
        Filter.IMAGE: f"{has} no image for {spec.engine}: name one in spec.container.image",
        Filter.ENGINE: f"cannot run {engine}",
        Filter.FILE: f"{do} not have the file {spec.model_path}",
        Filter.AVOID: f"{has} replicas of deployments with label {_listed(wish.avoid)}, which this one avoids",
        Filter.CARDS: f"{has} no GPU that takes claims",
        Filter.VENDORS: f"{has} no card of {' or '.join(wish.vendors)}",
        Filter.GPU_TYPES: f"{has} no card of type {' or '.join(wish.gpu_types)}",
        Filter.GPU_IDS: f"{has} none of the GPUs that placement.gpu_ids names",
        Filter.ACCELERATOR: f"{has} no build of {engine} that {_use(wish)}" + _own_image(search),
        Filter.FABRIC: f"{has} no address on a network for replicas that span hosts",
        Filter.PORTS: f"{has} no port left for another engine",
    }
    if name is Filter.MODEL:
        return _cannot(found, hosts)
    return _share_only(found, are) if name is Filter.GANG else texts[name]


def _use(wish: PlacementSpec) -> str:
    return "runs on CPUs" if wish.gpus_per_replica == 0 else "can use the cards there"


def _own_image(search: Search) -> str:
    asks = search.wish.gpus_per_replica or not search.request.spec.container.image
    return "" if asks else " (for spec.container.image, set placement.gpus_per_replica)"


def _cannot(found: Verdict, hosts: Mask) -> str:
    """Why the model does not run on classes of the cards there."""
    search = found.search
    there = hosts[search.fleet.gpu["host"]] & (search.fleet.gpu["class"] > 0)
    codes = np.unique(search.fleet.gpu["class"][there]).tolist()
    classes = [c for c in (search.fleet.classes[code] for code in codes) if c is not None]
    told = {c.name or c.kind.value: search.needs.why_not.get(c) or _no_way(search) for c in classes}
    return "; ".join(f"cannot run it on {name}: {why}" for name, why in sorted(told.items())) or "cannot run it in RAM"


def _no_way(search: Search) -> str:
    if search.wish.gpus_per_replica is not None:
        return f"no way to run it takes {search.wish.gpus_per_replica} GPUs (spec.placement.gpus_per_replica)"
    return "it takes several hosts: set spec.placement.multi_host" if _gangs_only(search) else "it does not fit"


def _gangs_only(search: Search) -> bool:
    wide = search.wish.model_copy(update={"multi_host": True})
    classes = (c for _, c in search.fleet.present_classes())
    return any(allowed(wide, need) for c in classes for need in search.needs.on(c))


def _share_only(found: Verdict, are: str) -> str:
    needs = [*(m.option.need for m in found.misses), *found.search.cpu]
    sizes = [need.shape.hosts for need in needs if need.shape.hosts > 1]
    how_many = f"{min(sizes)} with one build of the engine" if sizes else "more"
    return f"{are} each able to take a share, but {how_many} are needed at a time"


def _too_few(found: Verdict, hosts: Mask) -> str:
    ways = [m for m in found.misses if m.cards[hosts].any()] or list(found.misses)
    if not ways:
        return _cannot(found, hosts)
    miss = min(ways, key=lambda m: m.option.need.shape.gpus_per_host - int(m.cards[hosts].max()))
    return f"{_needed(miss.option.need)}; there are {int(miss.cards[hosts].max())} at most that can be used together"


def _short_of_memory(found: Verdict, hosts: Mask) -> str:
    enough = (m for m in found.misses if m.cards[hosts].max() >= m.option.need.shape.gpus_per_host)
    miss = max(enough, key=lambda m: _nearness(m, hosts))
    most, need = int(miss.most_free[hosts].max()), miss.option.need
    if need.shape.gpus_per_host == 1:
        return f"{_needed(need)}; the best has {_gib(most)}"
    best = int(miss.roomy[hosts].max())
    return f"{_needed(need)}, {best} at most there {'has' if best == 1 else 'have'}; the best has {_gib(most)}"


def _nearness(miss: Miss, hosts: Mask) -> tuple[float, int]:
    """More is nearer: the share of the cards that have room, then what is missing on the emptiest one."""
    shape = miss.option.need.shape
    return (
        int(miss.roomy[hosts].max()) / shape.gpus_per_host,
        int(miss.most_free[hosts].max()) - miss.option.need.gpu_bytes,
    )


def _needed(need: Need) -> str:
    shape = need.shape
    over = f" on each of {shape.hosts} hosts" if shape.hosts > 1 else ""
    cards = "1 GPU" if shape.gpus_per_host == 1 else f"{shape.gpus_per_host} GPUs"
    return f"needs {cards} with {_gib(need.gpu_bytes)} free{over}"


def _least_ram(found: Verdict, row: int) -> int:
    """Of the ways to run it that a host has cards for, else in RAM alone."""
    on_cards = [m.option.need.ram_bytes for m in found.misses if m.roomy[row] >= m.option.need.shape.gpus_per_host]
    return min(on_cards or [need.ram_bytes for need in found.search.cpu])


def _listed(labels: dict[str, str]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted(labels.items()))


def _gib(size: int | Ints) -> str:
    return f"{size / (1 << 30):.1f} GiB"
