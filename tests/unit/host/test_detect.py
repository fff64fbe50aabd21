"""What a host finds out about itself."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from pydantic import TypeAdapter

from fleet.engines.catalog import ADAPTERS
from fleet.inventory import AcceleratorKind, Gpu
from fleet.settings import Settings
from worker_host.detect import machine
from worker_host.detect.inventory import engine_builds, take_inventory

DETECT = """
from pydantic import TypeAdapter
from fleet.inventory import Gpu
from worker_host.detect.nvidia import detect
print(TypeAdapter(tuple[Gpu, ...]).dump_json(detect()).decode())
"""


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver library of our own; NVML is looked up by name, so only a new process can be given it."""
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    command: list[str | Path] = ["gcc", "-shared", "-fPIC", "-Wall", "-o", folder / "libnvidia-ml.so.1", source]
    subprocess.run(command, check=True)
    return folder


def detected(library: Path, **env: str) -> tuple[Gpu, ...]:
    given = {**os.environ, "LD_LIBRARY_PATH": str(library), **env}
    done = subprocess.run([sys.executable, "-c", DETECT], env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return TypeAdapter(tuple[Gpu, ...]).validate_json(done.stdout)


def test_cards_are_listed_with_what_they_are(nvml: Path) -> None:
    assert detected(nvml, CARDS="oo") == tuple(
        Gpu(
            uuid=f"GPU-{index}",
            kind=AcceleratorKind.NVIDIA,
            name="NVIDIA H200",
            memory_bytes=141 << 30,
            index=index,
            compute_capability="9.0",
            driver_version="575.57.08",
        )
        for index in range(2)
    )


@pytest.mark.parametrize(("broken", "reason"), [("e", "Unknown"), ("l", "lost")])
def test_card_that_cannot_be_asked_is_unhealthy_and_hides_no_other(nvml: Path, broken: str, reason: str) -> None:
    first, second, third = detected(nvml, CARDS=f"o{broken}o")
    assert (first.healthy, third.healthy) == (True, True)
    assert (second.healthy, second.index, second.memory_bytes) == (False, 1, 0)
    assert reason in second.reason
    assert machine.machine_id() in second.uuid, "a card of another host must not have the same name"


def test_driver_that_cannot_be_let_go_hides_nothing(nvml: Path) -> None:
    assert len(detected(nvml, CARDS="o", SHUTDOWN="broken")) == 1


def test_machine_without_cards_driver_or_library_has_none(nvml: Path, tmp_path: Path) -> None:
    assert detected(nvml, CARDS="") == ()
    assert detected(nvml, CARDS="o", DRIVER="broken") == ()


def test_machine_facts_are_those_of_this_machine(tmp_path: Path) -> None:
    assert 1 <= machine.cpu_count() <= (os.cpu_count() or 1)
    assert 0 < machine.ram_bytes() <= psutil.virtual_memory().total
    total, free = machine.disk(tmp_path)
    assert 0 < free <= total
    assert machine.machine_id() == machine.machine_id() != ""
    assert machine.boot_id() == machine.boot_id() != ""
    assert machine.system()[0].startswith("Linux")


def test_memory_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(limit),))
    unlimited = machine.ram_bytes()
    limit.write_text("max\n")
    assert machine.ram_bytes() == unlimited
    limit.write_text(f"{1 << 20}\n")
    assert machine.ram_bytes() == 1 << 20


def test_inventory_is_complete_and_leaves_ram_to_the_system(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, host_labels={"zone": "a"}, host_reserved_ram_bytes=1 << 20)
    inventory = take_inventory(settings, "box")
    assert inventory.hostname == "box"
    assert inventory.ram_allocatable_bytes == inventory.ram_bytes - (1 << 20)
    assert inventory.labels == {"zone": "a"}
    assert [(b.engine, b.origin) for b in inventory.engines] == [(name, "pypi") for name in ADAPTERS]
    assert inventory.same_hardware(take_inventory(settings, "box"))


def test_more_ram_reserved_than_there_is_leaves_none(tmp_path: Path) -> None:
    inventory = take_inventory(Settings(home=tmp_path, host_reserved_ram_bytes=1 << 60), "box")
    assert inventory.ram_allocatable_bytes == 0


@pytest.mark.parametrize(
    ("says", "version", "kinds"),
    [
        ("version: 7654 (abc123f)", "7654-abc123f", {AcceleratorKind.CPU}),
        ("version: 0.0.2 (abc)\n  CUDA0: NVIDIA H200 (143771 MiB)", "0.0.2-abc", set(AcceleratorKind)),
        ("what?", "unknown", {AcceleratorKind.CPU}),
    ],
)
def test_binary_that_a_person_named_is_asked_what_it_is(
    tmp_path: Path, says: str, version: str, kinds: set[AcceleratorKind]
) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text(f"#!/bin/sh\ncat <<'END' >&2\n{says}\nEND\n")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    [build] = engine_builds(Settings(home=tmp_path, llama_server=binary))
    assert (build.engine, build.version, set(build.accelerators)) == ("llama_cpp", version, kinds)
    assert build.origin == str(binary)


def test_binary_that_is_not_there_does_not_keep_the_host_from_starting(tmp_path: Path) -> None:
    [build] = engine_builds(Settings(home=tmp_path, llama_server=tmp_path / "nope"))
    assert build.version == "unknown"
