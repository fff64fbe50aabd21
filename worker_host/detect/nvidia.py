"""NVIDIA GPUs, through NVML."""

import contextlib

import pynvml

from fleet.inventory import AcceleratorKind, Gpu
from worker_host.detect.machine import machine_id


def detect() -> tuple[Gpu, ...]:
    """All cards; one that cannot be asked is listed as unhealthy and hides no other. Empty without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return tuple(_card(index, driver) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _card(index: int, driver: str) -> Gpu:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        return Gpu(
            uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
            kind=AcceleratorKind.NVIDIA,
            name=_text(pynvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            index=index,
            compute_capability=f"{major}.{minor}",
            driver_version=driver,
        )
    except pynvml.NVMLError as error:
        return Gpu(
            uuid=f"unknown-{machine_id()}-{index}",  # unlike that of any card of another host
            kind=AcceleratorKind.NVIDIA,
            name="NVIDIA GPU",
            memory_bytes=0,
            index=index,
            healthy=False,
            reason=str(error),
            driver_version=driver,
        )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
