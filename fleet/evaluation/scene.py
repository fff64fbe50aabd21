"""Which cards a model is evaluated on: those of a fleet, or of machines that can be rented. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fleet.catalog.machines import Machine
from fleet.inventory import AcceleratorKind
from fleet.placement.fleet import Fleet
from fleet.placement.options import wished
from fleet.placement.table import Column
from fleet.sizing.sizing import GpuClass
from fleet.specs import PlacementSpec

MOST_HOSTS = 4
"""That one replica is spread over: more shapes are not tried."""


@dataclass(frozen=True)
class Cards:
    """All cards of one class; of kind CPU the RAM of hosts."""

    gpu: GpuClass
    allocatable: int
    """Bytes of the roomiest card (of RAM), if nothing of ours ran there."""
    gpus: int
    hosts: int
    most_per_host: int
    most_hosts: int
    """That one replica may span."""
    machines: tuple[Machine, ...] = ()
    """Of the catalog, with such cards."""

    @property
    def for_sizing(self) -> tuple[GpuClass, int, int, int]:
        return (self.gpu, self.allocatable, self.most_per_host, self.most_hosts)


def of_fleet(fleet: Fleet, wish: PlacementSpec) -> tuple[Cards, ...]:
    """Those that the spec allows, the roomiest first; last the RAM, if cards are not asked for."""
    classes = [c for c in fleet.present_classes() if wished(wish, c[1])] if wish.gpus_per_replica != 0 else []
    found = sorted((_of_class(fleet, wish, *c) for c in classes), key=_roomiest)
    return (*found, *([] if wish.gpus_per_replica or not len(fleet) else [_ram(fleet, wish)]))


def of_catalog(machines: Sequence[Machine], wish: PlacementSpec) -> tuple[Cards, ...]:
    by_class: dict[GpuClass, list[Machine]] = {}
    for machine in machines:
        if wished(wish, machine.gpu_class):
            by_class.setdefault(machine.gpu_class, []).append(machine)
    return tuple(sorted((_rentable(gpu, found, wish) for gpu, found in by_class.items()), key=_roomiest))


def _rentable(gpu: GpuClass, machines: list[Machine], wish: PlacementSpec) -> Cards:
    return Cards(
        gpu=gpu,
        allocatable=gpu.memory_bytes,
        gpus=0,
        hosts=0,
        most_per_host=max(m.gpus for m in machines),
        most_hosts=MOST_HOSTS if wish.multi_host else 1,
        machines=tuple(machines),
    )


def _of_class(fleet: Fleet, wish: PlacementSpec, code: int, gpu: GpuClass) -> Cards:
    rows = fleet.class_cards(code)
    hosts = np.unique(fleet.gpu["host"][rows])
    whole = np.bincount(fleet.gpu["host"][rows[~fleet.gpu["part"][rows]]], minlength=1)
    return Cards(
        gpu=gpu,
        allocatable=int(_claimable(fleet)[rows].max()),
        gpus=len(rows),
        hosts=len(hosts),
        most_per_host=max(1, int(whole.max(initial=0))),
        most_hosts=max(1, min(MOST_HOSTS, int(fleet.host["fabric"][hosts].sum()))) if wish.multi_host else 1,
    )


def _claimable(fleet: Fleet) -> Column:
    """Of each card, without what others use."""
    room: Column = fleet.gpu["total"] * (1 - np.minimum(1, fleet.gpu["foreign"]))
    return room


def _ram(fleet: Fleet, wish: PlacementSpec) -> Cards:
    most = int(fleet.host["ram_total"].max())
    return Cards(
        gpu=GpuClass(kind=AcceleratorKind.CPU, name="RAM", memory_bytes=most),
        allocatable=most,
        gpus=0,
        hosts=len(fleet),
        most_per_host=0,
        most_hosts=max(1, min(MOST_HOSTS, int(fleet.host["fabric"].sum()))) if wish.multi_host else 1,
    )


def _roomiest(cards: Cards) -> tuple[int, str]:
    return (-cards.gpu.memory_bytes, cards.gpu.name)
