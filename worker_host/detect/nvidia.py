"""NVIDIA GPUs, through NVML."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pynvml

from fleet.inventory import AcceleratorKind, DeviceIds, Gpu
from fleet.telemetry import GpuStatus, MiB
from worker_host.detect import machine, nvidia_health, nvidia_links, pci
from worker_host.detect.card import UNKNOWN, Card, GpuProcess, Look, card_of, unnamed
from worker_host.detect.nvidia_xid import XidWatch
from worker_host.detect.nvml import ask, said, session, text

_PROFILE = re.compile(r"MIG (\S*\d+g\.\d+gb\S*)")
_THROTTLED = (
    pynvml.nvmlClocksThrottleReasonHwSlowdown
    | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
)
"""Too hot, or too little power comes in. Its own power limit is no fault: busy cards are at it all the time."""
_UNIFIED_SHARE = 0.75
"""Of the RAM, on machines where the GPU has no memory of its own; the rest is for the system and its programs."""
_PROCESS_LISTS = (
    (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetComputeRunningProcesses_v2),
    (pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2),
)
"""Each in the form of newer drivers, and of older ones."""


@dataclass(frozen=True)
class _Driver:
    version: str
    cuda: str


class Nvidia:
    kind = AcceleratorKind.NVIDIA

    def __init__(self, *, watch: bool = False) -> None:
        """``watch``: for Xid errors, as long as this process lives."""
        self._faults = XidWatch() if watch else None

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        """One that cannot be asked is listed as unhealthy and hides no other. Raises CannotLook."""
        with session() as there:
            if not there:
                return Look()
            if self._faults is not None:
                self._faults.collect()
            driver = _driver()
            try:
                count = pynvml.nvmlDeviceGetCount()
            except pynvml.NVMLError as error:
                return Look(notes=(f"NVML does not say how many cards there are: {said(error)}",))
            cards = [card for index in range(count) for card in _cards(index, driver)]
            return Look(cards=_linked(cards, known))


def _driver() -> _Driver:
    try:
        version = text(pynvml.nvmlSystemGetDriverVersion())
        cuda = ask(0, pynvml.nvmlSystemGetCudaDriverVersion_v2)
    except pynvml.NVMLError:
        return _Driver("", "")
    return _Driver(version, f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "")


def _cards(index: int, driver: _Driver) -> Iterator[Card]:
    """The card, and its MIG instances. What it told before it failed is kept."""
    gpu = Gpu(
        uuid=unnamed(AcceleratorKind.NVIDIA, machine.machine_id(), index),
        kind=AcceleratorKind.NVIDIA,
        name="NVIDIA GPU",
        memory_bytes=0,
        index=index,
        driver_version=driver.version,
        runtime_version=driver.cuda,
    )
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        for better in _descriptions(handle):
            gpu = better(gpu)
        yield from _working(handle, gpu)
    except pynvml.NVMLError as error:
        yield _sick(gpu, said(error))


def _descriptions(handle: Any) -> Iterator[Callable[[Gpu], Gpu]]:
    """One fact after the other, so that one that fails costs none that came before."""
    uuid = text(pynvml.nvmlDeviceGetUUID(handle))
    yield partial(_with, uuid=uuid)
    name = text(pynvml.nvmlDeviceGetName(handle))
    yield partial(_with, name=name)
    where = _address(handle)
    yield partial(_with, pci_address=where)
    capability = ask(None, pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    yield partial(_with, compute_capability=".".join(map(str, capability or ())))
    node = pci.numa_node(where)
    node = ask(None, pynvml.nvmlDeviceGetNumaNodeId, handle) if node is None else node
    yield partial(_with, numa_node=node if node is not None and node >= 0 else None)
    yield partial(_with, device=DeviceIds(minor=ask(None, pynvml.nvmlDeviceGetMinorNumber, handle)))
    memory = ask(None, pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None:
        yield partial(_with, memory_bytes=_shared_ram(), unified=True)
    else:
        yield partial(_with, memory_bytes=int(memory.total))


def _with(gpu: Gpu, **facts: object) -> Gpu:
    return gpu.model_copy(update=facts)


def _working(handle: Any, gpu: Gpu) -> Iterator[Card]:
    reason = nvidia_health.reason(handle)
    gpu = gpu.model_copy(update={"healthy": not reason, "reason": reason})
    mode = ask(None, pynvml.nvmlDeviceGetMigMode, handle)
    if mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
        parent = gpu.model_copy(update={"partitioned": True, "memory_bytes": 0})
        yield Card(parent, _status(handle, parent))
        yield from _instances(handle, gpu)
    else:
        yield Card(gpu, _status(handle, gpu), _processes(handle))


def _instances(handle: Any, parent: Gpu) -> Iterator[Card]:
    for number in range(ask(0, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle)):
        instance = ask(None, pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if instance is None:
            continue
        uuid = text(pynvml.nvmlDeviceGetUUID(instance))
        facts = {"uuid": uuid, "parent_uuid": parent.uuid, "mig_profile": _profile(instance)}
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(instance)
            gpu = parent.model_copy(update=facts | {"memory_bytes": int(memory.total)})
            used: int | None = int(memory.used)
        except pynvml.NVMLError as error:
            sick = {"memory_bytes": 0, "healthy": False, "reason": said(error)}
            gpu, used = parent.model_copy(update=facts | sick), None
        yield card_of(gpu, _processes(instance), memory_used_bytes=used)


def _profile(instance: Any) -> str:
    """As ``nvidia-smi`` names it: of the device's name, or made of its slices."""
    match = _PROFILE.search(text(ask("", pynvml.nvmlDeviceGetName, instance)))
    if match:
        return match[1]
    slices = ask(None, pynvml.nvmlDeviceGetAttributes, instance)
    if slices is None:
        return ""
    size = f"{slices.gpuInstanceSliceCount}g.{math.ceil(slices.memorySizeMB / 1024)}gb"
    part = slices.computeInstanceSliceCount
    return size if part in (0, slices.gpuInstanceSliceCount) else f"{part}c.{size}"


def _status(handle: Any, gpu: Gpu) -> GpuStatus:
    memory = None if gpu.unified else ask(None, pynvml.nvmlDeviceGetMemoryInfo, handle)
    busy = ask(None, pynvml.nvmlDeviceGetUtilizationRates, handle)
    limit = ask(None, pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    power = ask(None, pynvml.nvmlDeviceGetPowerUsage, handle)
    return GpuStatus(
        uuid=gpu.uuid,
        healthy=gpu.healthy,
        reason=gpu.reason,
        memory_used_bytes=int(memory.used) if memory is not None else None,
        utilization=min(1.0, busy.gpu / 100) if busy is not None else None,
        temperature_c=ask(None, pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=power / 1000 if power is not None else None,
        power_limit_w=limit / 1000 if limit is not None else None,
        ecc_errors=nvidia_health.uncorrectable(handle),
        throttled=_throttled(handle),
    )


def _throttled(handle: Any) -> bool | None:
    reasons = ask(None, pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:
        reasons = ask(None, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return None if reasons is None else bool(reasons & _THROTTLED)


def _processes(handle: Any) -> tuple[GpuProcess, ...] | None:
    """None when the driver lists none of either sort."""
    told: dict[int, GpuProcess] = {}
    silent = True
    for newer, older in _PROCESS_LISTS:
        listed = ask(None, newer, handle)
        listed = ask(None, older, handle) if listed is None else listed
        silent = silent and listed is None
        for process in listed or ():
            used = process.usedGpuMemory
            before = told.get(process.pid)
            # In both lists it is the same memory.
            most = max((n for n in (used, before.memory_bytes if before else None) if n is not None), default=None)
            told[process.pid] = GpuProcess(process.pid, most)
    return None if silent else tuple(told.values())


def _linked(cards: list[Card], known: Sequence[Gpu]) -> tuple[Card, ...]:
    """With the links of each; those of cards that are the same as before are not asked again."""
    before = {gpu.uuid: gpu.links for gpu in known}
    uuids = {c.gpu.uuid for c in cards if not c.gpu.parent_uuid and not c.gpu.uuid.startswith(UNKNOWN)}
    if uuids <= before.keys():
        links = before
    else:
        links = nvidia_links.between({c.gpu.index: c.gpu for c in cards if c.gpu.uuid in uuids})
    return tuple(replace(c, gpu=c.gpu.model_copy(update={"links": links.get(c.gpu.uuid, ())})) for c in cards)


def _sick(gpu: Gpu, reason: str) -> Card:
    gpu = gpu.model_copy(update={"healthy": False, "reason": reason})
    return card_of(gpu)


def _address(handle: Any) -> str:
    info = ask(None, pynvml.nvmlDeviceGetPciInfo, handle)
    return pci.address(text(info.busId)) if info is not None else ""


def _shared_ram() -> int:
    return int(machine.ram_bytes() * _UNIFIED_SHARE) // MiB * MiB
