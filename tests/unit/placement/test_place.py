"""Where a replica goes, and why it goes nowhere."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.decision import Decision, Refusal
from fleet.placement.guess import guessed
from fleet.placement.request import PlacementRequest
from fleet.placement.view import GpuView, HostView, ModelFile
from tests.unit.placement.fleets import BOTH, CPU_ONLY, GIB, answer, chosen, host, refused, request

# -- why not -------------------------------------------------------------------------------------------------------


def test_fleet_without_hosts_says_how_to_get_one() -> None:
    [reason] = refused(request())
    assert "holdfast host" in reason


def test_every_refusal_names_the_host_and_the_reason() -> None:
    reasons = refused(
        request(host_selector={"zone": "x"}, excluded_hosts=("a",)),
        host("a", labels={"zone": "x"}),
        host("b", labels={"zone": "y"}),
        host("c", labels={"zone": "x"}, engines=()),
        host("d", labels={"zone": "x"}, model=None),
        host("e", labels={"zone": "x"}, free=GIB - 1),
    )
    assert reasons == (
        "a-name: excluded after failures there, and others could run it "
        "(forgotten after a while, or by `holdfast restart`)",
        "b-name: lacks label zone=x",
        "c-name: cannot run llama_cpp 1",
        "d-name: does not have the file m.gguf",
        "e-name: needs 1.0 GiB of RAM, 1.0 GiB of 8.0 GiB is free",
    )


def test_too_few_gpus_are_named_with_what_the_best_has() -> None:
    [reason] = refused(request(gpus_per_replica=2, memory_bytes=10 * GIB), host(gpus=(20 * GIB, 5 * GIB)))
    assert reason == "a-name: needs 2 GPUs with 10.0 GiB free, 1 at most there has; the best has 20.0 GiB"


def test_gpus_are_of_no_use_to_a_build_that_cannot_use_them() -> None:
    [reason] = refused(request(gpus_per_replica=1), host(gpus=(80 * GIB,), engines=(CPU_ONLY,)))
    assert reason == "a-name: has no build of llama_cpp 1 that can use the cards there"


def test_another_version_of_the_engine_will_not_do_unless_any_will() -> None:
    assert refused(request(engine_version="2"), host())
    assert chosen(request(engine_version=""), host())


def test_excluded_host_is_used_when_no_other_could_ever_run_the_replica() -> None:
    asked = request(excluded_hosts=("a",))
    small = host("b", free=0, ram_total_bytes=GIB - 1)
    for useless in (host("b", engines=()), host("b", model=None), small):
        assert chosen(asked, host("a"), useless).host_id == "a"
    assert refused(asked, host("a"), host("b", free=0))[0].startswith("a-name: excluded after failures there")


def test_cordoned_gpus_are_named_where_they_would_have_helped() -> None:
    cordoned = (("GPU-1", "Xid 79"),)
    [reason] = refused(request(gpus_per_replica=1), host(engines=(BOTH,), cordoned_gpus=cordoned))
    assert reason == "a-name: has no GPU that takes claims; GPU GPU-1 is cordoned: Xid 79"
    [reason] = refused(request(gpus_per_replica=1), host(gpus=(GIB // 2,), cordoned_gpus=cordoned))
    assert reason.endswith("the best has 0.5 GiB; GPU GPU-1 is cordoned: Xid 79")
    [reason] = refused(request(), host(free=0, engines=(BOTH,), cordoned_gpus=cordoned))
    assert reason.endswith("is free; GPU GPU-1 is cordoned: Xid 79")


def test_reserved_host_takes_only_those_that_it_is_for() -> None:
    kept = host("a", reserved_for={"team": "ml", "tier": "gold"})
    [reason] = refused(request(labels={"team": "ml"}), kept)
    assert reason == "a-name: is reserved for deployments with label team=ml, tier=gold"
    assert chosen(request(labels={"team": "ml", "tier": "gold", "x": "y"}), kept).host_id == "a"
    assert chosen(request(), kept, host("b", free=64 * GIB)).host_id == "b"


def test_reserved_host_is_no_alternative_to_an_excluded_one() -> None:
    asked = request(excluded_hosts=("a",))
    assert chosen(asked, host("a"), host("b", reserved_for={"team": "ml"})).host_id == "a"


# -- where ---------------------------------------------------------------------------------------------------------


def test_answer_says_all_that_the_claim_and_the_host_need() -> None:
    seat = chosen(request(gpus_per_replica=1), host(gpus=(80 * GIB,)))
    assert (seat.generation, seat.replicas_there, seat.ports) == (7, 0, 1)
    assert (seat.host_id, seat.gpu_uuids, seat.gpu_bytes, seat.ram_bytes) == ("a", ("a-gpu-0",), GIB, 0)
    in_ram = chosen(request(gpus_per_replica=0), host(replicas_of_deployment=2))
    assert (in_ram.gpu_uuids, in_ram.gpu_bytes, in_ram.ram_bytes, in_ram.replicas_there) == ((), 0, GIB, 2)


def test_engine_that_runs_on_cards_alone_is_not_put_into_ram() -> None:
    cards_only = (EngineBuild(engine="llama_cpp", version="1", accelerators=(AcceleratorKind.NVIDIA,)),)
    [reason] = refused(request(gpus_per_replica=0), host(engines=cards_only))
    assert reason == "a-name: has no build of llama_cpp 1 that runs on CPUs"
    [reason] = refused(request(), host(engines=cards_only))
    assert "has no GPU that takes claims" in reason
    answer = chosen(request(), host("a", engines=cards_only), host("b"))
    assert answer.host_id == "b"


def test_gpu_is_taken_where_there_is_one_with_room_else_ram() -> None:
    assert chosen(request(), host(gpus=(80 * GIB,))).gpu_uuids == ("a-gpu-0",)
    assert chosen(request(), host(gpus=(GIB - 1,))).gpu_uuids == ()
    assert chosen(request(gpus_per_replica=0), host(gpus=(80 * GIB,))).gpu_uuids == ()


def test_host_with_a_free_gpu_is_better_than_a_small_one_without() -> None:
    assert chosen(request(), host("a", free=GIB), host("b", gpus=(80 * GIB,))).host_id == "b"


def test_fullest_gpus_with_room_are_taken() -> None:
    free = (80 * GIB, GIB // 2, 3 * GIB, GIB)
    assert chosen(request(), host(gpus=free)).gpu_uuids == ("a-gpu-3",)
    assert set(chosen(request(gpus_per_replica=2), host(gpus=free)).gpu_uuids) == {"a-gpu-3", "a-gpu-2"}


def test_replicas_of_one_deployment_spread() -> None:
    roomy, tight = host("a", free=2 * GIB, replicas_of_deployment=1), host("b", free=64 * GIB)
    assert chosen(request(), roomy, tight).host_id == "b"


def test_different_deployments_pack_onto_the_fullest_host_with_room() -> None:
    hosts = [host("a", free=64 * GIB), host("b", free=2 * GIB), host("c", free=GIB // 2)]
    assert chosen(request(), *hosts).host_id == "b"


def test_same_fleet_gives_the_same_answer_in_any_order() -> None:
    hosts = [host(name) for name in "cab"]
    assert {chosen(request(), *order).host_id for order in (hosts, hosts[::-1])} == {"a"}


def need(asked: PlacementRequest, size: int = 8 * GIB) -> int:
    needs = guessed(asked.spec, size)
    [need] = needs.otherwise or needs.cpu
    assert not needs.otherwise or not needs.cpu or needs.cpu[0].ram_bytes == needs.otherwise[0].gpu_bytes
    return need.gpu_bytes or need.ram_bytes


def test_claim_is_what_was_asked_for_or_else_a_guess_divided_among_the_gpus() -> None:
    assert need(request(memory_bytes=5)) == 5
    whole = need(request(memory_bytes=None))
    assert whole > 8 * GIB
    assert need(request(memory_bytes=None, gpus_per_replica=0)) == whole
    assert whole <= 3 * need(request(memory_bytes=None, gpus_per_replica=3)) < whole + 3
    assert need(request(memory_bytes=None, max_model_len=100_000)) > whole


# -- in any fleet --------------------------------------------------------------------------------------------------

labels = st.dictionaries(st.sampled_from(["zone", "kind"]), st.sampled_from(["x", "y"]), max_size=2)
builds = st.lists(
    st.builds(
        EngineBuild,
        engine=st.sampled_from(["llama_cpp", "vllm"]),
        version=st.sampled_from(["1", "2"]),
        accelerators=st.sampled_from([CPU_ONLY.accelerators, BOTH.accelerators]),
    ),
    max_size=3,
).map(tuple)


@st.composite
def fleets(draw: st.DrawFn) -> list[HostView]:
    file = ModelFile("/models/m.gguf", draw(st.integers(1, 4 * GIB)))
    return [
        host(
            f"h{number}",
            draw(st.integers(0, 16)) * GIB,
            tuple(n * GIB for n in draw(st.lists(st.integers(0, 16), max_size=4))),
            labels=draw(labels),
            reserved_for=draw(st.just({}) | labels),
            engines=draw(builds),
            replicas_of_deployment=draw(st.integers(0, 3)),
            model=draw(st.sampled_from([None, file])),
        )
        for number in range(draw(st.integers(1, 5)))
    ]


requests = st.builds(
    request,
    engine_version=st.sampled_from(["", "1", "2"]),
    memory_bytes=st.none() | st.integers(1, 20 * GIB),
    gpus_per_replica=st.none() | st.integers(0, 4),
    host_selector=labels,
    labels=labels,
    excluded_hosts=st.lists(st.sampled_from(["h0", "h1"]), max_size=2).map(tuple),
)


def emptied(host: HostView) -> HostView:
    """As if nothing ran there."""
    gpus = tuple(replace(g, free_bytes=g.total_bytes) for g in host.gpus)
    return replace(host, ram_free_bytes=host.ram_total_bytes, gpus=gpus)


@settings(deadline=None)
@given(requests, fleets())
def test_exclusion_of_all_or_none_changes_nothing(asked: PlacementRequest, hosts: list[HostView]) -> None:
    none = asked.model_copy(update={"excluded_hosts": ()})
    everywhere = asked.model_copy(update={"excluded_hosts": tuple(h.host_id for h in hosts)})
    assert answer(none, *hosts) == answer(everywhere, *hosts)


@settings(deadline=None)
@given(requests, fleets())
def test_excluded_host_is_as_good_as_absent_while_another_could_run_it(
    asked: PlacementRequest, hosts: list[HostView]
) -> None:
    others = [h for h in hosts if h.host_id not in asked.excluded_hosts]
    if any(isinstance(answer(asked, emptied(h)), Decision) for h in others):
        found, without = answer(asked, *hosts), answer(asked, *others)
        assert isinstance(found, Decision) == isinstance(without, Decision)
        assert isinstance(found, Refusal) or found == without


@settings(deadline=None)
@given(requests, fleets())
def test_chosen_host_can_do_what_is_asked_or_each_says_why_not(asked: PlacementRequest, hosts: list[HostView]) -> None:
    found = answer(asked, *hosts)
    if isinstance(found, Refusal):
        assert [reason.split(":")[0] for reason in found.reasons] == [h.name for h in hosts]
        assert all(h.name in found.unplaceable.message for h in hosts)
        return
    [seat] = found.seats
    [there] = [h for h in hosts if h.host_id == seat.host_id]
    if there.host_id in asked.excluded_hosts:
        others = [h for h in hosts if h.host_id not in asked.excluded_hosts]
        assert not any(isinstance(answer(asked, emptied(h)), Decision) for h in others), "another could run it"
    assert asked.spec.placement.host_selector.items() <= there.labels.items()
    assert there.reserved_for.items() <= asked.labels.items()
    fitting = [b for b in there.engines if b.engine == "llama_cpp" and asked.spec.engine_version in ("", b.version)]
    assert fitting
    assert there.model is not None
    needed = need(asked, max(h.model.size_bytes for h in hosts if h.model is not None))
    assert seat.gpu_bytes + seat.ram_bytes == needed
    if not seat.gpu_uuids:
        assert not asked.spec.placement.gpus_per_replica
        assert there.ram_free_bytes >= needed
        return
    assert any(AcceleratorKind.NVIDIA in b.accelerators for b in fitting)
    assert len(set(seat.gpu_uuids)) == len(seat.gpu_uuids) == (asked.spec.placement.gpus_per_replica or 1)
    free = {g.uuid: g.free_bytes for g in there.gpus}
    assert all(free[uuid] >= needed for uuid in seat.gpu_uuids)


@settings(deadline=None)
@given(requests, fleets(), st.data())
def test_host_that_is_chosen_alone_is_not_refused_in_company(
    asked: PlacementRequest, hosts: list[HostView], data: st.DataObject
) -> None:
    asked = asked.model_copy(update={"excluded_hosts": ()})
    alone = data.draw(st.sampled_from(hosts))
    if isinstance(answer(asked, alone), Decision):
        assert isinstance(answer(asked, *hosts), Decision)


# -- kinds of cards -------------------------------------------------------------------------------------------------

ALL_KINDS = EngineBuild(engine="llama_cpp", version="1", accelerators=tuple(AcceleratorKind))


def mixed(*cards: tuple[AcceleratorKind, int], part: bool = False) -> tuple[GpuView, ...]:
    return tuple(GpuView(f"gpu-{n}", free, 80 * GIB, kind, part) for n, (kind, free) in enumerate(cards))


def test_engine_gets_only_cards_that_it_can_use() -> None:
    cards = mixed((AcceleratorKind.AMD, 2 * GIB), (AcceleratorKind.NVIDIA, 3 * GIB))
    assert chosen(request(), host(gpus=(1,), engines=(BOTH,)), host("b", 0)).gpu_uuids == ()
    assert chosen(request(), replace(host(gpus=(1,)), gpus=cards)).gpu_uuids == ("gpu-1",)
    [reason] = refused(request(gpus_per_replica=1), replace(host(gpus=(1,)), gpus=cards[:1]))
    assert "can use the cards there" in reason


def test_cards_of_one_replica_are_of_one_kind() -> None:
    cards = mixed((AcceleratorKind.AMD, 2 * GIB), (AcceleratorKind.NVIDIA, 2 * GIB), (AcceleratorKind.NVIDIA, 3 * GIB))
    here = replace(host(), gpus=cards, engines=(ALL_KINDS,))
    assert chosen(request(gpus_per_replica=2), here).gpu_uuids == ("gpu-1", "gpu-2")
    assert len(refused(request(gpus_per_replica=3), here)) == 1


def test_parts_of_a_card_are_given_one_by_one_and_not_together() -> None:
    parts = mixed((AcceleratorKind.NVIDIA, 2 * GIB), (AcceleratorKind.NVIDIA, 2 * GIB), part=True)
    here = replace(host(gpus=(1,)), gpus=parts)
    assert chosen(request(gpus_per_replica=1), here).gpu_uuids == ("gpu-0",)
    assert len(refused(request(gpus_per_replica=2), here)) == 1


# -- containers ----------------------------------------------------------------------------------------------------

BOTH_RUNTIMES = ("process", "docker")
IMAGE = EngineBuild(engine="llama_cpp", version="", origin="image", image="engine:1")
NVIDIA_IMAGE = EngineBuild(
    engine="llama_cpp", version="", origin="image", image="engine:cuda", accelerators=(AcceleratorKind.NVIDIA,)
)


def test_deployment_that_wants_docker_goes_where_docker_is() -> None:
    without, with_docker = host("a"), host("b", runtimes=BOTH_RUNTIMES, engines=(IMAGE,))
    assert chosen(request(runtime="docker"), without, with_docker).host_id == "b"
    assert "has no Docker engine" in refused(request(runtime="docker"), without)[0]


def test_docker_without_an_image_is_of_no_use() -> None:
    docker = host(runtimes=BOTH_RUNTIMES)
    assert "spec.container.image" in refused(request(runtime="docker"), docker)[0]
    assert chosen(request(runtime="docker", image="own:1"), docker)
    assert chosen(request(), docker), "as a process"


def test_image_that_only_docker_could_run_is_none_without_docker() -> None:
    assert "cannot run" in refused(request(), host(engines=(IMAGE,)))[0]
    assert "cannot run" in refused(request(runtime="process"), host(engines=(IMAGE,), runtimes=BOTH_RUNTIMES))[0]
    assert chosen(request(), host(engines=(IMAGE,), runtimes=BOTH_RUNTIMES))


def test_version_is_not_asked_of_an_image() -> None:
    docker = host(engines=(IMAGE,), runtimes=BOTH_RUNTIMES)
    assert chosen(request(engine_version="another"), docker)
    assert "cannot run" in refused(request(engine_version="another"), host())[0]


def test_image_for_gpus_gets_gpus_and_a_deployments_own_only_when_it_asks() -> None:
    docker = host(gpus=(8 * GIB,), engines=(CPU_ONLY, NVIDIA_IMAGE), runtimes=BOTH_RUNTIMES)
    assert chosen(request(), docker).gpu_uuids
    assert not chosen(request(runtime="process"), docker).gpu_uuids
    assert not chosen(request(image="own:1"), docker).gpu_uuids
    assert chosen(request(image="own:1", gpus_per_replica=1), docker).gpu_uuids
