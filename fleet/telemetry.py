"""What a host says of itself every ten seconds: levels, never deltas."""

from datetime import datetime

from pydantic import Field

from fleet.inventory import EngineRef
from fleet.model import Count, Record, Text

STATUS_EVERY_S = 10.0
MiB = 1 << 20


class ForeignProcess(Record):
    """Holds GPU memory and is none of our engines."""

    pid: int = Field(ge=0, le=2**31 - 1)
    name: Text = ""
    gpu_uuid: Text
    memory_bytes: Count = 0


class GpuStatus(Record):
    """None: the driver does not say."""

    uuid: Text
    healthy: bool = True
    reason: Text = ""
    memory_used_bytes: Count | None = None
    foreign_bytes: Count = 0
    """Of the memory used, what is none of our engines'."""
    utilization: float | None = Field(default=None, ge=0, le=1)
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    ecc_errors: Count | None = None
    """Uncorrectable, since the driver was loaded."""
    throttled: bool | None = None


class EngineStatus(EngineRef):
    runtime: Text = "process"
    """``process`` or ``docker``."""
    name: Text = ""
    """Container name, or process id."""
    state: Text = ""
    requests: Count = 0
    """Answered by the proxy so far."""
    in_flight: Count = 0


class Refusal(Record):
    """Somebody was turned away at the host's door; ``count`` times alike since the last status."""

    reason: Text
    """``no_ticket``, ``expired``, ``invalid``, ``other_host``, ``other_instance``, ``stale_fence``, ``scope``."""
    instance_id: Text = ""
    peer: Text = ""
    """Network address."""
    count: Count = 1


class HostStatus(Record):
    boot_id: Text
    inventory: Text
    """Fingerprint of the inventory; another one than at registration: the host registers anew."""
    at: datetime
    address: Text = ""
    gpus: tuple[GpuStatus, ...] = Field(default=(), max_length=1024)
    engines: tuple[EngineStatus, ...] = Field(default=(), max_length=10_000)
    foreign: tuple[ForeignProcess, ...] = Field(default=(), max_length=1000)
    refusals: tuple[Refusal, ...] = Field(default=(), max_length=1000)
    cpu_utilization: float | None = Field(default=None, ge=0, le=1)
    ram_used_bytes: Count | None = None
    disk_free_bytes: Count | None = None
    load: float | None = None
