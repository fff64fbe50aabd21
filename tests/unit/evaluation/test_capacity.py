"""How many replicas there is room for: counting must say what placing one after the other would."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.engines.spec import EngineSpec
from fleet.evaluation.capacity import Capacity, Tally
from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Need, Needs
from fleet.placement.place import replicas_that_fit
from fleet.placement.request import PlacementRequest
from fleet.placement.search import Search
from fleet.placement.view import GpuView, HostView
from fleet.sizing.sizing import GpuClass, Shape
from fleet.specs import PlacementSpec

GIB = 1 << 30
BUILD = EngineBuild(engine="vllm", version="1", accelerators=(AcceleratorKind.NVIDIA,))
CARD = GpuClass(kind=AcceleratorKind.NVIDIA, name="H100", memory_bytes=80 * GIB, compute_capability="9.0")


def host(name: str, free_gib: list[int], ram_gib: int = 512, ports: int = 100) -> HostView:
    cards = tuple(
        GpuView(
            uuid=f"{name}/{n}",
            free_bytes=free * GIB,
            total_bytes=80 * GIB,
            name="H100",
            compute_capability="9.0",
            index=n,
        )
        for n, free in enumerate(free_gib)
    )
    return HostView(
        host_id=name,
        name=name,
        generation=1,
        labels={},
        ram_free_bytes=ram_gib * GIB,
        ram_total_bytes=1024 * GIB,
        gpus=cards,
        engines=(BUILD,),
        replicas_of_deployment=0,
        model=None,
        fabric_address=name,
        ports_free=ports,
    )


def request(multi_host: bool = True) -> PlacementRequest:
    wish = PlacementSpec(multi_host=multi_host)
    spec = EngineSpec(engine="vllm", engine_version="1", model_path="m", served_name="m", placement=wish)
    return PlacementRequest(instance_id="evaluation/1-a", deployment="evaluation", fence=1, spec=spec)


def counted(hosts: list[HostView], need: Need) -> Capacity:
    search = Search(request(), Needs(by_class={CARD: (need,)}), Fleet.of(hosts))
    found = Tally(search).on_cards(CARD)
    return found[0].capacity if found else Capacity(0, 0)


def placed(hosts: list[HostView], need: Need) -> int:
    return replicas_that_fit(request(), Needs(by_class={CARD: (need,)}), Fleet.of(hosts))


def test_single_cards_hold_as_many_as_their_memory_and_the_hosts_ram() -> None:
    need = Need(Shape(), gpu_bytes=30 * GIB, ram_bytes=4 * GIB)
    assert counted([host("a", [80, 80, 29])], need) == Capacity(4, 6)
    assert counted([host("a", [80, 80, 80], ram_gib=13)], need).now == 3
    assert counted([host("a", [80, 80, 80], ports=2)], need).now == 2


def test_groups_of_cards_are_disjoint() -> None:
    need = Need(Shape(tensor_parallel=2), gpu_bytes=40 * GIB)
    assert counted([host("a", [80, 40, 40])], need) == Capacity(2, 3)
    assert counted([host("a", [80, 10, 10]), host("b", [80])], need).now == 0


def test_gangs_count_hosts_not_cards() -> None:
    need = Need(Shape(tensor_parallel=2, pipeline_parallel=2, hosts=2), gpu_bytes=70 * GIB)
    assert counted([host("a", [80] * 8), host("b", [80] * 2)], need) == Capacity(1, 1)
    assert counted([host("a", [80] * 8)], need).now == 0


def test_in_ram() -> None:
    need = Need(ram_bytes=100 * GIB)
    search = Search(request(), Needs(cpu=(need,)), Fleet.of([host("a", []), host("b", [], ram_gib=99)]))
    assert [c.capacity for c in Tally(search).in_ram()] == [Capacity(5, 20)]


def test_what_replicas_on_cards_take_of_ram_is_gone_for_others() -> None:
    needs = Needs(by_class={CARD: (Need(Shape(), 80 * GIB, 200 * GIB),)}, cpu=(Need(ram_bytes=100 * GIB),))
    tally = Tally(Search(request(), needs, Fleet.of([host("a", [80, 80])])))
    assert [c.capacity.now for c in tally.on_cards(CARD)] == [2]
    assert [c.capacity.now for c in tally.in_ram()] == [1]


fleets = st.lists(st.lists(st.integers(0, 80), max_size=5), min_size=1, max_size=4)
shapes = st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 3)])


@settings(max_examples=300, deadline=None)
@given(free=fleets, shape=shapes, gib=st.integers(5, 80), ram=st.integers(0, 40), ports=st.integers(1, 12))
def test_counting_is_never_less_than_placing(
    free: list[list[int]], shape: tuple[int, int], gib: int, ram: int, ports: int
) -> None:
    """Placing picks cards for their links, and may waste some; with one card for each host it cannot."""
    per_host, hosts = shape
    made = [host(f"h{n}", cards, ram_gib=64, ports=ports) for n, cards in enumerate(free)]
    way = Shape(tensor_parallel=per_host, pipeline_parallel=hosts, hosts=hosts)
    need = Need(way, gpu_bytes=gib * GIB, ram_bytes=ram * GIB)
    if per_host == hosts == 1:
        assert counted(made, need).now == placed(made, need)
    else:
        assert counted(made, need).now >= placed(made, need)


@settings(max_examples=200, deadline=None)
@given(free=st.lists(st.integers(0, 6), max_size=7), size=st.integers(1, 4))
def test_groups_are_as_many_as_can_be_made(free: list[int], size: int) -> None:
    """Taking the emptiest cards each time makes the most groups."""
    left, made = sorted(free, reverse=True), 0
    while len(left) >= size and left[size - 1] > 0:
        left = sorted([n - 1 for n in left[:size]] + left[size:], reverse=True)
        made += 1
    need = Need(Shape(tensor_parallel=size), gpu_bytes=10 * GIB)
    assert counted([host("a", [10 * n for n in free])], need).now == made
