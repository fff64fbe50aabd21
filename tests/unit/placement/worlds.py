"""Any fleet and any request, and what may be placed at all, told by plain loops."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.decision import Decision, Seat
from fleet.placement.needs import Need, Needs
from fleet.placement.request import PlacementRequest
from fleet.placement.view import GpuView, HostView, Occupant
from fleet.sizing.sizing import GpuClass, Shape
from tests.unit.placement.fleets import GIB, request

NVIDIA, AMD, CPU = AcceleratorKind.NVIDIA, AcceleratorKind.AMD, AcceleratorKind.CPU
CLASSES = (
    GpuClass(kind=NVIDIA, name="NVIDIA GeForce RTX 4090", memory_bytes=24 * GIB, compute_capability="8.9"),
    GpuClass(kind=NVIDIA, name="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB, compute_capability="9.0"),
    GpuClass(kind=AMD, name="AMD Instinct MI300X", memory_bytes=192 * GIB, compute_capability="gfx942"),
)
BUILDS = (
    EngineBuild(engine="vllm", version="1", accelerators=(NVIDIA,)),
    EngineBuild(engine="vllm", version="2", accelerators=(CPU, NVIDIA, AMD)),
    EngineBuild(engine="vllm", version="", origin="image", image="vllm:rocm", accelerators=(AMD,)),
    EngineBuild(engine="llama_cpp", version="1", accelerators=(CPU, NVIDIA)),
)
SOFTWARE = [BUILDS[1:2], BUILDS[1:3], BUILDS[:2], BUILDS[:3], BUILDS[1:], BUILDS[2:]]
labels = st.dictionaries(st.sampled_from(["zone", "rack"]), st.sampled_from(["x", "y"]), max_size=2)
OTHERS = {"noisy": {"zone": "x"}, "quiet": {}}


@st.composite
def cards(draw: st.DrawFn, host_id: str) -> tuple[GpuView, ...]:
    made: list[GpuView] = []
    usual = draw(st.sampled_from(CLASSES))
    for n in range(draw(st.sampled_from([4, 2, 1, 5, 0]))):
        c = draw(st.sampled_from([usual, usual, usual, *CLASSES]))
        foreign = draw(st.sampled_from([0, 0, 0, c.memory_bytes // 4, c.memory_bytes * 3 // 4]))
        most = (c.memory_bytes - foreign) // GIB
        free = draw(st.sampled_from([most, most]) | st.integers(0, most)) * GIB
        part = draw(st.sampled_from([False] * 9 + [True]))
        gpu = GpuView(f"{host_id}-{n}", free, c.memory_bytes, c.kind, part, c.name)
        gpu = replace(gpu, compute_capability=c.compute_capability, foreign_bytes=foreign, index=n)
        made.append(replace(gpu, numa_node=draw(st.sampled_from([None, 0, 1]))))
    uuids = [g.uuid for g in made]
    if len(made) > 1 and draw(st.booleans()):
        pair = draw(st.permutations(range(len(made))))[:2]
        made[pair[0]] = replace(made[pair[0]], links=((uuids[pair[1]], 5),))
    return tuple(made)


@st.composite
def hosts(draw: st.DrawFn, host_id: str) -> HostView:
    ram = draw(st.integers(0, 64)) * GIB
    there = draw(st.lists(st.sampled_from(["chat", "noisy", "quiet"]), max_size=2))
    return HostView(
        host_id=host_id,
        name=host_id,
        generation=draw(st.integers(1, 3)),
        labels=draw(labels),
        ram_free_bytes=ram,
        ram_total_bytes=ram + draw(st.integers(0, 8)) * GIB,
        gpus=draw(cards(host_id)),
        engines=tuple(draw(st.sampled_from(SOFTWARE))),
        replicas_of_deployment=0,
        model=None,
        runtimes=draw(st.sampled_from([("process",), ("process", "docker")])),
        reserved_for=draw(st.sampled_from([{}, {}, {}, {}, {"zone": "x"}])),
        fabric_address=draw(st.sampled_from(["10.0.0.1", "10.0.0.2", ""])),
        ports_free=draw(st.sampled_from([1000, 1000, 2, 1, 0])),
        occupants=tuple(Occupant(f"{d}/{n}", d, leaving=draw(st.booleans())) for n, d in enumerate(there)),
        deployment_labels={d: OTHERS[d] for d in there if d in OTHERS},
    )


@st.composite
def fleets(draw: st.DrawFn, most: int = 5) -> list[HostView]:
    return [
        draw(hosts(f"h{number}"))
        for number in range(draw(st.sampled_from([n for n in (3, 4, 5, 1, 2, 12) if n <= most])))
    ]


shapes = st.sampled_from(
    [
        Shape(),
        Shape(tensor_parallel=2),
        Shape(tensor_parallel=4),
        Shape(pipeline_parallel=2, hosts=2),
        Shape(tensor_parallel=2, pipeline_parallel=2, hosts=2),
        Shape(pipeline_parallel=3, hosts=3),
    ]
)
on_cards = st.builds(
    Need,
    shape=shapes,
    gpu_bytes=st.integers(1, 30).map(lambda n: n * GIB),
    ram_bytes=st.sampled_from([0, GIB, 16 * GIB]),
    ports=st.sampled_from([1, 1, 2]),
)
needs = st.builds(
    Needs,
    by_class=st.dictionaries(
        st.sampled_from(CLASSES), st.lists(on_cards, min_size=1, max_size=3).map(tuple), max_size=3
    ),
    otherwise=st.just(()) | on_cards.map(lambda need: (need,)),
    cpu=st.sampled_from([(), (), (Need(ram_bytes=8 * GIB),)]),
    why_not=st.sampled_from([{}, {}, {CLASSES[2]: "its attention has no kernel for it"}]),
)


@st.composite
def requests(draw: st.DrawFn) -> PlacementRequest:
    rarely: dict[str, Any] = {
        "host_selector": labels,
        "avoid": st.just({"zone": "x"}),
        "vendors": st.sampled_from([["nvidia"], ["amd"]]),
        "gpu_types": st.sampled_from([["h100"], ["4090", "mi300"]]),
        "gpu_ids": st.lists(st.sampled_from([f"h{h}-{n}" for h in range(3) for n in range(5)]), min_size=1),
        "gpus_per_replica": st.sampled_from([0, 1, 2, 4]),
        "engine_version": st.sampled_from(["1", "2"]),
        "runtime": st.sampled_from(["process", "docker"]),
        "image": st.just("own:1"),
        "engine": st.just("llama_cpp"),
    }
    names = draw(st.lists(st.sampled_from(sorted(rarely)), max_size=draw(st.sampled_from([0, 0, 1, 2])), unique=True))
    more = {"engine": "vllm", "engine_version": "", **{name: draw(rarely[name]) for name in names}}
    return request(
        labels=draw(labels),
        strategy=draw(st.sampled_from(["auto", "spread", "binpack"])),
        spread_by=draw(st.sampled_from([None, "rack"])),
        multi_host=draw(st.sampled_from([True, True, False])),
        **more,
    )


# -- what may be placed, told anew -------------------------------------------------------------------------------------


def builds(asked: PlacementRequest, host: HostView) -> list[tuple[EngineBuild, bool]]:
    """That may run it on ``host``; and whether the image is the deployment's own."""
    spec = asked.spec
    if spec.container.image and spec.runtime != "process" and "docker" in host.runtimes:
        return [(EngineBuild(engine=spec.engine, version=""), True)]
    found = []
    for build in host.engines:
        runtime = "docker" if build.origin == "image" else "process"
        version = build.origin == "image" or spec.engine_version in ("", build.version)
        if build.engine == spec.engine and version and runtime in host.runtimes and spec.runtime in ("auto", runtime):
            found.append((build, False))
    return found


def suits(asked: PlacementRequest, host: HostView) -> bool:
    wish = asked.spec.placement
    present = {o.deployment for o in host.occupants if not o.leaving} - {asked.deployment}
    return (
        all(host.labels.get(k) == v for k, v in wish.host_selector.items())
        and all(asked.labels.get(k) == v for k, v in host.reserved_for.items())
        and bool(builds(asked, host))
        and not (wish.avoid and any(wish.avoid.items() <= OTHERS[d].items() for d in present))
    )


def may_use(asked: PlacementRequest, host: HostView, gpu: GpuView, need: Need) -> bool:
    wish = asked.spec.placement
    kinds = [gpu.kind in b.accelerators or (own and bool(wish.gpus_per_replica)) for b, own in builds(asked, host)]
    return (
        any(kinds)
        and (not wish.vendors or gpu.kind in wish.vendors)
        and (not wish.gpu_types or any(name in gpu.name.lower() for name in wish.gpu_types))
        and (not wish.gpu_ids or gpu.uuid in wish.gpu_ids)
        and not (gpu.part and need.shape.gpus > 1)
        and gpu.free_bytes >= need.gpu_bytes
    )


def has_room(host: HostView, need: Need) -> bool:
    return host.ram_free_bytes >= need.ram_bytes and host.ports_free >= need.ports


def ways(asked: PlacementRequest, needs: Needs, gpu_class: GpuClass) -> list[Need]:
    wish = asked.spec.placement
    return [
        need
        for need in needs.on(gpu_class)
        if wish.gpus_per_replica in (None, need.shape.gpus) and (wish.multi_host or need.shape.hosts == 1)
    ]


def takes_a_share(asked: PlacementRequest, host: HostView, gpu_class: GpuClass, need: Need) -> bool:
    fit = [g for g in host.gpus if g.gpu_class == gpu_class and may_use(asked, host, g, need)]
    alone = need.shape.hosts == 1 or bool(host.fabric_address)
    return suits(asked, host) and has_room(host, need) and alone and len(fit) >= need.shape.gpus_per_host


def possible(asked: PlacementRequest, needs: Needs, fleet: list[HostView]) -> bool:
    for gpu_class in CLASSES:
        for need in ways(asked, needs, gpu_class):
            able = [h for h in fleet if takes_a_share(asked, h, gpu_class, need)]
            alike = [{str(b) for b, _ in builds(asked, h)} for h in able]
            most = max((sum(one in others for others in alike) for one in set().union(*alike)), default=0)
            if most >= need.shape.hosts:
                return True
    in_ram = () if asked.spec.placement.gpus_per_replica else needs.cpu
    return any(suits(asked, h) and on_cpus(asked, h) and has_room(h, need) for need in in_ram for h in fleet)


def on_cpus(asked: PlacementRequest, host: HostView) -> bool:
    return any(CPU in build.accelerators for build, _ in builds(asked, host))


def is_right(asked: PlacementRequest, needs: Needs, fleet: list[HostView], decision: Decision) -> bool:
    there = {h.host_id: h for h in fleet}
    assert len(set(decision.hosts)) == len(decision.hosts) == decision.need.shape.hosts
    for seat in decision.seats:
        host = there[seat.host_id]
        assert seat.generation == host.generation
        assert suits(asked, host)
        assert has_room(host, decision.need)
        assert (seat.ram_bytes, seat.ports) == (decision.need.ram_bytes, decision.need.ports)
        if decision.gpu_class is None:
            assert decision.need in needs.cpu
            assert on_cpus(asked, host)
            assert not seat.gpu_uuids
        else:
            assert cards_are_right(asked, host, seat, decision.need, decision.gpu_class)
            assert decision.need in ways(asked, needs, decision.gpu_class)
    if decision.need.shape.hosts > 1:
        assert all(there[h].fabric_address for h in decision.hosts)
        assert set.intersection(*({str(b) for b, _ in builds(asked, there[h])} for h in decision.hosts))
    return True


def cards_are_right(asked: PlacementRequest, host: HostView, seat: Seat, need: Need, gpu_class: GpuClass) -> bool:
    cards = {g.uuid: g for g in host.gpus}
    chosen = [cards[uuid] for uuid in seat.gpu_uuids]
    return (
        len(set(seat.gpu_uuids)) == len(seat.gpu_uuids) == need.shape.gpus_per_host
        and {g.gpu_class for g in chosen} == {gpu_class}
        and seat.gpu_bytes == need.gpu_bytes
        and all(may_use(asked, host, g, need) for g in chosen)
    )
