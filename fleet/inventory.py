"""What a host is and has, as it reports it."""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from fleet.model import Count, Record, Text

GPUS_MAX = 1024
"""Of one host, MIG instances counted one by one."""


Port = Annotated[int, Field(ge=1, le=65535)]


class AcceleratorKind(StrEnum):
    CPU = "cpu"
    NVIDIA = "nvidia"
    AMD = "amd"
    ASCEND = "ascend"
    HYGON = "hygon"
    MTHREADS = "mthreads"
    ILUVATAR = "iluvatar"
    CAMBRICON = "cambricon"
    METAX = "metax"
    APPLE = "apple"


class LinkType(StrEnum):
    """How two cards of one host reach each other, best first."""

    NVLINK = "nvlink"
    """Or the vendor's own: XGMI, HCCS, MTLink, MLU-Link, MetaXLink."""
    PIX = "pix"
    """Through PCIe switches only."""
    PHB = "phb"
    """Through one PCIe host bridge."""
    NODE = "node"
    """Through several host bridges of one NUMA node."""
    SYS = "sys"
    """Across NUMA nodes."""


class Link(Record):
    peer: Text
    """UUID of the other card."""
    type: LinkType
    count: int = Field(default=0, ge=0)
    """Active direct links; 0: none, or not told."""


class DeviceIds(Record):
    """What a container must be given to have exactly this card. None: this vendor has no such number."""

    minor: int | None = None
    """NVIDIA: ``/dev/nvidia<minor>``; Iluvatar: ``/dev/iluvatar<minor>``; Cambricon: ``/dev/cambricon_dev<minor>``."""
    card: int | None = None
    """``/dev/dri/card<card>``."""
    render: int | None = None
    """``/dev/dri/renderD<render>``."""
    physical_id: int | None = None
    """Ascend: ``/dev/davinci<physical_id>``; not the logic id, which is ``Gpu.index``."""


class Gpu(Record):
    """A card, or one chip of a card with several, or one MIG instance: what a replica can be given on its own.

    A card that is cut into MIG instances is listed with ``partitioned`` and no memory; each instance follows it.
    """

    uuid: Text
    """Of the vendor where it has one; else made of the host and what tells the card from the others."""
    kind: AcceleratorKind
    name: Text
    memory_bytes: Count
    index: int = Field(ge=0, le=10_000)
    """By which the vendor's driver counts; it changes when a card is lost. MIG instances: that of their card."""
    healthy: bool = True
    reason: Text = ""
    """Why it is not healthy."""
    compute_capability: str = ""
    """NVIDIA: ``9.0``; others: what their compilers call it, e.g. ``gfx942`` or ``910B2``."""
    driver_version: str = ""
    runtime_version: str = ""
    """The newest CUDA that the driver runs; the ROCm, CANN, DTK, MUSA, CoreX, Neuware or MACA that is installed."""
    pci_address: str = ""
    """``0000:3b:00.0``"""
    numa_node: int | None = Field(default=None, ge=0, le=10_000)
    device: DeviceIds = DeviceIds()
    parent_uuid: str = ""
    """Of the card, if this is a MIG instance."""
    mig_profile: str = ""
    """``1g.10gb``"""
    partitioned: bool = False
    """Cut into MIG instances, which are used instead of it."""
    unified: bool = False
    """Its memory is the machine's RAM."""
    links: tuple[Link, ...] = Field(default=(), max_length=GPUS_MAX)

    def identity(self) -> tuple[object, ...]:
        """What claims on it rely on."""
        return (self.uuid, self.memory_bytes, self.healthy, self.partitioned)


class EngineBuild(Record):
    """An engine that this host can run."""

    engine: str
    version: str
    accelerators: tuple[AcceleratorKind, ...] = (AcceleratorKind.CPU,)
    origin: str = "pypi"
    """``pypi``: installed on demand; ``image``: in a container; otherwise the path of the binary."""
    image: str = ""
    """Of ``image``: which."""


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
    gpus: tuple[Gpu, ...] = Field(default=(), max_length=GPUS_MAX)
    engines: tuple[EngineBuild, ...] = ()
    runtimes: tuple[str, ...] = ("process",)
    """What engines can run in here: ``process``, ``docker``."""
    labels: dict[str, str] = {}
    vram_reserved_bytes: Count = 0
    """Memory of each GPU that placement leaves alone, as set on the host."""
    port_range: tuple[Port, Port] | None = None
    """First and last of the ports that placement may give to engines; None: engines pick theirs."""
    fabric_address: Text = ""
    """On the network that hosts of a gang share; empty: it takes part in none."""
    notes: tuple[Text, ...] = ()
    """What could not be found out, and why."""

    def same_hardware(self, other: "Inventory") -> bool:
        """Whether claims made against ``other`` still mean the same memory here."""
        return self.ram_allocatable_bytes == other.ram_allocatable_bytes and self._cards() == other._cards()

    def fingerprint(self) -> str:
        """Changes with whatever makes a host register anew; not with what each status says of it anyway."""
        told = self.model_dump(mode="json", exclude={"disk_free_bytes", "boot_id", "notes", "gpus"})
        gpus = sorted(self.gpus, key=lambda g: g.uuid)
        told["gpus"] = [g.model_dump(mode="json", exclude={"healthy", "reason"}) for g in gpus]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]

    def _cards(self) -> list[tuple[object, ...]]:
        return sorted(g.identity() for g in self.gpus)


class EngineRef(Record):
    """An engine on a host: at most one per instance is legitimate, the one with the current fence."""

    instance_id: Text
    fence: Count


class UnknownEngine(EngineRef):
    """An engine that should run on a host, which knows nothing of it."""

    host_id: str = ""
    """Empty: whoever said so did not know of gangs yet."""


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
    reach: Literal["auto", "direct", "tunnel"] = "auto"
    """How gateways are to reach it (``Settings.host_reach``)."""
