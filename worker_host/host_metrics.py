"""A host's status as Prometheus metrics."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from fleet.inventory import Gpu
from fleet.telemetry import EngineStatus, GpuStatus, HostStatus

Number = float | None

_OF_GPUS: tuple[tuple[str, str, Callable[[GpuStatus], Number]], ...] = (
    ("memory_used_bytes", "Memory in use, by anybody", lambda g: g.memory_used_bytes),
    ("memory_foreign_bytes", "Memory in use by others than our engines", lambda g: g.foreign_bytes),
    ("utilization_ratio", "Share of the time in which it computed", lambda g: g.utilization),
    ("temperature_celsius", "Temperature", lambda g: g.temperature_c),
    ("power_watts", "Power drawn", lambda g: g.power_w),
    ("power_limit_watts", "Power that it may draw", lambda g: g.power_limit_w),
    ("ecc_errors", "Uncorrectable ECC errors since the driver was loaded", lambda g: g.ecc_errors),
    ("throttled", "1: slowed down by heat or for lack of power", lambda g: g.throttled),
    ("healthy", "1: takes work", lambda g: g.healthy),
)
_OF_ENGINES: tuple[tuple[str, str, Callable[[EngineStatus], Number]], ...] = (
    ("requests", "Requests that the host's proxy has answered for it", lambda e: e.requests),
    ("in_flight", "Requests that it is working on", lambda e: e.in_flight),
)
_OF_HOST: tuple[tuple[str, str, Callable[[HostStatus], Number]], ...] = (
    ("engines", "Engines that this host answers for", lambda s: len(s.engines)),
    ("foreign_processes", "Processes on its GPUs that are none of our engines", lambda s: len(s.foreign)),
    ("cpu_utilization_ratio", "Share of all CPUs in use", lambda s: s.cpu_utilization),
    ("ram_used_bytes", "RAM in use, by anybody", lambda s: s.ram_used_bytes),
    ("disk_free_bytes", "Free disk space where models and engines are kept", lambda s: s.disk_free_bytes),
    ("load1", "Processes that run or wait, mean of a minute", lambda s: s.load),
    ("status_timestamp_seconds", "When all this was so", lambda s: s.at.timestamp()),
)


def render(status: HostStatus, gpus: Sequence[Gpu], ram_bytes: int) -> bytes:
    """In the text format. What a driver does not say has no sample."""
    registry = CollectorRegistry()
    _gauge(registry, "holdfast_host_ram_bytes", "RAM of this host", ram_bytes)
    for name, text, value in _OF_HOST:
        _gauge(registry, f"holdfast_host_{name}", text, value(status))
    for name, text, read in _OF_GPUS:
        gauge = Gauge(f"holdfast_host_gpu_{name}", text, ("gpu",), registry=registry)
        for now in status.gpus:
            _set(gauge, read(now), now.uuid)
    memory = Gauge("holdfast_host_gpu_memory_bytes", "Memory", ("gpu",), registry=registry)
    labels = ("gpu", "kind", "name", "index", "driver", "parent")
    info = Gauge("holdfast_host_gpu_info", "1: this host has it", labels, registry=registry)
    for gpu in gpus:
        _set(memory, gpu.memory_bytes, gpu.uuid)
        _set(info, 1, gpu.uuid, gpu.kind, gpu.name, str(gpu.index), gpu.driver_version, gpu.parent_uuid)
    for name, text, of in _OF_ENGINES:
        gauge = Gauge(f"holdfast_host_engine_{name}", text, ("instance", "fence"), registry=registry)
        for engine in status.engines:
            _set(gauge, of(engine), engine.instance_id, str(engine.fence))
    return generate_latest(registry)


def _gauge(registry: CollectorRegistry, name: str, text: str, value: Number) -> None:
    if value is not None:
        Gauge(name, text, registry=registry).set(value)


def _set(gauge: Gauge, value: Number, *labels: str) -> None:
    if value is not None:
        gauge.labels(*labels).set(value)
