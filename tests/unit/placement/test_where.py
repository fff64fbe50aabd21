"""Which cards and hosts are taken of those that would do."""

from dataclasses import replace
from typing import Any

import pytest

from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.decision import Decision
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Need, Needs
from fleet.placement.options import price
from fleet.placement.place import place, replicas_that_fit
from fleet.placement.view import GpuView, HostView, Occupant
from fleet.sizing.sizing import GpuClass, Shape, Sizing
from tests.unit.placement.fleets import GIB, cards, chosen, decided, host, linked, refused, request

BUILD = EngineBuild(engine="vllm", version="1", accelerators=(AcceleratorKind.NVIDIA,))
SMALL = Needs.constant(10 * GIB, 1)
"""A model of 0.6 B parameters with its KV cache."""


def asked(**changes: Any) -> Any:
    return request(engine="vllm", **changes)


def box(host_id: str, gpus: tuple[GpuView, ...], **changes: Any) -> HostView:
    return replace(host(host_id, 512 * GIB, engines=(BUILD,)), gpus=gpus, **changes)


def rtx(host_id: str = "rtx", *free: int, **more: Any) -> HostView:
    gpus = cards("NVIDIA GeForce RTX 4090", host_id, *(free or (24 * GIB,)), total=24 * GIB, capability="8.9")
    return box(host_id, gpus, **more)


def h100(host_id: str = "h100", *free: int, **more: Any) -> HostView:
    return box(host_id, cards("NVIDIA H100 80GB HBM3", host_id, *(free or (80 * GIB,)), capability="9.0"), **more)


def tensor_parallel(*counts: int, size: int = 20 * GIB) -> Needs:
    return Needs(otherwise=tuple(Need(Shape(tensor_parallel=n), size) for n in counts))


# -- classes -------------------------------------------------------------------------------------------------------


def test_two_small_models_share_one_card() -> None:
    fleet = Fleet.of([rtx()])
    first = place(asked(), SMALL, fleet)
    assert isinstance(first, Decision)
    fleet.take(first)
    second = place(asked(deployment="other"), SMALL, fleet)
    assert isinstance(second, Decision)
    assert first.seats[0].gpu_uuids == second.seats[0].gpu_uuids == ("rtx-gpu-0",)
    fleet.take(second)
    assert fleet.view("rtx").gpus[0].free_bytes == 4 * GIB
    assert replicas_that_fit(asked(), SMALL, fleet) == 0


def test_small_model_goes_to_the_small_card_and_a_large_one_to_the_large() -> None:
    fleet = (h100("a", 12 * GIB), rtx("b", *[24 * GIB] * 4))
    assert chosen(asked(), *fleet, needs=SMALL).host_id == "b", "however full the other is"
    fleet = (h100("a"), rtx("b"))
    assert chosen(asked(), *fleet, needs=Needs.constant(40 * GIB, 1)).host_id == "a"
    full = rtx("b", 2 * GIB)
    assert chosen(asked(), h100("a"), full, needs=SMALL).host_id == "a"


def test_one_large_card_is_cheaper_than_many_small_ones() -> None:
    by_class = {h100().gpus[0].gpu_class: (Need(gpu_bytes=70 * GIB),)}
    needs = Needs(by_class, otherwise=tensor_parallel(4).otherwise)
    small = rtx("a", *[24 * GIB] * 4)
    assert decided(asked(), small, h100("b"), needs=needs).hosts == ("b",)
    assert len(chosen(asked(), small, h100("b", GIB), needs=needs).gpu_uuids) == 4


def test_fewer_cards_come_first_and_the_next_shape_only_where_they_do_not_do() -> None:
    needs = tensor_parallel(1, 2)
    assert len(chosen(asked(), h100("a", 20 * GIB, 80 * GIB), needs=needs).gpu_uuids) == 1
    two = h100("a", 20 * GIB, 20 * GIB)
    assert chosen(asked(gpus_per_replica=2), two, needs=needs).gpu_uuids == two_of("a")
    assert refused(asked(gpus_per_replica=3), two, needs=needs)


def two_of(host_id: str) -> tuple[str, str]:
    return (f"{host_id}-gpu-0", f"{host_id}-gpu-1")


def test_cards_of_one_replica_are_of_one_class() -> None:
    mixed = box("a", (*h100("a", 80 * GIB).gpus, *(replace(g, uuid="x") for g in rtx("a").gpus)))
    [reason] = refused(asked(), mixed, needs=tensor_parallel(2, size=GIB))
    assert reason == "a-name: needs 2 GPUs with 1.0 GiB free; there are 1 at most that can be used together"


def test_cards_of_one_model_that_differ_by_a_driver_are_one_choice() -> None:
    """Else replicas would not spread over both."""
    other = h100("b")
    other = replace(other, gpus=tuple(replace(g, total_bytes=g.total_bytes + (300 << 20)) for g in other.gpus))
    there = h100("a", replicas_of_deployment=1)
    assert chosen(asked(), there, other, needs=SMALL).host_id == "b"
    assert chosen(asked(), replace(there, replicas_of_deployment=0), other, needs=SMALL).host_id == "a"


def test_layers_in_ram_are_for_when_no_card_holds_the_model_whole() -> None:
    part = Sizing(gpu_bytes=GIB, ram_bytes=9 * GIB, context=1, sequences=1, batched_tokens=1, kv_bytes=0, concurrency=1,
                  gpu_layers=4)  # fmt: skip
    offloaded = Need(gpu_bytes=GIB, ram_bytes=9 * GIB, sizing=part)
    needs = Needs({rtx().gpus[0].gpu_class: (offloaded,)}, otherwise=(Need(gpu_bytes=40 * GIB),))
    assert chosen(asked(), rtx("a"), h100("b"), needs=needs).host_id == "b"
    seat = chosen(asked(), rtx("a"), h100("b", GIB), needs=needs)
    assert (seat.host_id, seat.gpu_bytes, seat.ram_bytes) == ("a", GIB, 9 * GIB)


def test_lower_tier_is_tried_on_all_classes_first() -> None:
    needs = Needs({rtx().gpus[0].gpu_class: (Need(gpu_bytes=GIB, tier=1),)}, otherwise=(Need(gpu_bytes=GIB),))
    assert chosen(asked(), rtx("a"), h100("b"), needs=needs).host_id == "b"


def test_price_of_a_card_is_its_memory_times_what_it_can_do() -> None:
    t4, l4, a100, odd = (
        GpuClass(kind=AcceleratorKind.NVIDIA, memory_bytes=gib * GIB, compute_capability=capability)
        for gib, capability in ((16, "7.5"), (24, "8.9"), (80, "8.0"), (80, "gfx90a"))
    )
    assert price(t4) < price(l4) < price(a100) == price(odd)


# -- what others use -----------------------------------------------------------------------------------------------


def used_by_others(card: GpuView, share: float) -> GpuView:
    taken = int(card.total_bytes * share)
    return replace(card, free_bytes=card.total_bytes - taken, foreign_bytes=taken)


@pytest.mark.parametrize("strategy", ["auto", "spread", "binpack"])
def test_card_that_somebody_else_uses_most_of_is_not_taken(strategy: str) -> None:
    ours, theirs = h100("a", 80 * GIB, 80 * GIB).gpus
    here = box("a", (used_by_others(theirs, 0.7), ours))
    assert chosen(asked(strategy=strategy), here, needs=SMALL).gpu_uuids == (ours.uuid,)
    elsewhere = h100("b")
    only_theirs = box("a", (used_by_others(theirs, 0.7),))
    assert chosen(asked(strategy=strategy), only_theirs, elsewhere, needs=SMALL).host_id == "b"


def test_a_dearer_card_is_better_than_one_that_others_use() -> None:
    [card] = rtx("a").gpus
    crowded = box("a", (used_by_others(card, 0.3),))
    assert chosen(asked(), crowded, h100("b"), needs=SMALL).host_id == "b"
    assert chosen(asked(), crowded, h100("b", 0), needs=SMALL).host_id == "a", "it has room after all"


def test_a_desktop_on_the_card_is_no_reason_to_avoid_it() -> None:
    [card] = rtx("a").gpus
    assert chosen(asked(), box("a", (used_by_others(card, 0.02),)), h100("b"), needs=SMALL).host_id == "a"


# -- links ---------------------------------------------------------------------------------------------------------


def test_linked_cards_are_taken_together() -> None:
    gpus = linked(h100("a", *[80 * GIB] * 4).gpus, (0, 2), (1, 3))
    fuller = tuple(replace(g, free_bytes=30 * GIB) if g.index in (0, 1) else g for g in gpus)
    two = chosen(asked(), box("a", fuller), needs=tensor_parallel(2))
    assert two.gpu_uuids == ("a-gpu-0", "a-gpu-2")


def test_host_where_linked_cards_are_free_is_better() -> None:
    four = [80 * GIB] * 4
    across = box("a", linked(h100("a", 0, *four[1:3], 0).gpus, (0, 1), (2, 3)))
    within = box("b", linked(h100("b", *four).gpus, (0, 1), (2, 3)))
    assert chosen(asked(), across, within, needs=tensor_parallel(2)).host_id == "b"


def numa(gpus: tuple[GpuView, ...], *nodes: int) -> tuple[GpuView, ...]:
    return tuple(replace(g, numa_node=node) for g, node in zip(gpus, nodes, strict=True))


def test_without_links_cards_of_one_numa_node_are_taken_and_others_only_last() -> None:
    gpus = numa(rtx("a", *[24 * GIB] * 4).gpus, 0, 1, 0, 1)
    fuller = tuple(replace(g, free_bytes=20 * GIB) if g.index == 2 else g for g in gpus)
    assert chosen(asked(), box("a", fuller), needs=tensor_parallel(2)).gpu_uuids == (
        "a-gpu-0",
        "a-gpu-2",
    )
    across = box("a", numa(rtx("a", 24 * GIB, 24 * GIB).gpus, 0, 1))
    assert chosen(asked(), across, box("b", numa(rtx("b", *[24 * GIB] * 4).gpus, 0, 0, 1, 1)),
                  needs=tensor_parallel(2)).host_id == "b"  # fmt: skip
    assert chosen(asked(), across, needs=tensor_parallel(2)).gpu_uuids == two_of("a")


def test_nearest_cards_by_measured_distance_on_sixteen() -> None:
    gpus = h100("a", *[80 * GIB] * 16).gpus
    near = {n: [n ^ 1] for n in range(16)}
    told = tuple(replace(g, links=tuple((gpus[p].uuid, 10) for p in near[g.index])) for g in gpus)
    busy = tuple(replace(g, free_bytes=0) if g.index in (0, 3, 4) else g for g in told)
    four = chosen(asked(), box("a", busy), needs=tensor_parallel(4)).gpu_uuids
    assert sorted(int(u.rsplit("-", 1)[1]) // 2 for u in four) == [5, 5, 6, 6]


# -- strategies ----------------------------------------------------------------------------------------------------


def test_replicas_spread_over_failure_domains_before_hosts() -> None:
    racks = {"a": "1", "b": "1", "c": "2"}
    there = [h100(h, labels={"rack": r}, replicas_of_deployment=int(h == "a")) for h, r in racks.items()]
    assert chosen(asked(spread_by="rack"), *there, needs=SMALL).host_id == "c"
    assert chosen(asked(), *there, needs=SMALL).host_id == "b"
    fuller = h100("b", 10 * GIB, labels={})
    assert chosen(asked(spread_by="rack"), there[0], fuller, needs=SMALL).host_id == "b", "on its own"


def test_whole_cards_are_kept_whole_for_those_that_need_them() -> None:
    opened = h100("b", 20 * GIB, 80 * GIB)
    assert chosen(asked(), h100("a", 80 * GIB, 80 * GIB), opened, needs=SMALL).gpu_uuids == ("b-gpu-0",)


def test_spread_takes_the_emptiest_card_and_binpack_the_fullest_though_replicas_meet() -> None:
    fleet = (h100("a", 30 * GIB, 40 * GIB, replicas_of_deployment=1), h100("b", 50 * GIB, 80 * GIB))
    assert chosen(asked(strategy="spread"), *fleet, needs=SMALL).gpu_uuids == ("b-gpu-1",)
    assert chosen(asked(strategy="binpack"), *fleet, needs=SMALL).gpu_uuids == ("a-gpu-0",)


def test_host_that_has_the_files_is_better_where_nothing_weightier_tells_them_apart() -> None:
    fleet = (h100("a"), h100("b"))
    assert chosen(asked(), *fleet, needs=SMALL, near={"b"}).host_id == "b"
    alone = (h100("a"), h100("b", replicas_of_deployment=1))
    assert chosen(asked(), *alone, needs=SMALL, near={"b"}).host_id == "a"


def test_seed_only_breaks_ties() -> None:
    equal = [h100(name) for name in "abc"]
    found = [chosen(asked(), *equal, needs=SMALL, seed=seed).host_id for seed in range(4)]
    assert found == ["a", "b", "c", "a"]
    better = h100("d", 10 * GIB)
    assert {chosen(asked(), *equal, better, needs=SMALL, seed=s).host_id for s in range(9)} == {"d"}


# -- wishes --------------------------------------------------------------------------------------------------------


def test_only_cards_that_are_named() -> None:
    fleet = (h100("a", 80 * GIB, 80 * GIB), h100("b"))
    assert chosen(asked(gpu_ids=["a-gpu-1"]), *fleet, needs=SMALL).gpu_uuids == ("a-gpu-1",)
    assert refused(asked(gpu_ids=["a-gpu-1"]), *fleet, needs=tensor_parallel(2, size=1))


def test_replicas_take_the_named_cards_one_after_the_other() -> None:
    fleet = Fleet.of([h100("a", 80 * GIB, 80 * GIB), h100("b")])
    wish = asked(gpu_ids=["a-gpu-0", "a-gpu-1"])
    assert replicas_that_fit(wish, Needs.constant(60 * GIB, 1), fleet) == 2


def test_types_are_found_in_names_in_any_case() -> None:
    fleet = (rtx("a"), h100("b"))
    assert chosen(asked(gpu_types=["h100"]), *fleet, needs=SMALL).host_id == "b"
    assert chosen(asked(gpu_types=["Rtx 4090", "A100"]), *fleet, needs=SMALL).host_id == "a"
    assert chosen(asked(vendors=["nvidia"]), *fleet, needs=SMALL).host_id == "a"
    assert refused(asked(vendors=["amd"]), *fleet, needs=SMALL)


def test_neighbours_to_avoid_are_avoided_but_not_oneself_nor_who_leaves() -> None:
    noisy = {"loud": {"noisy": "yes"}}
    loud = h100("a", occupants=(Occupant("loud/1", "loud"),), deployment_labels=noisy)
    leaving = replace(loud, occupants=(Occupant("loud/1", "loud", leaving=True),))
    wish = {"avoid": {"noisy": "yes"}}
    fleet = (loud, h100("b", replicas_of_deployment=5))
    assert chosen(asked(**wish), *fleet, needs=SMALL).host_id == "b"
    assert chosen(asked(), *fleet, needs=SMALL).host_id == "a"
    assert chosen(asked(**wish), leaving, needs=SMALL).host_id == "a"
    own = replace(loud, occupants=(Occupant("chat/1", "chat"),), deployment_labels={"chat": {"noisy": "yes"}})
    assert chosen(asked(**wish), own, needs=SMALL).host_id == "a"


def test_ram_and_ports_are_counted_beside_cards() -> None:
    needs = Needs.constant(GIB, 1, ram_bytes=8 * GIB)
    short = h100("a", ram_free_bytes=8 * GIB - 1)
    assert chosen(asked(), short, h100("b"), needs=needs).host_id == "b"
    assert "8.0 GiB of RAM" in refused(asked(), short, needs=needs)[0]
    assert "no port left" in refused(asked(), h100("a", ports_free=0), needs=needs)[0]
