"""What a host says of itself every ten seconds."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleet.inventory import AcceleratorKind, Gpu
from fleet.settings import Settings
from fleet.telemetry import EngineStatus, GpuStatus, HostStatus, Refusal
from tests.unit.host.nvml import Nvml, card, host_says, instance
from tests.unit.host.waiting import eventually
from worker_host.detect import cards as cards_module
from worker_host.detect.card import CannotLook, Card, GpuProcess, Look
from worker_host.detect.cards import Cards
from worker_host.gpu_owners import OwnEngine
from worker_host.telemetry import Sources, Telemetry

GiB = 1 << 30
MiB = 1 << 20


def gpu(uuid: str = "GPU-0", **changes: object) -> Gpu:
    facts = {"uuid": uuid, "kind": AcceleratorKind.NVIDIA, "name": "t", "memory_bytes": 24 * GiB, "index": 0}
    return Gpu.model_validate(facts | changes)


def used(what: Gpu, memory: int | None, *processes: GpuProcess) -> Card:
    return Card(what, GpuStatus(uuid=what.uuid, memory_used_bytes=memory), processes)


class FakeVendor:
    kind = AcceleratorKind.NVIDIA

    def __init__(self, *cards: Card) -> None:
        self.says: Look | CannotLook = Look(cards)
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = 0

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        self.asked += 1
        self.may_answer.wait(30)
        if isinstance(self.says, CannotLook):
            raise self.says
        return self.says


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def telemetry(
    home: Path, vendor: FakeVendor, engines: Sequence[OwnEngine] = (), clock: Clock | None = None
) -> Telemetry:
    sources = Sources(engines=lambda: engines, address=lambda: "10.0.0.7")
    return Telemetry(Settings(home=home), "box", home / "box", sources, Cards([vendor], clock=clock or Clock()))


def own(pid: int, *gpus: str, memory: int = 0) -> OwnEngine:
    return OwnEngine(EngineStatus(instance_id="m/0-a", fence=3), frozenset({pid}), gpus, memory)


@contextmanager
def process(code: str = "input()") -> Iterator[subprocess.Popen[bytes]]:
    """A program, in a session of its own like an engine."""
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


# -- whose memory ---------------------------------------------------------------------------------------------------


def test_memory_of_engines_and_of_what_they_started_is_ours_and_the_rest_foreign(tmp_path: Path) -> None:
    starts = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); input()"
    with process(starts) as engine, process() as stranger:
        assert engine.stdout is not None
        worker = int(engine.stdout.readline())
        using = [GpuProcess(engine.pid, GiB), GpuProcess(worker, 10 * GiB), GpuProcess(stranger.pid, 5 * GiB)]
        vendor = FakeVendor(used(gpu(), 16 * GiB + 300 * MiB, *using))
        status = telemetry(tmp_path, vendor, [own(engine.pid, "GPU-0")]).take()
    assert status.gpus[0].foreign_bytes == 5 * GiB + 300 * MiB
    assert [(p.pid, p.memory_bytes, p.gpu_uuid) for p in status.foreign] == [(stranger.pid, 5 * GiB, "GPU-0")]
    assert status.foreign[0].name.startswith("python")


def test_worker_of_an_engine_whose_first_process_has_ended_is_still_ours(tmp_path: Path) -> None:
    leaves = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    with process(leaves) as engine:
        assert engine.stdout is not None
        worker = int(engine.stdout.readline())
        engine.wait()
        vendor = FakeVendor(used(gpu(), 10 * GiB, GpuProcess(worker, 10 * GiB)))
        status = telemetry(tmp_path, vendor, [own(engine.pid, "GPU-0")]).take()
    assert (status.gpus[0].foreign_bytes, status.foreign) == (0, ())


def test_engine_that_ends_while_the_cards_are_asked_is_not_somebody_else(tmp_path: Path) -> None:
    with process() as engine:
        pid = engine.pid
    engines = [[own(pid, "GPU-0")], []]
    vendor = FakeVendor(used(gpu(), 10 * GiB, GpuProcess(pid, 10 * GiB)))
    sources = Sources(engines=lambda: engines.pop(0))
    status = Telemetry(Settings(home=tmp_path), "box", tmp_path, sources, Cards([vendor])).take()
    assert (status.gpus[0].foreign_bytes, status.foreign) == (0, ())


def test_processes_that_cannot_be_seen_may_be_ours_but_only_as_far_as_ours_have_claims(tmp_path: Path) -> None:
    with process() as gone:
        nobody = gone.pid
    vendor = FakeVendor(used(gpu(), 15 * GiB, GpuProcess(nobody, 15 * GiB)))
    engines = [own(os.getpid(), "GPU-0", memory=10 * GiB)]
    assert telemetry(tmp_path, vendor, engines).take().gpus[0].foreign_bytes == 5 * GiB
    assert telemetry(tmp_path, vendor).take().gpus[0].foreign_bytes == 15 * GiB


@pytest.mark.parametrize(("claimed", "foreign"), [(0, 9 * GiB), (6 * GiB, 3 * GiB), (20 * GiB, 0)])
def test_where_the_driver_lists_no_processes_what_is_over_our_claims_is_foreign(
    tmp_path: Path, claimed: int, foreign: int
) -> None:
    silent = Card(gpu(), GpuStatus(uuid="GPU-0", memory_used_bytes=9 * GiB))
    engines = [own(os.getpid(), "GPU-0", memory=claimed)]
    assert telemetry(tmp_path, FakeVendor(silent), engines).take().gpus[0].foreign_bytes == foreign


def test_our_process_whose_memory_the_driver_does_not_tell_has_what_was_claimed(tmp_path: Path) -> None:
    vendor = FakeVendor(used(gpu(), 9 * GiB, GpuProcess(os.getpid(), None)))
    engines = [own(os.getpid(), "GPU-0", memory=8 * GiB)]
    assert telemetry(tmp_path, vendor, engines).take().gpus[0].foreign_bytes == GiB


# -- drivers that fail ----------------------------------------------------------------------------------------------


def test_driver_that_hangs_keeps_nobody_waiting_and_its_cards_are_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_host.telemetry.LOOK_S", 0.05)
    clock, vendor = Clock(), FakeVendor(used(gpu(), GiB))
    host = telemetry(tmp_path, vendor, clock=clock)
    first = host.take()
    vendor.may_answer.clear()
    clock.now += 10
    second = host.take()
    assert (second.inventory, second.gpus) == (first.inventory, first.gpus)
    clock.now += cards_module.FRESH_S
    stale = host.take()
    assert [(g.uuid, g.healthy, g.memory_used_bytes) for g in stale.gpus] == [("GPU-0", True, None)]
    clock.now += cards_module.PATIENCE_S - cards_module.FRESH_S
    third = host.take()
    assert vendor.asked == 2, "nobody is asked again before he has answered"
    assert (third.gpus[0].healthy, third.inventory) == (False, first.inventory)
    assert "said nothing for 70 s: it has not answered yet" in third.gpus[0].reason
    vendor.may_answer.set()
    monkeypatch.setattr("worker_host.telemetry.LOOK_S", 10.0)
    assert host.take().gpus[0] == first.gpus[0]


async def test_slow_driver_is_heard_though_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker_host.telemetry.LOOK_S", 0.0)
    clock, vendor = Clock(), FakeVendor(used(gpu(), GiB))
    host = telemetry(tmp_path, vendor, clock=clock)
    host.inventory()
    for memory in (2, 3, 4):
        asked = vendor.asked
        vendor.may_answer.clear()
        vendor.says = Look((used(gpu(), memory * GiB),))
        await eventually(lambda asked=asked: host.take() and vendor.asked > asked)
        vendor.may_answer.set()
        await eventually(lambda memory=memory: host.take().gpus[0].memory_used_bytes == memory * GiB)


def test_host_that_starts_again_does_not_wait_for_a_slow_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_host.telemetry._REGISTER_LOOK_S", 0.05)
    monkeypatch.setattr("worker_host.telemetry.LOOK_S", 0.05)
    clock, vendor = Clock(), FakeVendor(used(gpu(), GiB))
    vendor.may_answer.clear()
    sources = Sources(engines=lambda: [])
    host = Telemetry(Settings(home=tmp_path), "box", tmp_path, sources, Cards([vendor], [gpu()], clock))
    assert host.inventory().gpus == (gpu(),)
    assert host.take().gpus == (GpuStatus(uuid="GPU-0"),)
    clock.now += cards_module.PATIENCE_S
    assert host.take().gpus[0].reason == "its driver has said nothing for 60 s: it has not answered yet"
    vendor.may_answer.set()
    monkeypatch.setattr("worker_host.telemetry.LOOK_S", 10.0)
    assert host.take().gpus == (GpuStatus(uuid="GPU-0", memory_used_bytes=GiB, foreign_bytes=GiB),)


def test_driver_that_fails_is_forgiven_for_a_minute(tmp_path: Path) -> None:
    clock, vendor = Clock(), FakeVendor(used(gpu(), GiB))
    host = telemetry(tmp_path, vendor, clock=clock)
    healthy = host.take()
    vendor.says = CannotLook("the tool is on strike")
    clock.now += cards_module.PATIENCE_S - 1
    assert host.take().gpus[0].healthy
    clock.now += 2
    sick = host.take()
    assert not sick.gpus[0].healthy
    assert sick.gpus[0].reason.endswith("the tool is on strike")
    assert sick.inventory == healthy.inventory
    assert host.inventory().notes == ("nvidia: the tool is on strike",)


def test_what_a_driver_says_by_mistake_costs_only_its_own_cards(tmp_path: Path) -> None:
    class Mad(FakeVendor):
        kind = AcceleratorKind.AMD

        def look(self, known: Sequence[Gpu] = ()) -> Look:
            raise KeyError("VRAM Total")

    sources = Sources(engines=lambda: [])
    cards = Cards([Mad(), FakeVendor(used(gpu(), GiB))])
    host = Telemetry(Settings(home=tmp_path), "box", tmp_path, sources, cards)
    assert [g.uuid for g in host.take().gpus] == ["GPU-0"]
    assert host.inventory().notes == ("amd: KeyError: 'VRAM Total'",)


def test_two_cards_that_give_the_same_name_are_two(tmp_path: Path) -> None:
    vendor = FakeVendor(used(gpu(), GiB), used(gpu(index=1), 2 * GiB))
    status = telemetry(tmp_path, vendor).take()
    assert [(g.uuid, g.memory_used_bytes) for g in status.gpus] == [("GPU-0", GiB), ("GPU-0#2", 2 * GiB)]


# -- the rest of it -------------------------------------------------------------------------------------------------


def test_host_without_cards_tells_of_itself(tmp_path: Path) -> None:
    status = telemetry(tmp_path, FakeVendor()).take()
    assert (status.gpus, status.foreign, status.address) == ((), (), "10.0.0.7")
    assert status.boot_id != ""
    assert status.cpu_utilization is not None
    assert status.ram_used_bytes is not None
    assert status.ram_used_bytes > 0
    assert status.disk_free_bytes is not None
    assert status.disk_free_bytes > 0
    assert HostStatus.model_validate_json(status.model_dump_json()) == status


def test_card_that_is_added_later_is_known_to_whoever_starts_engines(tmp_path: Path) -> None:
    vendor = FakeVendor(used(gpu("GPU-0"), 0))
    host = telemetry(tmp_path, vendor)
    host.inventory()
    assert [g.uuid for g in host.gpus] == ["GPU-0"]
    vendor.says = Look((used(gpu("GPU-0"), 0), used(gpu("GPU-1", index=1), 0)))
    host.take()
    assert [g.uuid for g in host.gpus] == ["GPU-0", "GPU-1"]


def test_fingerprint_is_that_of_the_registration_until_the_hardware_changes(tmp_path: Path) -> None:
    vendor = FakeVendor(used(gpu(), GiB))
    host = telemetry(tmp_path, vendor)
    registered = host.inventory().fingerprint()
    assert host.take().inventory == registered
    vendor.says = Look((used(gpu(healthy=False, reason="ECC"), 2 * GiB),))
    assert host.take().inventory == registered, "that a card is sick is in the status itself"
    vendor.says = Look((used(gpu(memory_bytes=GiB), GiB),))
    assert host.take().inventory != registered
    vendor.says = Look((used(gpu(), GiB), used(gpu("GPU-1", index=1), 0)))
    assert host.take().inventory not in (registered, "")


def test_refusals_are_told_once_unless_nobody_heard(tmp_path: Path) -> None:
    waiting = [[Refusal(reason="expired", count=2)], [Refusal(reason="no_ticket")], [], []]
    sources = Sources(engines=lambda: [], refusals=lambda: waiting.pop(0))
    host = Telemetry(Settings(home=tmp_path), "box", tmp_path, sources, Cards([]))
    lost = host.take()
    assert [r.reason for r in lost.refusals] == ["expired"]
    host.unheard(lost)
    assert [r.reason for r in host.take().refusals] == ["expired", "no_ticket"]
    assert host.take().refusals == ()


def test_looking_at_the_metrics_takes_no_refusals_away(tmp_path: Path) -> None:
    waiting = [[Refusal(reason="expired")], []]
    sources = Sources(engines=lambda: [], refusals=lambda: waiting.pop(0))
    host = Telemetry(Settings(home=tmp_path), "box", tmp_path, sources, Cards([]))
    assert b"holdfast_host_engines 0.0" in host.metrics()
    assert [r.reason for r in host.take().refusals] == ["expired"]


def test_everything_is_shown_to_prometheus(nvml: Nvml, tmp_path: Path) -> None:
    nvml.has(
        card(0, used=23_000, ecc=1, throttled="0x40"),
        "\n".join([card(1, mig="on"), instance("MIG-a", 9856, "1g.10gb", 16)]),
    )
    engine = {"instance": "m/0-a", "pids": [], "gpus": ["GPU-0"], "memory": 0}
    _, _, metrics = host_says(nvml, tmp_path, json.dumps([engine]))
    for line in (
        'holdfast_host_gpu_memory_used_bytes{gpu="GPU-0"} 2.4117248e+10',
        'holdfast_host_gpu_memory_foreign_bytes{gpu="GPU-0"} 2.4117248e+10',
        'holdfast_host_gpu_memory_bytes{gpu="MIG-a"} 1.0334765056e+10',
        'holdfast_host_gpu_utilization_ratio{gpu="GPU-0"} 0.25',
        'holdfast_host_gpu_temperature_celsius{gpu="GPU-0"} 41.0',
        'holdfast_host_gpu_power_watts{gpu="GPU-0"} 120.5',
        'holdfast_host_gpu_power_limit_watts{gpu="GPU-0"} 700.0',
        'holdfast_host_gpu_ecc_errors{gpu="GPU-0"} 1.0',
        'holdfast_host_gpu_throttled{gpu="GPU-0"} 1.0',
        'holdfast_host_gpu_healthy{gpu="GPU-0"} 0.0',
        'holdfast_host_gpu_healthy{gpu="GPU-1"} 1.0',
        'holdfast_host_engine_requests{fence="1",instance="m/0-a"} 0.0',
        "holdfast_host_engines 1.0",
    ):
        assert line in metrics.splitlines(), line
    assert 'holdfast_host_gpu_utilization_ratio{gpu="MIG-a"}' not in metrics, "what is not known has no sample"


# -- over restarts, on the real client ------------------------------------------------------------------------------


def test_card_that_falls_off_the_bus_keeps_its_name_over_restarts_of_the_host(nvml: Nvml, tmp_path: Path) -> None:
    nvml.has(*map(card, range(4)))
    before, _, _ = host_says(nvml, tmp_path)
    nvml.has(card(0), card(1), card(2, lost="yes"), card(3))
    after, status, _ = host_says(nvml, tmp_path)
    assert [g.uuid for g in after.gpus] == [f"GPU-{n}" for n in range(4)]
    lost = after.gpus[2]
    assert (lost.healthy, lost.reason, lost.memory_bytes) == (False, "GPU is lost (NVML 15)", 141 * GiB)
    assert after.fingerprint() == before.fingerprint() == status.inventory
    assert not status.gpus[2].healthy
    nvml.has(*map(card, range(4)))
    again, _, _ = host_says(nvml, tmp_path)
    assert again.gpus == before.gpus


def test_cards_whose_driver_is_not_loaded_after_a_restart_are_still_known(nvml: Nvml, tmp_path: Path) -> None:
    nvml.has(card(0), card(1))
    before, _, _ = host_says(nvml, tmp_path)
    nvml.has(card(0), card(1), init=9)
    for _ in range(2):
        after, status, _ = host_says(nvml, tmp_path)
        reason = "its driver does not answer: NVML: Driver Not Loaded (NVML 9)"
        assert [(g.uuid, g.healthy, g.reason) for g in after.gpus] == [(f"GPU-{n}", False, reason) for n in range(2)]
        assert after.fingerprint() == before.fingerprint() == status.inventory
        assert [g.healthy for g in status.gpus] == [False, False]
    nvml.has(card(0), card(1))
    assert host_says(nvml, tmp_path)[0].gpus == before.gpus


def test_lost_card_is_not_taken_for_another_when_cards_have_moved(nvml: Nvml, tmp_path: Path) -> None:
    nvml.has(*map(card, range(3)))
    host_says(nvml, tmp_path)
    nvml.has(card(1), card(0, lost="yes"), card(2))
    inventory, _, _ = host_says(nvml, tmp_path)
    assert inventory.gpus[1].uuid.startswith("unknown-")
    nvml.has(card(0, lost="yes"), card(2))
    inventory, _, _ = host_says(nvml, tmp_path)
    assert inventory.gpus[0].uuid.startswith("unknown-")


XID = """
import os
from pathlib import Path
from worker_host.detect.nvidia import Nvidia
eye = Nvidia(watch=True)
def reasons(): return [c.gpu.reason for c in eye.look().cards]
machine = Path(os.environ["FAKE_NVML"])
sound = machine.read_text()
print(reasons())
machine.write_text(sound.replace("uuid = GPU-1", "uuid = GPU-1\\nxid = 31"))
print(reasons())
machine.write_text(sound.replace("uuid = GPU-1", "uuid = GPU-1\\nxid = 79"))
reasons(); print(reasons())
machine.write_text(sound)
print(reasons())
"""


def test_fault_that_the_driver_tells_of_makes_a_card_sick_and_a_mistake_of_a_program_does_not(nvml: Nvml) -> None:
    nvml.has(card(0), card(1))
    gone = "Xid 79: the GPU has fallen off the bus"
    assert nvml.run(XID).splitlines() == [str(["", ""]), str(["", ""]), str(["", gone]), str(["", gone])]
