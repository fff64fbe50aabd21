"""Which tenants of one host would have to go so that a replica fits, by bytes alone. Pure, and quick.

What it finds is a proposal: whether the replica is really placed then is for placement to say.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TypeAlias

from fleet.placement.needs import Need, Needs
from fleet.placement.options import allowed, wished
from fleet.placement.view import HostView, Occupant
from fleet.policy.tenants import Tenant
from fleet.sizing.sizing import GpuClass
from fleet.specs import PlacementSpec

Cost: TypeAlias = tuple[int | float | str, ...]
Price: TypeAlias = Callable[[Collection[Tenant]], Cost | None]
"""What it costs to take these; None: they may not be taken (all). More of them never cost less."""
Holding: TypeAlias = tuple[Tenant, int]

_ALL_SUBSETS = 6
"""Of so many tenants of a card every set is tried; of more the largest first."""


class Ways:
    """How a replica may be run on one host alone: what sizing and the deployment's wishes leave."""

    def __init__(self, wish: PlacementSpec, needs: Needs) -> None:
        self._wish, self._needs = wish, needs
        self._by_class: dict[tuple[object, ...], tuple[Need, ...]] = {}

    def on(self, host: HostView) -> Iterator[Need]:
        classes = {(g.kind, g.name, g.total_bytes, g.compute_capability, g.unified): g for g in host.gpus}
        for key, gpu in classes.items():
            if key not in self._by_class:
                self._by_class[key] = self._of(gpu.gpu_class)
            yield from self._by_class[key]
        yield from self._needs.cpu

    def _of(self, gpu_class: GpuClass) -> tuple[Need, ...]:
        if not wished(self._wish, gpu_class):
            return ()
        return tuple(n for n in self._needs.on(gpu_class) if n.shape.hosts == 1 and allowed(self._wish, n))


def shortfall(host: HostView, ways: Ways, movable: Callable[[Occupant], bool]) -> int | None:
    """Bytes that must be given back there at least, in the best way; None: the movable do not hold as much."""
    held = sum(size for o in host.occupants if movable(o) for _, size in (*o.gpu_bytes, ("", o.ram_bytes)))
    best: int | None = None
    for need in ways.on(host):
        cards = sorted(max(0, need.gpu_bytes - g.free_bytes) for g in host.gpus if g.total_bytes >= need.gpu_bytes)
        wanted = need.shape.gpus_per_host if need.gpu_bytes else 0
        lacks = sum(cards[:wanted]) + max(0, need.ram_bytes - host.ram_free_bytes)
        if len(cards) >= wanted and lacks <= held:
            best = lacks if best is None else min(best, lacks)
    return best


def sets_on(host: HostView, ways: Ways, movable: Mapping[str, Tenant], price: Price) -> Iterator[frozenset[str]]:
    """For each way to run it there the cheapest set that would be enough, if there is one."""
    on_cards, in_ram = _holdings(host, movable)
    for need in ways.on(host):
        chosen = _for(need, host, on_cards, in_ram, price)
        if chosen:
            yield frozenset(t.instance_id for t in chosen)


def _holdings(host: HostView, movable: Mapping[str, Tenant]) -> tuple[dict[str, list[Holding]], list[Holding]]:
    on_cards: dict[str, list[Holding]] = {}
    in_ram: list[Holding] = []
    for occupant in host.occupants:
        tenant = movable.get(occupant.instance_id)
        if tenant is None:
            continue
        for uuid, size in occupant.gpu_bytes:
            on_cards.setdefault(uuid, []).append((tenant, size))
        if occupant.ram_bytes:
            in_ram.append((tenant, occupant.ram_bytes))
    return on_cards, in_ram


def _for(
    need: Need, host: HostView, on_cards: dict[str, list[Holding]], in_ram: list[Holding], price: Price
) -> set[Tenant] | None:
    chosen: set[Tenant] = set()
    if need.gpu_bytes:
        gone = _cards(need, host, on_cards, price)
        if gone is None:
            return None
        chosen = gone
    freed = sum(size for t, size in in_ram if t in chosen)
    more = cover(need.ram_bytes - host.ram_free_bytes - freed, [h for h in in_ram if h[0] not in chosen], chosen, price)
    return None if more is None else chosen | more


def _cards(need: Need, host: HostView, on_cards: dict[str, list[Holding]], price: Price) -> set[Tenant] | None:
    """The cheapest of what is found from nothing, and from each that holds several cards and might be worth it."""
    wide = {t for holders in on_cards.values() for t, _ in holders if len(t.gpu_bytes) > 1}
    starts: list[set[Tenant]] = [set(), *({t} for t in sorted(wide, key=lambda t: t.instance_id))]
    found = [gone for start in starts if (gone := _card_by_card(need, host, on_cards, start, price)) is not None]
    return _cheapest(found, set(), price)


def _card_by_card(
    need: Need, host: HostView, on_cards: dict[str, list[Holding]], start: set[Tenant], price: Price
) -> set[Tenant] | None:
    """Each time the card that costs least beside those that go anyway."""
    chosen = set(start)
    left = {g.uuid: need.gpu_bytes - g.free_bytes for g in host.gpus if g.total_bytes >= need.gpu_bytes}
    for _ in range(need.shape.gpus_per_host):
        best: tuple[Cost, str, set[Tenant]] | None = None
        for uuid, missing in left.items():
            holders = on_cards.get(uuid, [])
            freed = sum(size for t, size in holders if t in chosen)
            more = cover(missing - freed, [h for h in holders if h[0] not in chosen], chosen, price)
            cost = None if more is None else price(chosen | more)
            if more is not None and cost is not None and (best is None or (cost, uuid) < best[:2]):
                best = (cost, uuid, more)
        if best is None:
            return None
        chosen |= best[2]
        del left[best[1]]
    return chosen


def cover(missing: int, holders: Sequence[Holding], chosen: Collection[Tenant], price: Price) -> set[Tenant] | None:
    """The cheapest of ``holders`` that hold ``missing`` bytes together, beside those ``chosen`` already."""
    if missing <= 0:
        return set()
    if sum(size for _, size in holders) < missing:
        return None
    if len(holders) <= _ALL_SUBSETS:
        return _cheapest(_subsets(missing, holders), set(chosen), price)
    return _cheapest(_by_level(missing, holders), set(chosen), price)


def _cheapest(options: Iterable[set[Tenant]], chosen: set[Tenant], price: Price) -> set[Tenant] | None:
    best: tuple[Cost, set[Tenant]] | None = None
    for option in options:
        cost = price(chosen | option)
        if cost is not None and (best is None or cost < best[0]):
            best = (cost, option)
    return best[1] if best is not None else None


def _subsets(missing: int, holders: Sequence[Holding]) -> Iterator[set[Tenant]]:
    for count in range(1, len(holders) + 1):
        for some in combinations(holders, count):
            if sum(size for _, size in some) >= missing:
                yield {tenant for tenant, _ in some}


def _by_level(missing: int, holders: Sequence[Holding]) -> Iterator[set[Tenant]]:
    """The largest first, of the lowest level alone, then of the lowest two, and so on."""
    for level in sorted({t.priority for t, _ in holders}):
        allowed = sorted((h for h in holders if h[0].priority <= level), key=lambda h: (h[0].priority, -h[1]))
        taken: set[Tenant] = set()
        left = missing
        for n, (tenant, size) in enumerate(allowed):
            enough = [h for h in allowed[n:] if h[1] >= left]
            if enough:
                last = min(enough, key=lambda h: (h[0].priority, h[1]))
                yield taken | {last[0]}
            taken, left = taken | {tenant}, left - size
            if left <= 0:
                yield taken
                break
