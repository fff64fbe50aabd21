"""What people and programs read when there is no place."""

from dataclasses import replace
from typing import Any

from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.decision import Filter, Refusal, Removed
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Need, Needs
from fleet.placement.place import place
from fleet.placement.view import HostView
from fleet.sizing.sizing import Shape
from tests.unit.placement.fleets import GIB, answer, host, refused, request
from tests.unit.placement.test_where import SMALL, h100, rtx


def told(*hosts: HostView, needs: Needs, files: Any = None, **wishes: Any) -> Refusal:
    found = answer(request(engine="vllm", **wishes), *hosts, needs=needs, files=files)
    assert isinstance(found, Refusal), found
    assert sum(removed.hosts for removed in found.filters) == len(hosts)
    return found


def test_large_fleet_is_told_cause_by_cause_with_counts_and_the_nearest_miss() -> None:
    rack = {"rack": "4"}
    wrong_rack = [h100(f"a{n}", labels={"rack": "5"}) for n in range(3)]
    wrong_card = [rtx(f"b{n}", labels=rack) for n in range(5)]
    full = [h100(f"c{n}", (8 + n) * GIB, labels=rack) for n in range(4)]
    found = told(*wrong_rack, *wrong_card, *full, needs=Needs.constant(15 * GIB, 1),
                 host_selector=rack, gpu_types=["H100"])  # fmt: skip
    assert found.reasons == (
        "3 of 12 hosts: lack label rack=4",
        "5 of 12 hosts: have no card of type H100",
        "4 of 12 hosts: too little room: it needs 1 GPU with 15.0 GiB free; the best has 11.0 GiB",
    )
    assert found.filters == (
        Removed(Filter.LABELS, 3, 3),
        Removed(Filter.GPU_TYPES, 5, 5),
        Removed(Filter.MEMORY, 4, 4),
    )
    assert found.unplaceable.message == "; ".join(found.reasons)


def test_nearest_miss_for_several_cards_is_the_host_that_has_most_of_them() -> None:
    fleet = [h100(f"h{n}", *[70 * GIB] * (n % 4), *[GIB] * 4) for n in range(12)]
    [reason] = told(*fleet, needs=Needs.constant(62 * GIB, 4)).reasons
    told_of_memory = "it needs 4 GPUs with 62.0 GiB free, 3 at most there have; the best has 70.0 GiB"
    assert reason == f"12 of 12 hosts: too little room: {told_of_memory}"


def test_hosts_count_for_how_far_they_got_with_the_best_way_to_run_it() -> None:
    needs = Needs(otherwise=(Need(gpu_bytes=70 * GIB), Need(Shape(tensor_parallel=2), 40 * GIB, ram_bytes=1024 * GIB)))
    found = told(h100("a", 60 * GIB), h100("b", 60 * GIB, 60 * GIB), rtx("c"), needs=needs)
    assert [r.split(":")[0] for r in found.reasons] == ["a-name", "b-name", "c-name"]
    assert found.reasons[0] == "a-name: needs 1 GPU with 70.0 GiB free; the best has 60.0 GiB"
    assert found.reasons[1] == "b-name: needs 1024.0 GiB of RAM, 512.0 GiB of 512.0 GiB is free"
    assert found.filters == (Removed(Filter.MEMORY, 2, 2), Removed(Filter.RAM, 1, 2))


def test_cards_that_the_model_cannot_run_on_are_named_with_the_reason() -> None:
    [card] = rtx("a").gpus
    needs = Needs(why_not={card.gpu_class: "needs 140 GiB for its weights"})
    assert told(rtx("a"), needs=needs).reasons == (
        "a-name: cannot run it on NVIDIA GeForce RTX 4090: needs 140 GiB for its weights",
    )
    many = told(*[rtx(f"h{n}") for n in range(9)], needs=needs)
    assert many.reasons == ("9 of 9 hosts: cannot run it on NVIDIA GeForce RTX 4090: needs 140 GiB for its weights",)


def test_every_lasting_filter_is_named() -> None:
    docker = EngineBuild(engine="vllm", version="", origin="image", accelerators=(AcceleratorKind.NVIDIA,))
    amd_only = EngineBuild(engine="vllm", version="1", accelerators=(AcceleratorKind.AMD,))
    cases: list[tuple[Filter, HostView, dict[str, Any]]] = [
        (Filter.RESERVED, h100("a", reserved_for={"team": "ml"}), {}),
        (Filter.RUNTIME, h100("a"), {"runtime": "docker"}),
        (Filter.IMAGE, h100("a", runtimes=("docker",)), {"runtime": "docker"}),
        (Filter.ENGINE, h100("a", engines=(docker,)), {}),
        (Filter.FILE, h100("a"), {"files": set()}),
        (Filter.CARDS, replace(h100("a"), gpus=()), {}),
        (Filter.VENDORS, h100("a"), {"vendors": ["amd"]}),
        (Filter.GPU_IDS, h100("a"), {"gpu_ids": ["another"]}),
        (Filter.ACCELERATOR, h100("a", engines=(amd_only,)), {}),
        (Filter.COUNT, h100("a"), {"gpus_per_replica": 2, "needs": Needs.constant(GIB, 2)}),
        (Filter.PORTS, h100("a", ports_free=0), {}),
    ]
    for name, there, wishes in cases:
        for fleet in ([there], [Fleet.of([there]).view("a"), *(numbered(there, n) for n in range(9))]):
            found = told(*fleet, **{"needs": SMALL, **wishes})
            assert found.filters == (Removed(name, len(fleet), sum(len(h.gpus) for h in fleet)),), (name, found)
            assert len(found.reasons) == 1
            assert found.reasons[0].startswith("a-name: " if len(fleet) == 1 else "10 of 10 hosts: ")


def numbered(there: HostView, number: int) -> HostView:
    fresh = h100(f"h{number}") if there.gpus else host(f"h{number}")
    changes = {name: getattr(there, name) for name in ("reserved_for", "runtimes", "engines", "ports_free")}
    return type(there)(**{**vars(fresh), **changes})


def test_cordoned_cards_are_counted_where_they_would_have_helped() -> None:
    fleet = [h100(f"h{n}", GIB, cordoned_gpus=(("GPU-1", "Xid 79"),)) for n in range(10)]
    [reason] = told(*fleet, needs=SMALL).reasons
    assert reason.endswith("the best has 1.0 GiB (10 GPUs there are cordoned)")


def test_own_image_without_cards_says_how_to_ask_for_them() -> None:
    there = h100("a", runtimes=("docker",))
    [reason] = told(there, needs=SMALL, image="own:1").reasons
    assert "set placement.gpus_per_replica" in reason


def test_ram_is_told_where_no_card_will_do() -> None:
    asked = request(memory_bytes=100 * GIB)
    fleet = [host(f"h{n}", n * GIB) for n in range(10)]
    assert refused(asked, *fleet) == ("10 of 10 hosts: have 9.0 GiB of RAM free at most, 100.0 GiB is needed",)


def test_a_thousand_hosts_are_told_in_a_few_lines() -> None:
    found = place(request(engine="vllm"), Needs.constant(81 * GIB, 1), Fleet.of([h100(f"h{n}") for n in range(1000)]))
    assert isinstance(found, Refusal)
    assert found.reasons == (
        "1000 of 1000 hosts: too little room: it needs 1 GPU with 81.0 GiB free; the best has 80.0 GiB",
    )
