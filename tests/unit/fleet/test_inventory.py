"""When is an inventory another one?"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.inventory import AcceleratorKind, EngineBuild, Gpu, Inventory, Link, LinkType


def gpu(uuid: str, **changes: Any) -> Gpu:
    facts = {"uuid": uuid, "kind": AcceleratorKind.NVIDIA, "name": "t", "memory_bytes": 100, "index": 0}
    return Gpu.model_validate(facts | changes)


INVENTORY = Inventory(
    hostname="box",
    machine_id="m",
    boot_id="b",
    os="linux",
    arch="x86_64",
    cpu_count=2,
    ram_bytes=200,
    ram_allocatable_bytes=100,
    disk_bytes=10,
    disk_free_bytes=5,
    gpus=(gpu("g1"), gpu("g2", index=1)),
)


def changed(**changes: Any) -> Inventory:
    return INVENTORY.model_copy(update=changes)


def test_fingerprint_is_the_same_after_a_journey_and_in_any_order_of_cards() -> None:
    assert Inventory.model_validate_json(INVENTORY.model_dump_json()).fingerprint() == INVENTORY.fingerprint()
    assert changed(gpus=INVENTORY.gpus[::-1]).fingerprint() == INVENTORY.fingerprint()


@pytest.mark.parametrize(
    "what_each_status_says",
    [
        {"disk_free_bytes": 1},
        {"boot_id": "c"},
        {"notes": ("npu-smi did not answer",)},
        {"gpus": (gpu("g1", healthy=False, reason="ECC"), gpu("g2", index=1))},
    ],
)
def test_host_need_not_register_anew_for_what_each_status_says(what_each_status_says: dict[str, Any]) -> None:
    assert changed(**what_each_status_says).fingerprint() == INVENTORY.fingerprint()


@pytest.mark.parametrize(
    "news",
    [
        {"ram_allocatable_bytes": 99},
        {"cpu_count": 3},
        {"labels": {"a": "b"}},
        {"engines": (EngineBuild(engine="vllm", version="1"),)},
        {"vram_reserved_bytes": 1},
        {"port_range": (20000, 20001)},
        {"fabric_address": "10.0.0.1"},
        {"gpus": ()},
        {"gpus": (gpu("g1"), gpu("g3", index=1))},
        {"gpus": (gpu("g1", memory_bytes=99), gpu("g2", index=1))},
        {"gpus": (gpu("g1", driver_version="2"), gpu("g2", index=1))},
        {"gpus": (gpu("g1", index=1), gpu("g2"))},
        {"gpus": (gpu("g1", links=(Link(peer="g2", type=LinkType.NVLINK),)), gpu("g2", index=1))},
    ],
    ids=",".join,
)
def test_host_registers_anew_for_whatever_else_changes(news: dict[str, Any]) -> None:
    assert changed(**news).fingerprint() != INVENTORY.fingerprint()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"gpus": INVENTORY.gpus[::-1]}, True),
        ({"gpus": (gpu("g1", driver_version="2", index=3), gpu("g2"))}, True),
        ({"labels": {"a": "b"}}, True),
        ({"ram_allocatable_bytes": 99}, False),
        ({"gpus": (gpu("g1"),)}, False),
        ({"gpus": (gpu("g1", memory_bytes=99), gpu("g2"))}, False),
        ({"gpus": (gpu("g1", healthy=False), gpu("g2"))}, False),
        ({"gpus": (gpu("g1", partitioned=True), gpu("g2"))}, False),
    ],
)
def test_claims_mean_the_same_memory_only_on_the_same_hardware(changes: dict[str, Any], same: bool) -> None:
    assert changed(**changes).same_hardware(INVENTORY) is same
    assert INVENTORY.same_hardware(changed(**changes)) is same


@given(st.permutations([gpu(f"g{n}", memory_bytes=n % 3) for n in range(5)]))
def test_order_in_which_a_driver_lists_cards_does_not_matter(gpus: list[Gpu]) -> None:
    one, other = changed(gpus=tuple(gpus)), changed(gpus=tuple(sorted(gpus, key=lambda g: g.uuid)))
    assert one.same_hardware(other)
    assert one.fingerprint() == other.fingerprint()
