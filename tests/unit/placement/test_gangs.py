"""Replicas that span several hosts: whole or not at all."""

from dataclasses import replace
from typing import Any

from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.decision import Decision
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Need, Needs
from fleet.placement.place import place, replicas_that_fit
from fleet.placement.view import HostView
from fleet.sizing.sizing import Shape
from tests.unit.placement.fleets import GIB, cards, decided, host, refused, request

BUILD = EngineBuild(engine="vllm", version="1", accelerators=(AcceleratorKind.NVIDIA,))
NEWER = BUILD.model_copy(update={"version": "2"})


def gang(hosts: int, gpus: int = 2) -> Needs:
    return Needs(
        otherwise=(Need(Shape(tensor_parallel=gpus, pipeline_parallel=hosts, hosts=hosts), 70 * GIB, ports=2),)
    )


def asked(**changes: Any) -> Any:
    return request(**{"engine": "vllm", "engine_version": "", "multi_host": True, **changes})


def box(host_id: str, rack: str = "", *, free: int = 80 * GIB, name: str = "NVIDIA H100", **more: Any) -> HostView:
    gpus = cards(name, host_id, free, free, capability="9.0")
    made = host(host_id, 64 * GIB, engines=(BUILD,), fabric_address="10.0.0.1", labels={"rack": rack} if rack else {})
    return replace(made, gpus=gpus, **more)


def test_gang_takes_the_same_of_each_host() -> None:
    found = decided(asked(), box("a"), box("b"), box("c"), needs=gang(2))
    assert found.hosts == ("a", "b")
    assert [seat.gpu_uuids for seat in found.seats] == [("a-gpu-0", "a-gpu-1"), ("b-gpu-0", "b-gpu-1")]
    assert {(seat.gpu_bytes, seat.ports, seat.generation) for seat in found.seats} == {(70 * GIB, 2, 7)}
    assert found.build == BUILD


def test_one_host_is_better_than_several() -> None:
    both = Needs(otherwise=(*gang(2, gpus=1).otherwise, Need(Shape(tensor_parallel=2), 70 * GIB)))
    assert decided(asked(), box("a"), box("b"), needs=replace(both, otherwise=both.otherwise[::-1])).hosts == ("a",)


def test_gang_is_kept_in_the_tightest_domain_that_holds_it() -> None:
    wide = [box("a", "r1"), box("b", "r2"), box("c", "r2"), box("d", "r2"), box("e", "r3"), box("f", "r3")]
    assert decided(asked(), *wide, needs=gang(2)).hosts == ("e", "f")
    assert decided(asked(), *wide, needs=gang(3)).hosts == ("b", "c", "d")
    assert len(decided(asked(), *wide, needs=gang(5)).hosts) == 5
    zones = [replace(h, labels={**h.labels, "zone": "z1" if h.host_id < "d" else "z2"}) for h in wide[::2]]
    assert decided(asked(), *zones, needs=gang(2)).hosts == ("a", "c")


def test_second_gang_goes_to_another_domain() -> None:
    fleet = Fleet.of([box(h, r) for h, r in zip("abcdefgh", "11112222", strict=True)])
    first = place(asked(), gang(2), fleet)
    assert isinstance(first, Decision)
    fleet.take(first)
    packed = place(asked(deployment="other"), gang(2), fleet)
    second = place(asked(spread_by="rack"), gang(2), fleet)
    assert isinstance(packed, Decision)
    assert isinstance(second, Decision)
    assert (first.hosts, packed.hosts, second.hosts) == (("a", "b"), ("c", "d"), ("e", "f"))


def test_hosts_of_a_gang_have_one_class_one_build_and_a_fabric() -> None:
    cards_differ = (box("a"), box("b", name="NVIDIA A100"))
    [one, _] = refused(asked(), *cards_differ, needs=gang(2))
    assert "able to take a share, but 2 with one build of the engine are needed at a time" in one
    builds_differ = (box("a"), box("b", engines=(NEWER,)))
    assert refused(asked(), *builds_differ, needs=gang(2))
    assert decided(asked(), *builds_differ, box("c", engines=(NEWER, BUILD)), needs=gang(2)).build == BUILD
    no_fabric = (box("a"), box("b", fabric_address=""))
    assert "no address on a network" in refused(asked(), *no_fabric, needs=gang(2))[1]


def test_gang_is_placed_whole_or_not_at_all() -> None:
    busy = box("c", free=60 * GIB)
    [_, _, third] = refused(asked(), box("a"), box("b"), busy, needs=gang(3))
    assert third.endswith(
        "needs 2 GPUs with 70.0 GiB free on each of 3 hosts, 0 at most there have; the best has 60.0 GiB"
    )
    assert replicas_that_fit(asked(), gang(2), Fleet.of([box("a"), box("b"), box("d"), busy])) == 1


def test_several_hosts_only_where_they_are_asked_for() -> None:
    alone = asked(multi_host=False)
    [reason, _] = refused(alone, box("a"), box("b"), needs=gang(2))
    assert "set spec.placement.multi_host" in reason


def test_gang_is_no_alternative_where_too_few_others_could_ever_run_it() -> None:
    excluding = asked(excluded_hosts=("a",))
    assert decided(excluding, box("a"), box("b"), needs=gang(2)).hosts == ("a", "b")
    assert decided(excluding, box("a"), box("b"), box("c"), needs=gang(2)).hosts == ("b", "c")
    full = box("c", free=GIB)
    assert "excluded after failures" in refused(excluding, box("a"), box("b"), full, needs=gang(2))[0]


# -- in RAM ------------------------------------------------------------------------------------------------------------

SHARED = Needs(
    cpu=(Need(ram_bytes=6 * GIB), Need(Shape(pipeline_parallel=2, hosts=2), ram_bytes=3 * GIB, ports=2)),
)


def small(host_id: str, free: int = 4 * GIB, **more: Any) -> HostView:
    return replace(host(host_id, free, fabric_address=f"10.0.0.{ord(host_id)}"), **more)


def test_model_that_no_host_has_ram_for_alone_lies_in_that_of_two() -> None:
    fleet = (small("a"), small("b"), small("c", 5 * GIB))
    found = decided(request(multi_host=True), *fleet, needs=SHARED)
    assert (found.gpu_class, found.hosts) == (None, ("a", "b"))
    assert {(seat.gpu_uuids, seat.ram_bytes, seat.ports) for seat in found.seats} == {((), 3 * GIB, 2)}
    alone = decided(request(multi_host=True), *fleet, small("d", 8 * GIB), needs=SHARED)
    assert alone.hosts == ("d",), "one host is better than two"


def test_why_a_model_does_not_lie_in_the_ram_of_two() -> None:
    [reason] = refused(request(), small("a"), needs=SHARED)
    assert "RAM" in reason, "it was not asked for"
    reasons = refused(request(multi_host=True), small("a"), small("b", fabric_address=""), needs=SHARED)
    assert "able to take a share, but 2 with one build of the engine are needed" in reasons[0]
    assert "b-name: has no address on a network for replicas that span hosts" in reasons
    [reason, _] = refused(request(multi_host=True), small("a", 2 * GIB), small("b"), needs=SHARED)
    assert "RAM" in reason
