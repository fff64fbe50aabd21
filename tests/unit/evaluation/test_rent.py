"""What rented machines would cost: arithmetic on list prices."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from fleet.catalog.machines import Machine, Price, machines
from fleet.evaluation.rent import rentals
from fleet.inventory import AcceleratorKind
from fleet.sizing.sizing import Shape, Sizing

GIB = 1 << 30


def sized(gib: float, tp: int = 1, hosts: int = 1, pp: int = 1, ram_gib: int = 0) -> Sizing:
    return Sizing(
        shape=Shape(tensor_parallel=tp, pipeline_parallel=pp, hosts=hosts),
        gpu_bytes=round(gib * GIB),
        ram_bytes=ram_gib * GIB,
        context=4096,
        sequences=8,
        batched_tokens=2048,
        kv_bytes=GIB,
        concurrency=8,
    )


def machine(gpus: int, amount: str | None, *, name: str = "m", ram_gib: float | None = 512) -> Machine:
    price = Price(amount=Decimal(amount), region="r1", date="2026-07-20") if amount else None
    return Machine(
        cloud="aws",
        instance_type=name,
        vendor=AcceleratorKind.NVIDIA,
        gpu="H100",
        gpus=gpus,
        listed_gib=80,
        ram_gib=ram_gib,
        on_demand=price,
    )


def test_several_replicas_share_a_machine_and_its_price() -> None:
    (found,) = rentals([machine(8, "55.04")], sized(30), replicas=3)
    assert found.replicas_per_machine == 16  # two on each of eight cards
    assert found.machines == 1
    assert found.price_per_replica is not None
    assert found.price_per_replica.amount == "3.4400"
    assert found.price_for_all is not None
    assert (found.price_for_all.amount, found.price_for_all.region, found.price_for_all.date) == (
        "55.0400",
        "r1",
        "2026-07-20",
    )


def test_a_machine_with_too_few_cards_or_too_little_ram_is_left_out() -> None:
    assert rentals([machine(1, "6.88")], sized(30, tp=2), 1) == ()
    assert rentals([machine(8, "55.04", ram_gib=64)], sized(30, ram_gib=65), 1) == ()
    assert rentals([machine(8, "55.04")], sized(81), 1) == ()


def test_a_replica_over_two_machines_pays_for_both() -> None:
    (found,) = rentals([machine(8, "50")], sized(70, tp=8, pp=2, hosts=2), replicas=1)
    assert (found.machines, found.replicas_per_machine) == (2, 1)
    assert found.price_per_replica is not None
    assert found.price_per_replica.amount == "100.0000"


def test_cheapest_first_and_without_price_last() -> None:
    offered = [machine(8, "55.04", name="big"), machine(1, None, name="free"), machine(1, "6.88", name="small")]
    assert [r.instance_type for r in rentals(offered, sized(60), 1)] == ["small", "big", "free"]
    assert [r.instance_type for r in rentals(offered, sized(60), 16)] == ["big", "small", "free"]  # 110.08 both


def test_a_spot_price_says_so() -> None:
    spot = next(m for m in machines() if m.instance_type == "gpu-mi350x1-288gb-spot")
    (found,) = rentals([spot], sized(100), 1)
    assert found.price_per_hour is not None
    assert found.price_per_hour.spot
    assert found.price_per_hour.amount == "2.4600"


@given(gib=st.floats(0.5, 300), tp=st.sampled_from([1, 2, 4, 8]), replicas=st.integers(0, 50))
def test_what_is_rented_holds_what_is_asked_for(gib: float, tp: int, replicas: int) -> None:
    sizing = sized(gib, tp)
    for found in rentals(machines(), sizing, replicas):
        rented = next(m for m in machines() if (m.cloud, m.instance_type) == (found.cloud, found.instance_type))
        assert found.machines * found.replicas_per_machine >= replicas
        per_card = found.replicas_per_machine / (rented.gpus // tp)
        assert per_card * sizing.gpu_bytes <= rented.memory_bytes
