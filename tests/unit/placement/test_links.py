"""Which cards of a host are taken together."""

from collections.abc import Callable
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from fleet.placement.links import closest, distance, islands, nodes
from fleet.placement.view import GpuView

CARDS = 8


def by_pairs(a: int, b: int) -> int:
    """NVLink bridges over pairs, two NUMA nodes."""
    return 5 if a ^ b == 1 else 40 if a // 4 == b // 4 else 50


def by_switches(a: int, b: int) -> int:
    """Two PCIe switches on each of two NUMA nodes."""
    return 10 if a // 2 == b // 2 else 40 if a // 4 == b // 4 else 50


def by_halves(a: int, b: int) -> int:
    """Two islands of four."""
    return 5 if a // 4 == b // 4 else 50


def all_linked(a: int, b: int) -> int:
    return 5


def nothing_but_nodes(a: int, b: int) -> int:
    return 40 if a // 4 == b // 4 else 50


def host(apart: Callable[[int, int], int]) -> list[GpuView]:
    told = apart is not nothing_but_nodes
    return [
        GpuView(
            uuid=f"gpu-{n}",
            free_bytes=0,
            total_bytes=1,
            index=n,
            numa_node=n // 4,
            links=tuple((f"gpu-{p}", apart(n, p)) for p in range(CARDS) if p != n) if told else (),
        )
        for n in range(CARDS)
    ]


topologies = st.sampled_from([by_pairs, by_switches, by_halves, all_linked, nothing_but_nodes])


@given(topologies, st.sets(st.integers(0, CARDS - 1), min_size=1), st.data())
def test_no_other_set_of_cards_is_closer_on_machines_as_they_are_built(
    apart: Callable[[int, int], int], present: set[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(present)))
    free = data.draw(st.lists(st.integers(0, 3), min_size=len(present), max_size=len(present)))
    gpus = [host(apart)[n] for n in sorted(present)]
    chosen = closest(gpus, free, count)
    assert len({g.uuid for g in chosen}) == count

    def total(some: tuple[GpuView, ...]) -> int:
        return sum(apart(a.index, b.index) for a, b in combinations(some, 2))

    assert total(chosen) == min(total(some) for some in combinations(gpus, count))


@given(topologies, st.permutations(range(CARDS)), st.integers(1, CARDS))
def test_order_of_cards_changes_nothing(apart: Callable[[int, int], int], order: list[int], count: int) -> None:
    gpus = host(apart)
    assert closest([gpus[n] for n in order], [0] * CARDS, count) == closest(gpus, [0] * CARDS, count)


def test_neighbours_have_neighbouring_ranks() -> None:
    twisted = host(lambda a, b: 5 if a % 2 == b % 2 else 50)
    assert [g.index for g in closest(twisted, [0] * CARDS, CARDS)] == [0, 2, 4, 6, 1, 3, 5, 7]


def test_islands_are_linked_through_others_too() -> None:
    ring = host(lambda a, b: 5 if abs(a - b) == 1 and {a, b} != {3, 4} else 40)
    assert islands(ring) == [0, 0, 0, 0, 4, 4, 4, 4]
    assert nodes(ring) == [0, 0, 0, 0, 4, 4, 4, 4]
    assert islands(host(nothing_but_nodes)) == list(range(CARDS))


def test_distance_is_told_by_either_card_else_by_the_nodes() -> None:
    a, b = GpuView("a", 0, 1, numa_node=0, links=(("b", 10),)), GpuView("b", 0, 1, numa_node=1)
    assert distance(a, b) == distance(b, a) == 10
    c, d = GpuView("c", 0, 1, numa_node=1), GpuView("d", 0, 1)
    assert distance(b, c) < distance(a, d) < distance(a, c)
