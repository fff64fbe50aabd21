"""What a host is and has, as it reports it."""

from enum import StrEnum

from fleet.model import Record


class AcceleratorKind(StrEnum):
    CPU = "cpu"
    NVIDIA = "nvidia"


class Gpu(Record):
    uuid: str
    kind: AcceleratorKind
    name: str
    memory_bytes: int
    index: int
    healthy: bool = True
    reason: str = ""
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
    hostname: str
    machine_id: str
    boot_id: str
    os: str
    arch: str
    cpu_count: int
    ram_bytes: int
    ram_allocatable_bytes: int
    disk_bytes: int
    disk_free_bytes: int
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

    instance_id: str
    fence: int


class Registration(Record):
    """What a host says each time it starts, or after it lost its lease."""

    inventory: Inventory
    address: str
    """Where gateways and the API reach this host."""
    http_port: int
    version: str
    engines: tuple[EngineRef, ...] = ()
    """What is running on it right now."""
