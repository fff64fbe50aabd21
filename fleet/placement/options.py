"""In which order the ways to run a replica are tried: the cheapest cards that suffice first. Pure."""

from dataclasses import dataclass

from fleet.placement.fleet import Fleet
from fleet.placement.needs import Need, Needs
from fleet.sizing.sizing import GpuClass
from fleet.specs import PlacementSpec

_SAME_PRICE = 1.05
"""Cards of one model differ by a little memory from driver to driver: they are to be one choice."""
_USUAL_CAPABILITY = 8.0
"""Where the vendor has no such number."""

Rank = tuple[int, bool, bool, float, int]


@dataclass(frozen=True)
class Option:
    """One way to run the replica on cards of one class."""

    need: Need
    code: int
    """Of the class in the fleet."""
    gpu_class: GpuClass
    rank: Rank


def options(wish: PlacementSpec, needs: Needs, fleet: Fleet) -> list[list[Option]]:
    """Those of one list cost about the same: the best place of all of them is taken. Earlier lists are cheaper."""
    found = [
        option
        for code, gpu_class in fleet.present_classes()
        if wished(wish, gpu_class)
        for option in _of_class(wish, needs, code, gpu_class)
    ]
    found.sort(key=lambda o: (o.rank, _identity(o.gpu_class)))
    return _bands(found)


def wished(wish: PlacementSpec, gpu_class: GpuClass) -> bool:
    return of_vendors(wish, gpu_class) and of_types(wish, gpu_class)


def of_vendors(wish: PlacementSpec, gpu_class: GpuClass) -> bool:
    return not wish.vendors or gpu_class.kind in wish.vendors


def of_types(wish: PlacementSpec, gpu_class: GpuClass) -> bool:
    name = gpu_class.name.lower()
    return not wish.gpu_types or any(wanted.lower() in name for wanted in wish.gpu_types)


def allowed(wish: PlacementSpec, need: Need) -> bool:
    """Whether a person's words leave this shape."""
    count = wish.gpus_per_replica
    return (count is None or need.shape.gpus == count) and (wish.multi_host or need.shape.hosts == 1)


def price(gpu_class: GpuClass) -> float:
    """What one card is worth beside others: memory times what it can do. Nobody tells us what they paid."""
    return gpu_class.memory_bytes * _capability(gpu_class.compute_capability)


def _of_class(wish: PlacementSpec, needs: Needs, code: int, gpu_class: GpuClass) -> list[Option]:
    """A need that comes later is never tried before one that comes earlier."""
    found: list[Option] = []
    for place, need in enumerate(needs.on(gpu_class)):
        if not allowed(wish, need):
            continue
        cost = need.shape.gpus * price(gpu_class)
        rank = (need.tier, need.offloads, need.shape.hosts > 1, cost, place)
        found.append(Option(need, code, gpu_class, max(rank, found[-1].rank) if found else rank))
    return found


def _bands(ordered: list[Option]) -> list[list[Option]]:
    bands: list[list[Option]] = []
    for option in ordered:
        if bands and _alike(bands[-1], option):
            bands[-1].append(option)
        else:
            bands.append([option])
    return bands


def _alike(band: list[Option], option: Option) -> bool:
    first = band[0]
    same_way = first.rank[:3] == option.rank[:3] and first.need.shape == option.need.shape
    new = all(o.code != option.code for o in band) and first.gpu_class.kind == option.gpu_class.kind
    return same_way and new and option.rank[3] <= first.rank[3] * _SAME_PRICE


def _identity(c: GpuClass) -> tuple[str, str, int, str, bool]:
    return (c.kind, c.name, c.memory_bytes, c.compute_capability, c.unified)


def _capability(text: str) -> float:
    try:
        return float(text) or _USUAL_CAPABILITY
    except ValueError:
        return _USUAL_CAPABILITY
