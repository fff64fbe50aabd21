"""Which cards of a host work best together. Pure."""

from collections.abc import Sequence
from itertools import combinations
from math import comb

from fleet.placement.view import GpuView

_FEW_SETS = 70
"""Halves of eight cards."""
_DIRECT, _SAME_NODE, _ACROSS, _UNKNOWN = 5, 40, 50, 45


def distance(a: GpuView, b: GpuView) -> int:
    """As on ``GpuView.links``; where nothing is told of two cards, by their NUMA nodes."""
    told = next((d for uuid, d in a.links if uuid == b.uuid), None)
    told = told if told is not None else next((d for uuid, d in b.links if uuid == a.uuid), None)
    if told is not None:
        return told
    if a.numa_node is None or b.numa_node is None:
        return _UNKNOWN
    return _SAME_NODE if a.numa_node == b.numa_node else _ACROSS


def islands(gpus: Sequence[GpuView]) -> list[int]:
    """For each card the first one that it reaches over direct links (NVLink and kin), through others too."""
    first = list(range(len(gpus)))
    number = {gpu.uuid: n for n, gpu in enumerate(gpus)}
    for here, gpu in enumerate(gpus):
        for uuid, far in gpu.links:
            there = number.get(uuid)
            if far <= _DIRECT and there is not None and first[there] != first[here]:
                least, other = sorted((first[here], first[there]))
                first = [least if f == other else f for f in first]
    return first


def nodes(gpus: Sequence[GpuView]) -> list[int]:
    """For each card the first one on its NUMA node."""
    found: dict[int | None, int] = {}
    return [found.setdefault(gpu.numa_node, n) for n, gpu in enumerate(gpus)]


def closest(gpus: Sequence[GpuView], free: Sequence[int], count: int) -> tuple[GpuView, ...]:
    """``count`` of ``gpus`` that lie closest together, of equal ones those with the least free; in rank order.

    Of up to eight cards the best of all sets. Of more, sets are grown from each card in turn by the one that is nearest
    to those chosen: all would be too many.
    """
    listed = sorted(zip(gpus, free, strict=True), key=lambda pair: (pair[0].index, pair[0].uuid))
    gpus, free = [gpu for gpu, _ in listed], [left for _, left in listed]
    order = sorted(range(len(gpus)), key=lambda n: (free[n], gpus[n].uuid))
    chosen = order[:count] if count in (1, len(gpus)) else _chosen(gpus, free, order, count)
    first, node = islands(gpus), nodes(gpus)
    return tuple(gpus[n] for n in sorted(chosen, key=lambda n: (first[n], node[n], n)))


def _chosen(gpus: Sequence[GpuView], free: Sequence[int], order: Sequence[int], count: int) -> Sequence[int]:
    apart = [[_cost(a, b) for b in gpus] for a in gpus]
    if comb(len(gpus), count) > _FEW_SETS:
        return _grown(apart, free, order, count)

    def key(some: tuple[int, ...]) -> tuple[int, int]:
        return sum(apart[a][b] for a, b in combinations(some, 2)), sum(free[n] for n in some)

    return min(combinations(order, count), key=key)  # of equal ones the first in order


def _grown(apart: list[list[int]], free: Sequence[int], order: Sequence[int], count: int) -> list[int]:
    place = {n: at for at, n in enumerate(order)}
    alone = [sum(sorted(row)[:count]) for row in apart]  # of two that are as far, the one that has others near it
    best: tuple[tuple[int, int, list[int]], list[int]] | None = None
    for start in order:
        chosen, far, total = [start], list(apart[start]), 0
        while len(chosen) < count:
            nearest = min((n for n in order if n not in chosen), key=lambda n: (far[n], alone[n], place[n]))
            total += far[nearest]
            chosen.append(nearest)
            far = [f + d for f, d in zip(far, apart[nearest], strict=True)]
        key = (total, sum(free[n] for n in chosen), sorted(place[n] for n in chosen))
        if best is None or key < best[0]:
            best = (key, chosen)
    return best[1] if best else []


def _cost(a: GpuView, b: GpuView) -> int:
    """Of cards that are linked alike, those on one NUMA node are closer."""
    return 2 * distance(a, b) + (a.numa_node != b.numa_node)
