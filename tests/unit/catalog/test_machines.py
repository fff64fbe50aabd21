"""The catalog of rentable machines: every row is sane, and every card in it is known."""

from collections import Counter
from datetime import date
from decimal import Decimal

import pytest

from fleet.catalog.gpu_models import gpu_model, gpu_models, similar
from fleet.catalog.machines import Machine, Price, machines
from fleet.inventory import AcceleratorKind


def test_all_machines_are_there_once() -> None:
    assert Counter(m.cloud for m in machines()) == {"aws": 65, "alibaba": 53, "digitalocean": 14}
    twice = [key for key, n in Counter((m.cloud, m.instance_type) for m in machines()).items() if n > 1]
    assert twice == []


@pytest.mark.parametrize("machine", machines(), ids=lambda m: f"{m.cloud}-{m.instance_type}")
def test_every_machine_is_sane(machine: Machine) -> None:
    assert machine.gpu in gpu_models()
    assert machine.vendor is machine.model.vendor
    assert machine.gpus in (1, 2, 4, 8)
    # What the driver shows is at most what is listed (clouds mix GB and GiB), and not much less.
    listed = machine.listed_gib * (1 << 30)
    assert 0.85 * listed < machine.memory_bytes <= 1.01 * listed
    assert machine.vcpu is None or 2 <= machine.vcpu <= 192
    assert machine.ram_gib is None or 4 <= machine.ram_gib <= 4096
    for price in filter(None, (machine.on_demand, machine.spot)):
        _sane(price, machine)


def _sane(price: Price, machine: Machine) -> None:
    assert Decimal("0.05") < price.amount / machine.gpus < 25
    assert price.lowest is None or price.lowest <= price.amount
    assert price.currency == "USD"
    assert price.region
    day = date.fromisoformat(price.date if len(price.date) == 10 else f"{price.date}-01")
    assert date(2025, 1, 1) <= day <= date(2026, 12, 31)


def test_spot_costs_less_than_on_demand() -> None:
    both = [(m.on_demand, m.spot) for m in machines() if m.on_demand and m.spot]
    assert len(both) >= 5
    assert all(spot.amount <= on_demand.amount for on_demand, spot in both)


def test_a_known_row_is_as_listed() -> None:
    found = next(m for m in machines() if m.instance_type == "p5.48xlarge")
    assert (found.gpu, found.gpus, found.vcpu, found.ram_gib) == ("H100", 8, 192, 2048)
    assert found.on_demand == Price(amount=Decimal("55.04"), region="us-east-1", date="2026-07-20")
    assert found.gpu_class.compute_capability == "9.0"
    assert found.gpu_class.memory_bytes == 81_559 << 20


def test_a_share_of_a_card_has_its_own_memory() -> None:
    share = next(m for m in machines() if m.instance_type == "g6f.xlarge")
    assert share.fraction
    assert share.gpus == 1
    assert share.gpu_class.memory_bytes == round(2.79 * (1 << 30))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("h100", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("nvidia geforce rtx 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("AMD Instinct MI300X", "MI300X"),
        ("A100", "A100-80GB"),
    ],
)
def test_cards_are_found_by_what_people_and_drivers_call_them(asked: str, name: str) -> None:
    found = gpu_model(asked)
    assert found is not None
    assert found.name == name


def test_a_name_that_nobody_knows_is_nothing_but_a_near_one_is_suggested() -> None:
    assert gpu_model("H1000X") is None
    assert "H100" in similar("H1000X")
    assert gpu_model("") is None


def test_no_two_cards_share_a_name() -> None:
    for model in gpu_models().values():
        for name in (model.name, model.reported_as, *model.aliases):
            assert gpu_model(name) == model


def test_compute_capabilities_are_as_hosts_report_them() -> None:
    for model in gpu_models().values():
        if model.vendor is AcceleratorKind.NVIDIA:
            major, minor = model.compute_capability.split(".")
            assert (7, 0) <= (int(major), int(minor)) <= (12, 1)
        elif model.vendor is AcceleratorKind.AMD:
            assert model.compute_capability.startswith("gfx")
