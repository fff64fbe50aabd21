"""The fleet as placement sees it: hosts that are ready, what is free on them, and what runs there. Pure."""

from dataclasses import dataclass, field
from datetime import datetime

from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.sizing.sizing import GpuClass


@dataclass(frozen=True)
class ModelFile:
    """A model as one host has it."""

    path: str
    size_bytes: int


@dataclass(frozen=True)
class GpuView:
    uuid: str
    free_bytes: int
    """Of what may be claimed: without what others than our engines use."""
    total_bytes: int
    kind: AcceleratorKind = AcceleratorKind.NVIDIA
    part: bool = False
    """A MIG instance: an engine sees only one of them, so it cannot be used together with others."""
    name: str = ""
    compute_capability: str = ""
    unified: bool = False
    numa_node: int | None = None
    index: int = 0
    links: tuple[tuple[str, int], ...] = ()
    """(UUID of another card of the host, distance): 5 NVLink and kin, 10 PIX, 30 PHB, 40 NODE, 50 SYS."""
    foreign_bytes: int = 0
    """Used by others than our engines."""

    @property
    def gpu_class(self) -> GpuClass:
        return GpuClass(
            kind=self.kind,
            name=self.name,
            memory_bytes=self.total_bytes,
            compute_capability=self.compute_capability,
            unified=self.unified,
        )


@dataclass(frozen=True)
class Occupant:
    """A replica that holds claims on a host, for anti-affinity, preemption and defragmentation."""

    instance_id: str
    deployment: str
    fence: int = 0
    gpu_bytes: tuple[tuple[str, int], ...] = ()
    """(UUID, bytes claimed)."""
    ram_bytes: int = 0
    priority: int = 1
    ready: bool = False
    leaving: bool = False
    """Gives its room back soon."""
    hosts: int = 1
    """Over how many hosts it is spread."""
    since: datetime | None = None
    """When its instance was made."""


@dataclass(frozen=True)
class HostView:
    """A host that is ready, as placement sees it."""

    host_id: str
    name: str
    generation: int
    labels: dict[str, str]
    ram_free_bytes: int
    ram_total_bytes: int
    gpus: tuple[GpuView, ...]
    """Healthy ones that take claims."""
    engines: tuple[EngineBuild, ...]
    replicas_of_deployment: int
    model: ModelFile | None
    """None: the host does not have the file."""
    cordoned_gpus: tuple[tuple[str, str], ...] = ()
    """(UUID, reason) of those that take no claims."""
    runtimes: tuple[str, ...] = ("process",)
    """What engines can run in here."""
    reserved_for: dict[str, str] = field(default_factory=dict)
    """Labels that a deployment must carry to be placed here."""
    fabric_address: str = ""
    """Its address on the network that hosts of a gang share; empty: it takes part in none."""
    ports_free: int = 1000
    """Of its range for engines."""
    occupants: tuple[Occupant, ...] = ()
    deployment_labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of the deployments that have replicas here, by name."""
