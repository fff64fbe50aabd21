"""From a kind of replica and the cards there are to what placement looks for: sizing and placement joined. Pure."""

from collections.abc import Sequence

from fleet.engines.spec import EngineSpec
from fleet.inventory import AcceleratorKind
from fleet.placement.kind import ClassOfCards, ReplicaKind
from fleet.placement.needs import Need, Needs
from fleet.sizing.sizing import Fit, GpuClass, Sizing

_PORTS, _PORTS_OF_GANG = 1, 2
"""A gang's members meet at a port of their own."""


def needs_for(kind: ReplicaKind, classes: Sequence[ClassOfCards]) -> Needs:
    """What one replica needs on each class."""
    barred = {c: why for c, *_ in classes if (why := kind.why_not_on(c))}
    return needs_of(kind.spec, {c[0]: kind.fits_on(c) for c in classes if c[0] not in barred}, barred)


def needs_of(spec: EngineSpec, fits: dict[GpuClass, tuple[Fit, ...]], barred: dict[GpuClass, str]) -> Needs:
    on_cards = {gpu: found for gpu, found in fits.items() if gpu.kind is not AcceleratorKind.CPU}
    asked = {gpu: tuple(f.asked for f in found if f.asked is not None) for gpu, found in on_cards.items()}
    missed = {gpu: _miss(found) for gpu, found in on_cards.items() if not asked[gpu]}
    in_ram = [f.asked for gpu, found in fits.items() if gpu not in on_cards for f in found if f.asked is not None]
    return Needs(
        by_class={gpu: tuple(_need(spec, s) for s in found) for gpu, found in asked.items() if found},
        cpu=tuple(_need(spec, s) for s in in_ram),
        why_not={**barred, **missed},
    )


def _need(spec: EngineSpec, sizing: Sizing) -> Need:
    ram = sizing.ram_bytes if spec.ram_bytes is None or not sizing.gpu_bytes else spec.ram_bytes
    ports = _PORTS if sizing.shape.hosts == 1 else _PORTS_OF_GANG
    return Need(sizing.shape, sizing.gpu_bytes, ram, sizing, ports)


def _miss(fits: tuple[Fit, ...]) -> str:
    if not fits:
        return "the model cannot be divided over the cards that one host has"
    return "; ".join(part for part in (fits[0].limit, fits[0].remedy) if part) or "it does not fit"
