"""A fleet that somebody describes instead of owning it: hosts and cards by type and number. Pure.

The same JSON serves ``POST /api/v1/evaluations`` (``against.inventory``) and ``holdfast evaluate --inventory FILE``.
"""

from collections import Counter
from typing import Annotated, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from fleet.catalog.gpu_models import GpuModel, gpu_model, similar
from fleet.engines.catalog import ADAPTERS
from fleet.inventory import AcceleratorKind, EngineBuild
from fleet.model import Wire
from fleet.placement.view import GpuView, HostView
from fleet.sizing.sizing import GpuClass
from fleet.specs import Labels, Vendor

GIB = 1 << 30
MOST_HOSTS = 2000
"""All entries together, each times its ``count``."""
MOST_GPUS = 16_000
_NVLINK, _NODE = 5, 40
"""Distances, as ``GpuView.links`` counts them."""

HostName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
GpuName = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Capability = Annotated[str, StringConstraints(max_length=16, pattern=r"^[A-Za-z0-9.]*$")]


class DeclaredGpus(Wire):
    """Cards of one host that are the same."""

    type: GpuName
    """``H100``, ``RTX 4090``, ``NVIDIA L40S``, …: of a type that Holdfast knows, ``count`` is all that must be added.
    Of another, say ``memory_gib``, ``vendor`` and ``compute_capability``, too."""
    count: int = Field(ge=1, le=64)
    memory_gib: float | None = Field(default=None, gt=0, le=4096, allow_inf_nan=False)
    """Of each, as the vendor's tool says; unset: that of the type."""
    used_gib: float = Field(default=0, ge=0, le=4096, allow_inf_nan=False)
    """Of each, by whatever runs there already."""
    vendor: Vendor | None = None
    compute_capability: Capability = ""
    """NVIDIA: ``9.0``; others: ``gfx942``, ``910B2``, …"""
    nvlink: bool | None = None
    """They reach each other over NVLink or the vendor's own kind of it; unset: as the type usually does."""

    @field_validator("type")
    @classmethod
    def _is_not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("name the type of the cards, e.g. H100")
        return value

    @model_validator(mode="after")
    def _is_known_or_described(self) -> Self:
        missing = [f for f in ("memory_gib", "vendor", "compute_capability") if not getattr(self, f)]
        if self.model is None and missing:
            near = similar(self.type)
            meant = f"one of {', '.join(near)} may be meant; else " if near else ""
            raise ValueError(f"type: {self.type!r} is not known: {meant}add {', '.join(missing)}")
        if self.used_gib * GIB > self.gpu_class.memory_bytes:
            raise ValueError(f"used_gib: more than the card has ({self.gpu_class.memory_bytes / GIB:.1f} GiB)")
        return self

    @property
    def model(self) -> GpuModel | None:
        return gpu_model(self.type)

    @property
    def gpu_class(self) -> GpuClass:
        model, size = self.model, self.memory_gib
        memory = round(size * GIB) if size else model.memory_bytes if model else 0
        kind = AcceleratorKind(self.vendor) if self.vendor else model.vendor if model else AcceleratorKind.NVIDIA
        return GpuClass(
            kind=kind,
            name=model.reported_as if model else self.type,
            memory_bytes=memory,
            compute_capability=self.compute_capability or (model.compute_capability if model else ""),
            unified=kind is AcceleratorKind.APPLE,
        )

    @property
    def linked(self) -> bool:
        """Over NVLink and its kin."""
        return self.nvlink if self.nvlink is not None else bool(self.model and self.model.nvlink)


class DeclaredEngine(Wire):
    engine: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")]
    version: Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9.+_-]*$")] = ""
    """Empty: the one that Holdfast would install."""


class DeclaredHosts(Wire):
    """One host, or several that are the same."""

    name: HostName
    count: int = Field(default=1, ge=1, le=MOST_HOSTS)
    """So many hosts; of several, each is called ``<name>-<number>``."""
    ram_gib: float | None = Field(default=None, gt=0, le=65_536, allow_inf_nan=False)
    """That engines may take, of each host; unset: twice the memory of its cards, but at least 64."""
    labels: Labels = Field(default_factory=dict)
    gpus: list[DeclaredGpus] = Field(default_factory=list, max_length=16)
    engines: list[DeclaredEngine] | None = Field(default=None, max_length=16)
    """What the hosts can run; unset: every engine for which they have cards."""


class DeclaredInventory(Wire):
    """``{"hosts": [{"name": "a", "count": 2, "gpus": [{"type": "H100", "count": 8}]}]}``"""

    hosts: list[DeclaredHosts] = Field(min_length=1, max_length=MOST_HOSTS)

    @field_validator("hosts")
    @classmethod
    def _is_one_fleet(cls, hosts: list[DeclaredHosts]) -> list[DeclaredHosts]:
        names = [name for h in hosts for name in _names(h)] if sum(h.count for h in hosts) <= MOST_HOSTS else []
        if not names:
            raise ValueError(f"more than {MOST_HOSTS} hosts: describe a part of the fleet")
        name, times = Counter(names).most_common(1)[0]
        if times > 1:
            raise ValueError(f"two hosts are called {name!r}: give each a name of its own")
        if sum(h.count * g.count for h in hosts for g in h.gpus) > MOST_GPUS:
            raise ValueError(f"more than {MOST_GPUS} cards: describe a part of the fleet")
        return hosts


def every_engine() -> tuple[EngineBuild, ...]:
    """As Holdfast would install them, on whatever they run on. The build for CPUs of an engine is another one."""
    return tuple(
        EngineBuild(
            engine=adapter.name,
            version=adapter.default_version,
            accelerators=tuple(
                sorted(adapter.accelerators - ({AcceleratorKind.CPU} if adapter.name == "vllm" else set()))
            ),
        )
        for adapter in ADAPTERS.values()
        if adapter.default_version
    )


def hosts_of(inventory: DeclaredInventory, offered: tuple[EngineBuild, ...]) -> tuple[HostView, ...]:
    """The described hosts as placement sees them. ``offered``: engines that hosts have whose engines are not named."""
    return tuple(_host(entry, name, offered) for entry in inventory.hosts for name in _names(entry))


def _names(entry: DeclaredHosts) -> list[str]:
    return [entry.name] if entry.count == 1 else [f"{entry.name}-{n}" for n in range(1, entry.count + 1)]


def _host(entry: DeclaredHosts, name: str, offered: tuple[EngineBuild, ...]) -> HostView:
    ram = round((entry.ram_gib or _usual_ram_gib(entry)) * GIB)
    return HostView(
        host_id=name,
        name=name,
        generation=1,
        labels=dict(entry.labels),
        ram_free_bytes=ram,
        ram_total_bytes=ram,
        gpus=_cards(entry, name),
        engines=_builds(entry, offered),
        replicas_of_deployment=0,
        model=None,
        runtimes=("process", "docker"),
        fabric_address=name,
    )


def _usual_ram_gib(entry: DeclaredHosts) -> float:
    on_cards = sum(group.count * group.gpu_class.memory_bytes for group in entry.gpus)
    return max(64.0, 2 * on_cards / GIB)


def _builds(entry: DeclaredHosts, offered: tuple[EngineBuild, ...]) -> tuple[EngineBuild, ...]:
    if entry.engines is None:
        return offered
    known = {build.engine: build for build in offered}
    named = ((e, known.get(e.engine)) for e in entry.engines)
    return tuple(b.model_copy(update={"version": e.version or b.version}) for e, b in named if b is not None)


def _cards(entry: DeclaredHosts, host: str) -> tuple[GpuView, ...]:
    """Each group of equal cards is linked within itself; cards of different groups are as far as NUMA nodes."""
    groups: list[tuple[DeclaredGpus, list[str]]] = []
    index = 0
    for group in entry.gpus:
        groups.append((group, [f"{host}/gpu{n}" for n in range(index, index + group.count)]))
        index += group.count
    found = (card for group, uuids in groups for card in _group(group, uuids))
    return tuple(found)


def _group(group: DeclaredGpus, uuids: list[str]) -> list[GpuView]:
    distance = _NVLINK if group.linked else _NODE
    gpu_class, used = group.gpu_class, round(group.used_gib * GIB)
    return [
        GpuView(
            uuid=uuid,
            free_bytes=gpu_class.memory_bytes - used,
            total_bytes=gpu_class.memory_bytes,
            kind=gpu_class.kind,
            name=gpu_class.name,
            compute_capability=gpu_class.compute_capability,
            unified=gpu_class.unified,
            index=int(uuid.rsplit("gpu", 1)[1]),
            links=tuple((peer, distance) for peer in uuids if peer != uuid),
        )
        for uuid in uuids
    ]
