"""What a host is and has, as it reports it."""

from enum import StrEnum

from pydantic import Field

from fleet.model import Count, Record, Text


class AcceleratorKind(StrEnum):
    CPU = "cpu"
    NVIDIA = "nvidia"


class Gpu(Record):
    uuid: Text
    kind: AcceleratorKind
    name: Text
    memory_bytes: Count
    index: int = Field(ge=0, le=10_000)
    healthy: bool = True
    reason: Text = ""
    """Why it is not healthy."""
    compute_capability: str = ""
    driver_version: str = ""


class EngineBuild(Record):
    """An engine that this host can run."""

    engine: str
    version: str
    accelerators: tuple[AcceleratorKind, ...] = (AcceleratorKind.CPU,)
    origin: str = "pypi"
    """``pypi``: installed on demand; otherwise the path of the binary."""


class Inventory(Record):
    hostname: Text
    machine_id: Text
    boot_id: Text
    os: str
    arch: str
    cpu_count: int
    ram_bytes: Count
    ram_allocatable_bytes: Count
    disk_bytes: Count
    disk_free_bytes: Count
    gpus: tuple[Gpu, ...] = ()
    engines: tuple[EngineBuild, ...] = ()
    labels: dict[str, str] = {}

    def same_hardware(self, other: "Inventory") -> bool:
        """Whether claims made against ``other`` still mean the same memory here."""
        keys = [(g.uuid, g.memory_bytes, g.healthy) for g in self.gpus]
        return self.ram_allocatable_bytes == other.ram_allocatable_bytes and keys == [
            (g.uuid, g.memory_bytes, g.healthy) for g in other.gpus
        ]


class EngineRef(Record):
    """An engine on a host: at most one per instance is legitimate, the one with the current fence."""

    instance_id: Text
    fence: Count


class Registration(Record):
    """What a host says each time it starts, or after it lost its lease."""

    inventory: Inventory
    address: Text
    """Where gateways and the API reach this host."""
    http_port: int = Field(ge=0, le=65535)
    version: Text
    engines: tuple[EngineRef, ...] = ()
    """What it answers for or finds running right now."""
    fresh: bool = False
    """Its process has just started and takes no work yet: what is not among ``engines`` never reached it."""
