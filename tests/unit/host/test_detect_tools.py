"""Cards of vendors that are asked through their command line tools, which here are scripts that print samples."""

import contextlib
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.inventory import AcceleratorKind, DeviceIds, Gpu, Link, LinkType
from fleet.settings import Settings
from worker_host.detect import amd, apple, cambricon, hygon, kfd, machine, mthreads, pci, tools
from worker_host.detect.amd import Amd
from worker_host.detect.apple import Apple
from worker_host.detect.ascend import Ascend
from worker_host.detect.cambricon import Cambricon
from worker_host.detect.card import CannotLook, Card, GpuProcess, Vendor
from worker_host.detect.cards import Cards
from worker_host.detect.hygon import Hygon
from worker_host.detect.iluvatar import Iluvatar
from worker_host.detect.inventory import inventory_of
from worker_host.detect.metax import MetaX
from worker_host.detect.mthreads import MooreThreads
from worker_host.detect.vendors import all_vendors

SAMPLES = Path(__file__).with_name("samples")
GiB, MiB = 1 << 30, 1 << 20


class Tools:
    """The only folder on the PATH besides that of the shell's own programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = folder / "asked"

    def add(self, name: str, answers: Mapping[str, str] | str, then: str = "") -> None:
        """``answers``: by the beginning of the arguments, a file of the samples or a text; ``then``: shell commands."""
        by_arguments = {"": answers} if isinstance(answers, str) else answers
        lines = ["#!/bin/sh", f'echo "{name} $*" >>{self.asked}', 'case "$*" in']
        for number, (arguments, answer) in enumerate(by_arguments.items()):
            sample = SAMPLES / answer
            text = self.folder / f"{name}.{number}"
            text.write_text(sample.read_text() if len(answer) < 99 and sample.is_file() else answer)
            lines.append(f'"{arguments}"*) cat {text};;')
        script = self.folder / name
        script.write_text("\n".join([*lines, "esac", then, ""]))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    def calls(self) -> list[str]:
        return self.asked.read_text().splitlines() if self.asked.exists() else []


@pytest.fixture
def bin_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Tools(folder)


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine really has does not count."""
    monkeypatch.setattr(pci, "_DEVICES", tmp_path / "pci")
    monkeypatch.setattr(kfd, "_NODES", tmp_path / "kfd")
    monkeypatch.setattr(amd, "_ROCM_VERSION", tmp_path / "rocm-version")
    monkeypatch.setattr(hygon, "_VERSIONS", str(tmp_path / "dtk*" / "version"))
    monkeypatch.setattr(mthreads, "_MUSA", tmp_path / "musa.json")
    monkeypatch.setattr(cambricon, "_NEUWARE", tmp_path / "neuware.txt")
    monkeypatch.setattr("worker_host.detect.ascend._CANN", (str(tmp_path / "cann.cfg"),))
    for module in ("amd", "hygon", "ascend", "cambricon", "metax"):
        monkeypatch.setattr(f"worker_host.detect.{module}._FOLDERS", ())
    monkeypatch.setattr("worker_host.detect.iluvatar._CORES", str(tmp_path / "corex*"))


def on_bus(tmp_path: Path, address: str, numa: int, card: int, render: int) -> None:
    device = tmp_path / "pci" / address
    (device / "drm" / f"card{card}").mkdir(parents=True)
    (device / "drm" / f"renderD{render}").mkdir()
    (device / "numa_node").write_text(f"{numa}\n")


def seen(vendor: Vendor) -> list[Card]:
    cards = list(vendor.look().cards)
    again = list(vendor.look(tuple(card.gpu for card in cards)).cards)
    assert again == cards, "a second look that asks less sees the same"
    return cards


def facts(card: Card) -> tuple[str, str, int, int, str]:
    return card.gpu.uuid, card.gpu.name, card.gpu.memory_bytes // MiB, card.gpu.index, card.gpu.reason


def figures(card: Card) -> tuple[float | None, ...]:
    s = card.status
    used = None if s.memory_used_bytes is None else s.memory_used_bytes // MiB
    return used, s.utilization, s.temperature_c, s.power_w, s.power_limit_w


def placed(kind: str, place: str) -> str:
    return f"{kind}-{machine.machine_id()}-{place}"


# -- AMD ------------------------------------------------------------------------------------------------------------

AMD_SMI = {what: f"amd_{what}.json" for what in ("static", "metric", "list", "process", "topology")}


def test_amd_cards_are_told_by_amd_smi(bin_: Tools, tmp_path: Path) -> None:
    bin_.add("amd-smi", AMD_SMI)
    on_bus(tmp_path, "0000:0c:00.0", 0, 9, 136)
    (tmp_path / "rocm-version").write_text("7.0.2-56\n")
    first, second, third = seen(Amd())
    assert first.gpu == Gpu(
        uuid="GPU-1f2e3d4c5b6a7988",
        kind=AcceleratorKind.AMD,
        name="AMD Instinct MI300X",
        memory_bytes=196_592 * MiB,
        index=0,
        compute_capability="gfx942",
        driver_version="6.12.12",
        runtime_version="7.0.2",
        pci_address="0000:0c:00.0",
        numa_node=0,
        device=DeviceIds(card=9, render=136),
        links=(Link(peer=second.gpu.uuid, type=LinkType.NVLINK),),
    )
    assert figures(first) == (120_000, 0.64, 61.0, 412.0, 750.0)
    assert first.processes == (GpuProcess(4711, 125_510_352_896, "python3"), GpuProcess(4712, None, ""))
    assert facts(second) == (
        "8cff74a1-0000-1000-8022-334455667788",
        "AMD Instinct MI300X OAM",
        196_592,
        1,
        "2 uncorrectable ECC errors since the driver was loaded",
    )
    assert (second.status.healthy, second.status.ecc_errors, second.processes) == (False, 2, ())
    assert figures(second) == (284, None, 44.0, 140.0, 760.0)
    assert second.gpu.links == (Link(peer=first.gpu.uuid, type=LinkType.SYS),)
    assert facts(third) == (
        placed("amd", "0000:38:00.0"),
        "AMD Instinct MI300X",
        196_592,
        2,
        "its driver says nothing of it",
    )
    assert third.processes is None


def test_amd_cards_are_asked_only_for_what_changes_once_they_are_known(bin_: Tools) -> None:
    bin_.add("amd-smi", AMD_SMI)
    vendor = Amd()
    cards = vendor.look().cards
    before = len(bin_.calls())
    vendor.look(tuple(card.gpu for card in cards))
    assert bin_.calls()[before:] == ["amd-smi metric --json", "amd-smi process --json"]


def test_amd_cards_are_told_by_rocm_smi_whatever_release_it_is(bin_: Tools, tmp_path: Path) -> None:
    bin_.add("rocm-smi", "rocm_smi.json")
    on_bus(tmp_path, "0000:03:00.0", 1, 1, 128)
    first, second = seen(Amd())
    assert facts(first) == ("GPU-5c88007d76036fff", "Navi 31 [Radeon RX 7900 XTX]", 24_560, 0, "")
    assert figures(first) == (11_077, 0.17, 51.0, 53.0, None)
    assert (first.gpu.compute_capability, first.gpu.driver_version) == ("gfx1100", "6.10.5")
    assert (first.gpu.numa_node, first.gpu.device) == (1, DeviceIds(card=1, render=128))
    assert facts(second) == (placed("amd", "0000:0a:00.0"), "Phoenix3", 512, 2, "")
    assert figures(second) == (100, None, None, 7.222, None)
    assert first.processes is None


def test_amd_smi_that_fails_is_replaced_by_the_older_tool(bin_: Tools) -> None:
    bin_.add("amd-smi", "Traceback (most recent call last):\n  KeyError: 'libamd_smi.so'\n", then="exit 1")
    with pytest.raises(CannotLook, match=r"amd-smi metric said no JSON: KeyError: 'libamd_smi\.so'"):
        Amd().look()
    bin_.add("rocm-smi", "rocm_smi.json")
    look = Amd().look()
    assert len(look.cards) == 2
    assert look.notes == ("amd: amd-smi metric said no JSON: KeyError: 'libamd_smi.so'; rocm-smi is asked instead",)


def test_error_with_exit_code_0_is_no_card(bin_: Tools) -> None:
    bin_.add("rocm-smi", "ERROR:root:Driver not initialized (amdgpu not found in modules)\n")
    with pytest.raises(CannotLook, match="Driver not initialized"):
        Amd().look()


def test_architecture_is_that_of_the_compute_driver(tmp_path: Path) -> None:
    for number, (version, place) in enumerate(((0, 0), (90_402, 0x0C00), (90_010, 0x2208), (110_001, 0x0300))):
        folder = tmp_path / "kfd" / str(number)
        folder.mkdir(parents=True)
        (folder / "properties").write_text(
            f"simd_count 4\ngfx_target_version {version}\nlocation_id {place}\ndomain 0\n"
        )
    assert kfd.architectures() == {
        "0000:0c:00.0": "gfx942",
        "0000:22:01.0": "gfx90a",
        "0000:03:00.0": "gfx1101",
    }


# -- Hygon ----------------------------------------------------------------------------------------------------------


def test_hygon_cards_are_told_by_hy_smi(bin_: Tools, tmp_path: Path) -> None:
    bin_.add("hy-smi", "hy_smi.json")
    on_bus(tmp_path, "0000:07:00.0", 0, 1, 128)
    (tmp_path / "dtk-24.04").mkdir()
    (tmp_path / "dtk-24.04" / "version").write_text("24.04.3\n")
    first, second = seen(Hygon())
    assert facts(first) == ("GPU-7100f95cee8230a1", "K100_AI", 65_520, 0, "")
    assert (first.gpu.kind, first.gpu.runtime_version) == (AcceleratorKind.HYGON, "24.04.3")
    assert figures(first) == (20_413, 0.125, 60.0, 104.0, 400.0)
    assert first.gpu.device == DeviceIds(card=1, render=128)
    assert facts(second)[0] == "GPU-715322fd7cac41b1"


def test_hygon_cards_that_rocm_smi_names_are_not_amds(bin_: Tools) -> None:
    bin_.add("rocm-smi", "hygon_rocm_smi.json")
    assert Amd().look().cards == ()
    [card] = seen(Hygon())
    assert facts(card) == ("GPU-7100fa8866904061", "DCU Z100L", 32_752, 0, "")
    assert figures(card) == (2, 0.05, 39.0, 80.0, None)
    bin_.add("rocm-smi", "rocm_smi.json")
    assert Hygon().look().cards == ()


# -- Ascend ---------------------------------------------------------------------------------------------------------


def test_ascend_chips_are_told_with_their_place_on_the_machine(bin_: Tools, tmp_path: Path) -> None:
    answers = {"info -m": "npu_smi_910b_map.txt", "info -t board -i 0": "npu_smi_board.txt", "info": "npu_smi_910b.txt"}
    bin_.add("npu-smi", answers)
    on_bus(tmp_path, "0000:c1:00.0", 6, 0, 128)
    (tmp_path / "cann.cfg").write_text("runtime_running_version=[8.0.0.1:8.5.0]\n")
    first, second, third = seen(Ascend())
    assert first.gpu == Gpu(
        uuid="NPU-E0F4EE64-802061B1-6A691492-89528485-104301AA",
        kind=AcceleratorKind.ASCEND,
        name="Ascend 910B2",
        memory_bytes=64 * GiB,
        index=0,
        compute_capability="910B2",
        driver_version="25.2.0",
        runtime_version="8.5.0",
        pci_address="0000:c1:00.0",
        numa_node=6,
        device=DeviceIds(physical_id=0),
    )
    assert figures(first) == (43_432, 0.37, 47.0, 101.3, None)
    assert first.processes == (GpuProcess(37_656, 40_119 * MiB, "VLLMEngineCore"),)
    assert (second.gpu.reason, second.gpu.index, second.processes) == ("npu-smi: its health is Alarm", 1, ())
    assert (third.gpu.index, third.gpu.device.physical_id) == (2, 3), (
        "by which engines count is not the device's number"
    )
    assert third.gpu.reason == "npu-smi does not say how much memory it has"


def test_each_chip_of_an_ascend_card_is_one(bin_: Tools) -> None:
    bin_.add("npu-smi", {"info -m": "nonsense", "info -t": "nonsense", "info": "npu_smi_910c.txt"})
    first, second = seen(Ascend())
    assert facts(first) == (placed("ascend", "0000:9d:00.0"), "Ascend 910", 65_536, 0, "")
    assert (first.gpu.device.physical_id, second.gpu.device.physical_id) == (8, 9)
    assert (second.gpu.index, figures(second)[0]) == (1, 15_242)
    assert second.processes == (GpuProcess(692_318, 12_417 * MiB, "python3"),)


def test_ascend_cards_of_old_are_told(bin_: Tools) -> None:
    bin_.add("npu-smi", {"info -m": "npu_smi_310_map.txt", "info -t": "error", "info": "npu_smi_310.txt"})
    first, second = seen(Ascend())
    assert facts(first) == (placed("ascend", "0000:89:00.0"), "Ascend 310", 8192, 0, "")
    assert (second.gpu.index, second.gpu.device.physical_id) == (1, 4)
    assert figures(second) == (2867, 0.09, 74.0, 12.8, None)


def test_npu_smi_without_a_chip_is_noted(bin_: Tools) -> None:
    bin_.add(
        "npu-smi", "DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)\ndcmi module initialize failed. ret is -8005\n"
    )
    with pytest.raises(CannotLook, match="dcmi module initialize failed"):
        Ascend().look()


# -- Moore Threads --------------------------------------------------------------------------------------------------


def test_moore_threads_cards_are_told(bin_: Tools, tmp_path: Path) -> None:
    bin_.add("mthreads-gmi", {"-q --json": "mthreads.json", "": "mthreads.txt"})
    (tmp_path / "musa.json").write_text('{"MUSA_SDK": {"version": "4.3.1"}}')
    first, second = seen(MooreThreads())
    assert facts(first) == ("399282a8-ba01-1475-893c-2eeca9e30aaa", "MTT S5000", 81_920, 0, "")
    assert figures(first) == (66_641, 0.93, 52.0, 396.66, 950.0)
    assert first.processes == (GpuProcess(1123, 60_000 * MiB, "/usr/bin/python3 -m serve"),)
    assert (first.gpu.driver_version, first.gpu.runtime_version) == ("3.3.5-server", "4.3.1")
    assert facts(second)[0] == placed("mthreads", "0000:3a:00.0")
    assert (figures(second), second.processes) == ((0, 0.0, None, None, None), ())


def test_moore_threads_cards_are_told_by_the_table_of_older_releases(bin_: Tools) -> None:
    bin_.add("mthreads-gmi", {"-q": "unknown option --json", "": "mthreads.txt"})
    first, second = seen(MooreThreads())
    assert facts(first) == (placed("mthreads", "0000:2a:00.0"), "MTT S5000", 81_920, 0, "")
    assert figures(first) == (66_641, 0.93, 52.0, None, None)
    assert facts(second)[1:4] == ("MTT S5000", 81_920, 1)
    assert MooreThreads().look().notes != ()


# -- Iluvatar -------------------------------------------------------------------------------------------------------

IX_TITLES = "index, name, memory.total [MiB], memory.used [MiB], utilization.gpu [%], temperature.gpu"


def test_iluvatar_cards_are_told(bin_: Tools) -> None:
    titles = f"{IX_TITLES}, uuid, pci.bus_id, driver_version, gpu.power.draw [W], gpu.power.limit [W]"
    row = "Iluvatar BI-V150, 32768 MiB, 27780 MiB, 93 %, 44 C, GPU-1ac807aa-cbcd, 00000000:0C:00.0, 4.3.0, 137 W, 350 W"
    bin_.add("ixsmi", f"{titles}\n0, {row}\n1, Iluvatar BI-V150, [N/A], [N/A], [N/A], [N/A], , , , , \n")
    first, second = seen(Iluvatar())
    assert facts(first) == ("GPU-1ac807aa-cbcd", "Iluvatar BI-V150", 32_768, 0, "")
    assert figures(first) == (27_780, 0.93, 44.0, 137.0, 350.0)
    assert (first.gpu.pci_address, first.gpu.device) == ("0000:0c:00.0", DeviceIds(minor=0))
    assert facts(second) == (
        placed("iluvatar", "1"),
        "Iluvatar BI-V150",
        0,
        1,
        "ixsmi does not say how much memory it has",
    )


def test_iluvatar_tool_that_knows_fewer_fields_is_asked_for_fewer(bin_: Tools) -> None:
    short = "index,name,memory.total,memory.used,utilization.gpu,temperature.gpu"
    refuses = 'Field "uuid" is not a valid field to query.\n'
    bin_.add(
        "ixsmi",
        {f"--query-gpu={short} ": f"{IX_TITLES}\n0, Iluvatar MR-V50, 16384 MiB, 116 MiB, 0 %, 30 C\n", "": refuses},
    )
    [card] = seen(Iluvatar())
    assert facts(card) == (placed("iluvatar", "0"), "Iluvatar MR-V50", 16_384, 0, "")
    assert figures(card) == (116, 0.0, 30.0, None, None)


def test_iluvatar_tool_is_found_where_its_newest_release_is_and_given_its_libraries(
    bin_: Tools, tmp_path: Path
) -> None:
    for version in ("4.3.0", "4.10.1"):
        home = tmp_path / f"corex-{version}"
        (home / "bin").mkdir(parents=True)
        script = home / "bin" / "ixsmi"
        script.write_text('#!/bin/sh\necho "0, $LD_LIBRARY_PATH, 1024 MiB, 0 MiB, 0 %, 30 C, u, , , 1, 1"\n')
        script.chmod(0o755)
    [card] = seen(Iluvatar())
    assert card.gpu.name.split(":")[0] == str(tmp_path / "corex-4.10.1" / "lib")
    assert card.gpu.runtime_version == "4.10.1"


# -- Cambricon ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chatty", [True, False])
def test_cambricon_cards_are_told_by_the_file_that_cnmon_writes(bin_: Tools, tmp_path: Path, chatty: bool) -> None:
    bin_.add("cnmon", "done" if chatty else "", then=f"cat {SAMPLES / 'cnmon_info.json'} >cnmon_info.json")
    (tmp_path / "neuware.txt").write_text("Neuware Version 3.7.2\n")
    first, second = seen(Cambricon())
    assert facts(first) == ("00000000-0000-0000-0000-7a1b00000001", "MLU370-X8", 24_576, 0, "")
    assert figures(first) == (1180, 0.07, 36.0, 41.0, 150.0)
    assert (first.gpu.driver_version, first.gpu.runtime_version) == ("v5.10.22", "3.7.2")
    assert (first.gpu.pci_address, first.gpu.device) == ("0000:1a:00.0", DeviceIds(minor=0))
    assert facts(second)[0] == placed("cambricon", "0000:1b:00.0")
    assert second.gpu.reason == "cnmon: its health is Warning: lost"
    assert not Path("cnmon_info.json").exists()


# -- MetaX ----------------------------------------------------------------------------------------------------------


def test_metax_cards_are_told_and_one_that_is_only_in_the_list_too(bin_: Tools, tmp_path: Path) -> None:
    bin_.add("mx-smi", {"-L": "mx_smi_list.txt", "": "mx_smi.txt"})
    on_bus(tmp_path, "0000:0e:00.0", 0, 1, 128)
    first, second, third = seen(MetaX())
    assert facts(first) == ("GPU-3fd4ee8f-169c-6d31-f9dc-c2a90a440aaa", "MetaX C500", 65_536, 0, "")
    assert figures(first) == (59_963, 0.88, 36.0, 71.0, 350.0)
    assert first.processes == (GpuProcess(1234, 59_000 * MiB, "python3.10"),)
    assert (first.gpu.driver_version, first.gpu.runtime_version) == ("3.6.11", "3.5.3.18")
    assert first.gpu.device == DeviceIds(card=1, render=128)
    assert (second.gpu.reason, second.processes) == ("mx-smi: Unavailable", ())
    assert (third.gpu.uuid, third.gpu.healthy) == (placed("metax", "0000:10:00.0"), False)
    assert "Not Available(MetaX Sysfs File Unaccessible)" in third.gpu.reason


def test_metax_table_of_older_releases_is_read(bin_: Tools) -> None:
    bin_.add("mx-smi", {"-L": "", "": "mx_smi_old.txt"})
    card = MetaX().look().cards[0]
    assert facts(card) == (placed("metax", "0000:2a:00.0"), "MXC550", 65_536, 0, "")
    assert (figures(card), card.processes) == ((810, 0.03, 31.0, 44.0, None), None)


# -- Apple ----------------------------------------------------------------------------------------------------------


def test_apple_gpu_has_a_part_of_the_ram_which_is_not_given_twice(
    bin_: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "ram_bytes", lambda: 64 * GiB)
    bin_.add("system_profiler", "apple.json")
    bin_.add("sysctl", "0\n")
    [card] = seen(Apple())
    assert facts(card) == (placed("apple", "0"), "Apple M3 Max (40 cores)", 48 << 10, 0, "")
    assert (card.gpu.unified, card.gpu.compute_capability) == (True, "metal3")
    keeps = Settings(home=tmp_path, host_reserved_ram_bytes=4 * GiB)
    assert inventory_of(keeps, "mac", Apple().look()).ram_allocatable_bytes == 12 * GiB
    bin_.add("sysctl", "57344\n")
    assert Apple().look().cards[0].gpu.memory_bytes == 56 * GiB


@pytest.mark.parametrize("vendor", ["sppci_vendor_amd", "Intel"])
def test_gpu_of_a_mac_that_is_not_apples_is_left_out(bin_: Tools, vendor: str) -> None:
    bin_.add(
        "system_profiler",
        f'{{"SPDisplaysDataType": [{{"sppci_model": "Pro 5500M", "spdisplays_vendor": "{vendor}"}}]}}',
    )
    assert apple.Apple().look().cards == ()


# -- any of them ----------------------------------------------------------------------------------------------------

NAMES = ("amd-smi", "rocm-smi", "hy-smi", "npu-smi", "mthreads-gmi", "ixsmi", "cnmon", "mx-smi", "system_profiler")
NONSENSE = (
    "",
    "Segmentation fault\n",
    "null\n",
    "[]\n",
    "{}\n",
    '{"card0": null}\n',
    '{"card0": {}, "card99999999": {}}\n',
    '{"gpu_data": [{"gpu": null}, {"gpu": -1}, 5]}\n',
    '[{"gpu": 0, "mem_usage": {"total_vram": {"value": "much", "unit": "XB"}}, "bus": 5}]\n',
    '{"card0": {"VRAM Total Memory (B)": "99999999999999999999999999999999999999", "GPU use (%)": "-3"}}\n',
    '{"CnmonInfo": [{"CardNum": "99999999999", "PCI": {"Bus": "zz"}}], "GPU": [{}], "SPDisplaysDataType": [{}]}\n',
    "[" * 20_000,
    "{" * 20_000,
    "| 0 | | |\n| 0 | | |\n|0 a|b|c|\n|0|0000:01:00.0|1|\n",
    "0, , , , , \n0, , , , , , , , , , \n",
    "\x00\xff" * 1000,
    "| 0   x | OK | 1 |\n" * 5000,
)


@pytest.mark.parametrize("said", NONSENSE)
@pytest.mark.parametrize("code", [0, 1])
def test_tools_that_talk_nonsense_or_fail_cost_nothing_else(bin_: Tools, tmp_path: Path, said: str, code: int) -> None:
    for name in NAMES:
        bin_.add(name, said, then=f"exit {code}")
    inventory = inventory_of(Settings(home=tmp_path), "box", Cards(all_vendors()).look(30.0))
    assert inventory.cpu_count >= 1
    assert not [gpu for gpu in inventory.gpus if gpu.healthy], "nothing can be placed on what nobody understands"
    assert inventory.model_validate_json(inventory.model_dump_json()) == inventory


GARBLED: dict[str, tuple[Vendor, dict[str, str]]] = {
    "amd": (Amd(), AMD_SMI),
    "rocm": (Hygon(), {"": "hy_smi.json"}),
    "ascend": (
        Ascend(),
        {"info -m": "npu_smi_910b_map.txt", "info -t": "npu_smi_board.txt", "info": "npu_smi_910b.txt"},
    ),
    "mthreads": (MooreThreads(), {"-q": "mthreads.json", "": "mthreads.txt"}),
    "cambricon": (Cambricon(), {"": "cnmon_info.json"}),
    "metax": (MetaX(), {"-L": "mx_smi_list.txt", "": "mx_smi.txt"}),
}
WORDS = ("", "|", "N/A", "null", "-5", "9" * 30, "\u00b2", "\u0663 / \u0664", "0x", "{}", "[]", '"', "\n", "1e999")

EDIT = st.tuples(st.integers(0, 4), st.floats(0, 1), st.integers(0, 9), st.sampled_from(WORDS))
"""In which answer, where in it, how much goes, and what comes instead."""


@pytest.mark.parametrize("module", GARBLED)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(edits=st.lists(EDIT, max_size=6))
def test_garbled_answers_are_understood_or_refused(module: str, edits: list[tuple[int, float, int, str]]) -> None:
    vendor, answers = GARBLED[module]
    texts = {arguments: (SAMPLES / sample).read_text() for arguments, sample in answers.items()}
    for which, place, length, word in edits:
        arguments = list(texts)[which % len(texts)]
        start = int(place * len(texts[arguments]))
        texts[arguments] = texts[arguments][:start] + word + texts[arguments][start + length :]

    def answer(_tool: str, *args: str, **_more: object) -> str:
        return next(text for arguments, text in texts.items() if " ".join(args).startswith(arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"worker_host.detect.{module}.ask", answer)
        owner = "hygon" if module == "rocm" else module
        patch.setattr(f"worker_host.detect.{owner}.find", lambda name, *_: name)
        with contextlib.suppress(CannotLook):
            for card in vendor.look().cards:
                assert Gpu.model_validate_json(card.gpu.model_dump_json()) == card.gpu
                assert card.gpu.memory_bytes or not card.gpu.healthy


def test_tool_that_hangs_is_given_up(bin_: Tools) -> None:
    bin_.add("npu-smi", "", then="exec sleep 60")
    with pytest.raises(CannotLook, match=r"npu-smi did not answer within 0.2 s"):
        tools.ask(str(bin_.folder / "npu-smi"), timeout_s=0.2)


def test_tool_that_cannot_be_run_is_no_tool(bin_: Tools) -> None:
    broken = bin_.folder / "npu-smi"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(CannotLook, match="npu-smi cannot be run: No such file or directory"):
        Ascend().look()


def test_machine_without_any_tool_has_no_cards_and_nothing_to_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for vendor in all_vendors()[1:]:
        look = vendor.look()
        assert (look.cards, look.notes) == ((), ()), vendor.kind


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "bytes_"),
    [
        ("81920MiB", 81_920 * MiB),
        ("65520", 65_520 * MiB),
        (65_520, 65_520 * MiB),
        ("1.5 GB", 3 * GiB // 2),
        ({"value": 196_592, "unit": "MB"}, 196_592 * MiB),
        ({"value": 4096, "unit": "B"}, 4096),
        ({"value": "N/A", "unit": "MB"}, None),
        ("N/A", None),
        ("[N/A]", None),
        (None, None),
        ("-5 MiB", None),
        ("7 XB", None),
        ([1], None),
        ("9" * 50, None),
    ],
)
def test_sizes_are_read_in_all_their_forms(said: object, bytes_: int | None) -> None:
    assert tools.size(said, "mib") == bytes_


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3b:00.0", "0000:3b:00.0"),
        ("3b:0.1", "0000:3b:00.1"),
        ("10001:01:00.0", "10001:01:00.0"),
        ("0000:xx:00.0", ""),
        ("", ""),
    ],
)
def test_addresses_are_written_as_the_kernel_writes_them(said: str, address: str) -> None:
    assert pci.address(said) == address
