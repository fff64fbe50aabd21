"""NVIDIA cards as the real client library sees them, on a driver library of our own."""

import pytest

from fleet.inventory import AcceleratorKind, DeviceIds, Gpu, Link, LinkType
from tests.unit.host.nvml import Nvml, card, instance
from worker_host.detect import machine

GiB = 1 << 30
MiB = 1 << 20


def test_cards_are_listed_with_what_they_are(nvml: Nvml) -> None:
    nvml.has(card(0), card(5, name="NVIDIA L40S", memory=46_068, cc="8 9"))
    assert nvml.detected() == (
        Gpu(
            uuid="GPU-0",
            kind=AcceleratorKind.NVIDIA,
            name="NVIDIA H200",
            memory_bytes=141 * GiB,
            index=0,
            compute_capability="9.0",
            driver_version="575.57.08",
            runtime_version="12.9",
            pci_address="0000:10:00.0",
            numa_node=0,
            device=DeviceIds(minor=0),
        ),
        Gpu(
            uuid="GPU-5",
            kind=AcceleratorKind.NVIDIA,
            name="NVIDIA L40S",
            memory_bytes=46_068 * MiB,
            index=1,
            compute_capability="8.9",
            driver_version="575.57.08",
            runtime_version="12.9",
            pci_address="0000:15:00.0",
            numa_node=1,
            device=DeviceIds(minor=5),
        ),
    )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"lost": "yes"}, "GPU is lost (NVML 15)"),
        ({"fail": "nvmlDeviceGetHandleByIndex_v2 999"}, "Unknown Error (NVML 999)"),
        ({"fail": "nvmlDeviceGetUUID 16"}, "(NVML 16)"),
    ],
)
def test_card_that_tells_nothing_is_unhealthy_and_hides_no_other(
    nvml: Nvml,
    fault: dict[str, str],
    reason: str,
) -> None:
    nvml.has(card(0), card(1, **fault), card(2))
    first, second, third = nvml.detected()
    assert (first.uuid, third.uuid, first.healthy, third.healthy) == ("GPU-0", "GPU-2", True, True)
    assert (second.healthy, second.index, second.memory_bytes) == (False, 1, 0)
    assert reason in second.reason
    assert machine.machine_id() in second.uuid, "a card of another host must not have the same name"


def test_card_that_fails_half_way_keeps_what_it_told(nvml: Nvml) -> None:
    nvml.has(card(0, fail="nvmlDeviceGetMemoryInfo 999"))
    [sick] = nvml.detected()
    assert (sick.uuid, sick.name, sick.healthy, sick.memory_bytes) == ("GPU-0", "NVIDIA H200", False, 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ecc": 12}, "12 uncorrectable ECC errors since the driver was loaded"),
        ({"ecc": 1}, "1 uncorrectable ECC error since the driver was loaded"),
        ({"rows": "3 1 0 1"}, "row remapping failed: the card must be replaced"),
        ({"retired": 61}, "61 retired memory pages: the card must be replaced"),
        ({"ecc": 2, "rows": "0 0 0 1"}, "2 uncorrectable ECC errors since the driver was loaded; row remapping failed"),
    ],
)
def test_card_that_answers_but_is_broken_is_unhealthy(
    nvml: Nvml,
    changes: dict[str, object],
    reason: str,
) -> None:
    nvml.has(card(0, **changes))
    [sick] = nvml.detected()
    assert (sick.healthy, sick.memory_bytes) == (False, 141 * GiB)
    assert sick.reason.startswith(reason)


@pytest.mark.parametrize("changes", [{"rows": "2 0 1 0"}, {"retired": 3}, {"ecc": None, "rows": None}])
def test_card_that_mends_itself_or_cannot_tell_is_healthy(
    nvml: Nvml,
    changes: dict[str, object],
) -> None:
    nvml.has(card(0, **changes))
    [well] = nvml.detected()
    assert (well.healthy, well.reason) == (True, "")


def test_card_of_an_old_driver_that_knows_little_is_listed(nvml: Nvml) -> None:
    silent = dict.fromkeys(("ecc", "rows", "temperature", "utilization", "power", "power_limit", "cc", "minor", "numa"))
    nvml.has(card(0, **silent), cuda=0)
    [gpu] = nvml.detected()
    assert (gpu.healthy, gpu.compute_capability, gpu.runtime_version, gpu.device) == (True, "", "", DeviceIds())


def test_card_that_is_cut_is_listed_with_its_instances_which_can_be_used_instead(nvml: Nvml) -> None:
    nvml.has(
        card(0),
        "\n".join(
            [
                card(1, mig="on", minor=7),
                instance("MIG-a", 9856, "1g.10gb"),
                instance("MIG-b", 40448, "3g.40gb"),
                instance("MIG-c", 20096, "", name="NVIDIA H100", slices="2 1"),
            ]
        ),
    )
    whole, parent, *parts = nvml.detected()
    assert (whole.partitioned, whole.memory_bytes) == (False, 141 * GiB)
    assert (parent.uuid, parent.partitioned, parent.memory_bytes) == ("GPU-1", True, 0)
    assert [(p.uuid, p.mig_profile, p.memory_bytes // MiB) for p in parts] == [
        ("MIG-a", "1g.10gb", 9856),
        ("MIG-b", "3g.40gb", 40448),
        ("MIG-c", "1c.2g.20gb", 20096),
    ]
    assert {(p.parent_uuid, p.index, p.pci_address, p.device) for p in parts} == {
        ("GPU-1", 1, parent.pci_address, DeviceIds(minor=7))
    }


def test_instances_of_a_sick_card_are_sick_and_one_that_fails_hides_no_other(nvml: Nvml) -> None:
    parts = [instance("MIG-a", 9856, "1g.10gb"), instance("MIG-b", 9856, "1g.10gb")]
    nvml.has("\n".join([card(0, mig="on", ecc=3), *parts]))
    assert [(g.healthy, "ECC" in g.reason) for g in nvml.detected()] == [(False, True)] * 3
    broken = instance("MIG-b", 9856, "1g.10gb", fail="nvmlDeviceGetMemoryInfo 999")
    nvml.has("\n".join([card(0, mig="on"), broken, parts[0]]))
    assert [(g.uuid, g.healthy) for g in nvml.detected()] == [("GPU-0", True), ("MIG-b", False), ("MIG-a", True)]


def test_links_are_nvlink_directly_or_over_switches_else_the_way_through_the_machine(nvml: Nvml) -> None:
    nvml.has(
        card(0, "links = 1 4", "ancestor = 2 10", "ancestor = 3 30"),
        card(1, "links = 0 4", "ancestor = 2 40", "ancestor = 3 50"),
        card(2, "ancestor = 0 20", "ancestor = 1 40", switch_links=18),
        card(3, "ancestor = 0 30", switch_links=12),
    )
    links = {gpu.uuid: gpu.links for gpu in nvml.detected()}
    assert links["GPU-0"] == (
        Link(peer="GPU-1", type=LinkType.NVLINK, count=4),
        Link(peer="GPU-2", type=LinkType.PIX),
        Link(peer="GPU-3", type=LinkType.PHB),
    )
    assert [link.type for link in links["GPU-1"]] == [LinkType.NVLINK, LinkType.NODE, LinkType.SYS]
    assert links["GPU-2"][2] == Link(peer="GPU-3", type=LinkType.NVLINK, count=12)
    assert [link.peer for link in links["GPU-3"]] == ["GPU-0", "GPU-2"], "what the driver does not say is left out"


def test_card_without_memory_of_its_own_uses_a_part_of_the_ram(nvml: Nvml) -> None:
    nvml.has(card(0, name="NVIDIA GB10", no_memory="yes"))
    [gpu] = nvml.detected()
    assert gpu.unified
    assert 0 < gpu.memory_bytes < machine.ram_bytes()


def test_driver_that_cannot_be_let_go_hides_nothing(nvml: Nvml) -> None:
    nvml.has(card(0), shutdown=999)
    assert len(nvml.detected()) == 1


def test_machine_without_cards_has_none_and_a_driver_that_is_not_loaded_is_noted(nvml: Nvml) -> None:
    nvml.has()
    assert nvml.detected() == ()
    nvml.has(card(0), init=9)
    code = "from worker_host.detect.inventory import *; l = Cards(all_vendors()).look(9); print(l.cards, l.notes)"
    assert nvml.run(code).startswith("() ('nvidia: NVML: Driver Not Loaded (NVML 9)',)")
    nvml.has(card(0), count=999)
    assert "how many cards there are" in nvml.run(code)


def test_machine_without_the_library_has_neither_cards_nor_notes() -> None:
    from worker_host.detect.nvidia import Nvidia

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pynvml.nvmlInit", _no_library)
        look = Nvidia().look()
    assert (look.cards, look.notes) == ((), ())


def _no_library() -> None:
    import pynvml

    raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
