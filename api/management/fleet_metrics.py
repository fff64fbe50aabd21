"""Hosts and GPUs as Prometheus metrics, from what the database knows."""

from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlmodel import Session

from api.management.host_views import Rows, all_hosts
from fleet.db.tables import GpuRow
from fleet.telemetry import GpuStatus, HostStatus

_OF_GPU = ["host", "gpu"]


def read(session: Session) -> "FleetMetrics":
    return FleetMetrics(all_hosts(session), datetime.now(UTC))


class FleetMetrics(Collector):
    """Of one moment."""

    def __init__(self, hosts: list[Rows], now: datetime) -> None:
        self._hosts = hosts
        self._now = now

    def collect(self) -> Iterator[Metric]:
        yield from self._of_hosts()
        yield from self._of_gpus()
        yield from self._measured()

    def _of_hosts(self) -> Iterator[Metric]:
        age = _gauge("holdfast_host_status_age_seconds", "Since it last said how it is.", ["host"])
        ram = _gauge("holdfast_host_ram_bytes", "RAM that may be claimed, and that is.", ["host", "part"])
        ends = _gauge("holdfast_host_certificate_expires_seconds", "Until its certificate ends.", ["host"])
        tunnel = _gauge("holdfast_host_tunnel_connected", "1: a relay holds its tunnel.", ["host"])
        for host, _ in self._hosts:
            if host.status_at is not None:
                age.add_metric([host.id], max(0.0, (self._now - host.status_at).total_seconds()))
            ram.add_metric([host.id, "allocatable"], host.ram_allocatable)
            ram.add_metric([host.id, "claimed"], host.ram_used)
            if host.certificate_expires_at is not None:
                ends.add_metric([host.id], (host.certificate_expires_at - self._now).total_seconds())
            tunnel.add_metric([host.id], float(bool(host.tunnel_url)))
        yield from (age, ram, ends, tunnel)

    def _of_gpus(self) -> Iterator[Metric]:
        counts: dict[str, int] = {"ready": 0, "cordoned": 0, "failed": 0}
        healthy = _gauge("holdfast_gpu_healthy", "1: its host finds nothing wrong with it.", _OF_GPU)
        memory = _gauge("holdfast_gpu_memory_bytes", "Memory, by what it is for.", [*_OF_GPU, "part"])
        for host, gpus in self._hosts:
            for gpu in gpus:
                counts["failed" if not gpu.healthy else "cordoned" if gpu.cordoned else "ready"] += 1
                healthy.add_metric([host.id, gpu.uuid], float(gpu.healthy))
                for part, size in _parts(gpu):
                    memory.add_metric([host.id, gpu.uuid, part], size)
        states = _gauge("holdfast_gpus", "Number of GPUs by state", ["state"])
        for state, count in counts.items():
            states.add_metric([state], count)
        yield from (states, healthy, memory)

    def _measured(self) -> Iterator[Metric]:
        """What hosts measured last."""
        used = _gauge("holdfast_gpu_memory_used_bytes", "In use, by whomever.", _OF_GPU)
        busy = _gauge("holdfast_gpu_utilization_ratio", "Share of time in which it computed.", _OF_GPU)
        heat = _gauge("holdfast_gpu_temperature_celsius", "Temperature.", _OF_GPU)
        power = _gauge("holdfast_gpu_power_watts", "Power drawn.", _OF_GPU)
        for host, _ in self._hosts:
            for gpu in _said(host.status):
                for family, value in (
                    (used, gpu.memory_used_bytes),
                    (busy, gpu.utilization),
                    (heat, gpu.temperature_c),
                    (power, gpu.power_w),
                ):
                    if value is not None:
                        family.add_metric([host.id, gpu.uuid], value)
        yield from (used, busy, heat, power)


def _parts(gpu: GpuRow) -> tuple[tuple[str, int], ...]:
    return (
        ("total", gpu.memory_bytes),
        ("allocatable", gpu.allocatable),
        ("claimed", gpu.used),
        ("foreign", gpu.foreign_bytes),
    )


def _said(status: dict[str, object]) -> tuple[GpuStatus, ...]:
    return HostStatus.model_validate(status).gpus if status else ()


def _gauge(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)
