"""From a model and the cards there are to what placement looks for: sizing and placement joined. Pure."""

from collections.abc import Callable, Sequence

from fleet.engines.adapter import EngineAdapter
from fleet.engines.catalog import adapter_for
from fleet.engines.spec import EngineSpec
from fleet.inventory import AcceleratorKind
from fleet.placement.needs import Need, Needs
from fleet.sizing.facts import Lora, ModelFacts
from fleet.sizing.fit import best_fit
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import Fit, GpuClass, Shape, Sizing, Workload

Lookup = Callable[[GpuClass, Shape], Measured | None]
TooBig = Callable[[GpuClass, Shape], int | None]
"""Booked bytes of each card with which such an engine ran out of memory at its start."""
ClassOfCards = tuple[GpuClass, int, int, int]
"""(class, bytes of each card that may be booked, most cards on one host, most hosts); kind CPU: the RAM of hosts."""
_PORTS, _PORTS_OF_GANG = 1, 2
"""A gang's members meet at a port of their own."""


def needs_for(
    spec: EngineSpec,
    facts: ModelFacts | None,
    classes: Sequence[ClassOfCards],
    *,
    version: str = "",
    measured: Lookup | None = None,
    too_big: TooBig | None = None,
    draft: ModelFacts | None = None,
    loras: tuple[Lora, ...] = (),
) -> Needs:
    """What one replica needs on each class, as ``version`` of the spec's engine is sized (empty: the spec's). Without
    ``facts`` only what a person named: else nothing is known."""
    if spec.memory_bytes is not None:
        return Needs.constant(spec.memory_bytes, spec.placement.gpus_per_replica, spec.ram_bytes or 0)
    if facts is None:
        return Needs()
    adapter, version = adapter_for(spec), version or spec.engine_version
    barred = {c: why for c, *_ in classes if (why := why_not_on(adapter, facts, version, c))}
    fits = {
        c[0]: fits_on(
            adapter, spec, facts, c, version=version, measured=measured, too_big=too_big, draft=draft, loras=loras
        )
        for c in classes
        if c[0] not in barred
    }
    return needs_of(spec, fits, barred)


def fits_on(
    adapter: EngineAdapter,
    spec: EngineSpec,
    facts: ModelFacts,
    cards: ClassOfCards,
    *,
    version: str,
    measured: Lookup | None = None,
    too_big: TooBig | None = None,
    draft: ModelFacts | None = None,
    loras: tuple[Lora, ...] = (),
) -> tuple[Fit, ...]:
    """All shapes on cards of one class that hold what is asked for; else the nearest miss."""
    gpu, allocatable, most_per_host, most_hosts = cards
    return best_fit(
        adapter.name,
        version,
        facts,
        _with_companions(adapter.workload(spec, facts), draft, loras),
        gpu,
        allocatable=allocatable,
        most_gpus_per_host=most_per_host,
        most_hosts=most_hosts,
        gpus=spec.placement.gpus_per_replica,
        measured=(lambda shape: measured(gpu, shape)) if measured is not None else None,
        too_big=(lambda shape: too_big(gpu, shape)) if too_big is not None else None,
    )


def _with_companions(workload: Workload, draft: ModelFacts | None, loras: tuple[Lora, ...]) -> Workload:
    """With what the files of a draft model and of adapters say."""
    if loras:
        workload = workload.model_copy(update={"loras": loras})
    if workload.draft is None or draft is None:
        return workload
    return workload.model_copy(update={"draft": workload.draft.model_copy(update={"facts": draft})})


def why_not_on(adapter: EngineAdapter, facts: ModelFacts, version: str, gpu: GpuClass) -> str:
    """Why the engine cannot run the model on such cards, whatever their memory; empty: it may."""
    if gpu.kind not in adapter.accelerators:
        return f"{adapter.name} does not run on {'CPUs' if gpu.kind is AcceleratorKind.CPU else f'{gpu.kind} cards'}"
    return adapter.supports(facts, version, gpu)


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
