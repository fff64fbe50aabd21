"""What placement answers: where a replica goes, or which filter took which hosts away. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from fleet.inventory import EngineBuild
from fleet.placement.needs import Need
from fleet.placement.request import Unplaceable
from fleet.placement.view import Occupant
from fleet.sizing.sizing import GpuClass


@dataclass(frozen=True)
class Seat:
    """What a replica gets on one host."""

    host_id: str
    generation: int
    """Of the host's inventory that it was decided on."""
    gpu_uuids: tuple[str, ...]
    """By rank."""
    gpu_bytes: int
    """On each of them."""
    ram_bytes: int
    ports: int
    replicas_there: int
    """Of the deployment, that were on the host then."""


@dataclass(frozen=True)
class Decision:
    instance_id: str
    deployment: str
    need: Need
    gpu_class: GpuClass | None
    """None: in RAM."""
    seats: tuple[Seat, ...]
    """One, or of a gang all, by rank; the first is the leader's."""
    labels: dict[str, str] = field(default_factory=dict)
    """Of the deployment."""
    build: EngineBuild | None = None
    """Of a gang: what all of its hosts can run it with."""

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(seat.host_id for seat in self.seats)

    def occupant(self, host_id: str) -> Occupant:
        """As a host's view tells of the replica. ``host_id``: one of ``hosts``."""
        seat = next(s for s in self.seats if s.host_id == host_id)
        return Occupant(
            instance_id=self.instance_id,
            deployment=self.deployment,
            gpu_bytes=tuple((uuid, seat.gpu_bytes) for uuid in seat.gpu_uuids),
            ram_bytes=seat.ram_bytes,
            hosts=len(self.seats),
        )


class Filter(StrEnum):
    """What takes hosts away, in the order in which it is asked. Each host counts for the first that takes it."""

    EXCLUDED = "excluded"
    LABELS = "labels"
    RESERVED = "reserved"
    RUNTIME = "runtime"
    IMAGE = "image"
    ENGINE = "engine"
    FILE = "file"
    AVOID = "avoid"
    CARDS = "cards"
    """It has none that take claims."""
    VENDORS = "vendors"
    GPU_TYPES = "gpu_types"
    GPU_IDS = "gpu_ids"
    ACCELERATOR = "accelerator"
    """Its engine build can use none of its cards."""
    MODEL = "model"
    """The model cannot run on cards of its classes."""
    COUNT = "count"
    """Too few cards, whatever is free on them."""
    FABRIC = "fabric"
    MEMORY = "memory"
    RAM = "ram"
    PORTS = "ports"
    GANG = "gang"
    """It could take a share, but too few others could."""


class Removed(NamedTuple):
    name: Filter
    hosts: int
    gpus: int
    """On those hosts."""


@dataclass(frozen=True)
class Refusal:
    reasons: tuple[str, ...]
    """For people: one for each host of a small fleet, else one for each cause."""
    filters: tuple[Removed, ...]
    """Hosts and cards add up to the whole fleet."""

    @property
    def unplaceable(self) -> Unplaceable:
        return Unplaceable(reasons=self.reasons)
