"""What a host finds out about itself."""

import os
import platform
import stat
from pathlib import Path

import psutil
import pytest

from fleet.engines.llama_cpp import LlamaCpp
from fleet.inventory import AcceleratorKind
from fleet.settings import Settings
from worker_host.detect import machine
from worker_host.detect.inventory import engine_builds, take_inventory

CPU = AcceleratorKind.CPU


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
    assert {(b.engine, b.version, b.origin) for b in inventory.engines} >= {
        ("llama_cpp", LlamaCpp.default_version, "pypi"),
        ("custom", "", "spec"),
    }
    assert all(b.accelerators == (CPU,) for b in inventory.engines)
    assert inventory.same_hardware(take_inventory(settings, "box"))


def test_inventory_tells_ports_and_the_address_for_gangs(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, host_port_range="21000-21009", host_fabric_address="10.0.0.7")
    inventory = take_inventory(settings, "box")
    assert (inventory.port_range, inventory.fabric_address) == ((21000, 21009), "10.0.0.7")
    assert not any("host_port_range" in note for note in inventory.notes)


def test_ports_that_the_system_hands_out_too_are_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ephemeral_ports", lambda: (32768, 60999))
    inventory = take_inventory(Settings(home=tmp_path, host_port_range="32000-33000"), "box")
    assert [n for n in inventory.notes if "32000-33000 overlaps" in n and "32768-60999" in n] != []


def test_more_ram_reserved_than_there_is_leaves_none(tmp_path: Path) -> None:
    inventory = take_inventory(Settings(home=tmp_path, host_reserved_ram_bytes=1 << 60), "box")
    assert inventory.ram_allocatable_bytes == 0


@pytest.mark.parametrize(
    ("says", "version", "kinds"),
    [
        ("version: 7654 (abc123f)", "7654-abc123f", {CPU}),
        (
            "version: 0.0.2 (abc)\n  CUDA0: NVIDIA H200 (143771 MiB)",
            "0.0.2-abc",
            {AcceleratorKind.CPU, AcceleratorKind.NVIDIA},
        ),
        ("what?", "unknown", {CPU}),
    ],
)
def test_binary_that_a_person_named_is_asked_what_it_is(
    tmp_path: Path, says: str, version: str, kinds: set[AcceleratorKind]
) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text(f"#!/bin/sh\ncat <<'END' >&2\n{says}\nEND\n")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    build, *others = engine_builds(Settings(home=tmp_path, llama_server=binary))
    assert "llama_cpp" not in {b.engine for b in others}
    assert (build.engine, build.version, set(build.accelerators)) == ("llama_cpp", version, kinds)
    assert build.origin == str(binary)


def test_binary_that_is_not_there_does_not_keep_the_host_from_starting(tmp_path: Path) -> None:
    build, *_ = engine_builds(Settings(home=tmp_path, llama_server=tmp_path / "nope"))
    assert (build.engine, build.version) == ("llama_cpp", "unknown")


NVIDIA, ASCEND = AcceleratorKind.NVIDIA, AcceleratorKind.ASCEND


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ((), [("llama_cpp", "0.1.2", (CPU,)), ("vllm", "0.32.0+cpu", (CPU,)), ("custom", "", (CPU,))]),
        (
            (NVIDIA,),
            [
                ("llama_cpp", "0.1.2", (CPU,)),
                ("vllm", "0.32.0", (NVIDIA,)),
                ("sglang", "0.5.23", (NVIDIA,)),
                ("custom", "", (CPU, NVIDIA)),
            ],
        ),
        ((ASCEND,), [("llama_cpp", "0.1.2", (CPU,)), ("custom", "", (CPU, ASCEND))]),
    ],
)
def test_engines_from_pypi_are_offered_where_they_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cards: tuple[AcceleratorKind, ...],
    expected: list[tuple[str, str, tuple[AcceleratorKind, ...]]],
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    builds = engine_builds(Settings(home=tmp_path), frozenset(cards))
    assert [(b.engine, b.version, b.accelerators) for b in builds] == expected


def test_system_that_wheels_are_not_made_for_is_offered_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for libc in (("", ""), ("glibc", "2.17")):
        monkeypatch.setattr(platform, "libc_ver", lambda libc=libc: libc)
        assert [b.engine for b in engine_builds(Settings(home=tmp_path), frozenset({NVIDIA}))] == [
            "llama_cpp",
            "custom",
        ]
