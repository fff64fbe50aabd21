"""What one replica needs on the cards there are, with what its like said of their memory before."""

from collections.abc import Sequence

from fleet.db import sizings
from fleet.db.session import Database
from fleet.db.start_facts import IN_RAM
from fleet.engines.spec import EngineSpec
from fleet.evaluation.scene import of_fleet
from fleet.inventory import AcceleratorKind
from fleet.placement.fleet import Fleet
from fleet.placement.guess import guessed
from fleet.placement.needs import Needs
from fleet.placement.sized import ClassOfCards, needs_for
from fleet.sizing.facts import Lora, ModelFacts
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import GpuClass, Shape, Sizing

Place = tuple[str, int, int]
"""(class of cards, tensor parallel, pipeline parallel)."""


class Sizer:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def needs(
        self,
        spec: EngineSpec,
        facts: ModelFacts | None,
        file_bytes: int,
        fleet: Fleet,
        *,
        draft: ModelFacts | None = None,
        loras: tuple[Lora, ...] = (),
    ) -> Needs:
        """``facts`` None: the model could not be read, and all that counts is its size. ``draft``: of the model that
        guesses ahead. ``loras``: of its adapters, as far as they could be read."""
        if spec.memory_bytes is not None or facts is None:
            return guessed(spec, file_bytes)
        classes = [cards.for_sizing for cards in of_fleet(fleet, spec.placement)]
        first = needs_for(spec, facts, classes, draft=draft, loras=loras)
        known = await self._database.aread(
            lambda s: sizings.known(s, facts.fingerprint, spec.engine, spec.engine_version)
        )
        if not known.measured and not known.did_not_fit:
            return first
        said = Said(spec, known)
        exact = _exact(classes, first, said)
        return needs_for(
            spec,
            facts,
            classes,
            measured=lambda gpu, shape: exact.get(_where(gpu, shape)),
            too_big=said.too_big,
            draft=draft,
            loras=loras,
        )


class Said:
    """What engines said of their memory before, for one spec."""

    def __init__(self, spec: EngineSpec, known: sizings.Known) -> None:
        mine = spec.kv_cache.dtype
        self._measured = {_batch(m.key): m.measured for m in reversed(known.measured) if m.key.kv_dtype == mine}
        self._too_big: dict[Place, int] = {}
        for failed in known.did_not_fit:
            if failed.key.kv_dtype == mine:
                place = _place(failed.key)
                self._too_big[place] = max(failed.booked_bytes, self._too_big.get(place, 0))
        self._succeeded = {_place(m.key) for m in known.measured if m.key.kv_dtype == mine}

    def measured(self, gpu: GpuClass, sizing: Sizing) -> Measured | None:
        """By an engine that was told the same batch: its peaks depend on that."""
        return self._measured.get((_where(gpu, sizing.shape), sizing.batched_tokens, sizing.sequences))

    def too_big(self, gpu: GpuClass, shape: Shape) -> int | None:
        """Booked bytes that were not enough to start with; None once it has started there."""
        place = _where(gpu, shape)
        return None if place in self._succeeded else self._too_big.get(place)


def _exact(classes: Sequence[ClassOfCards], first: Needs, said: Said) -> dict[Place, Measured]:
    """Of the ways that were found, those in which an engine has started before."""
    ways = [(gpu, need.sizing) for gpu, needs in first.by_class.items() for need in needs]
    ram = next((c[0] for c in classes if c[0].kind is AcceleratorKind.CPU), None)
    ways += [(ram, need.sizing) for need in first.cpu if ram is not None]
    return {
        _where(gpu, sizing.shape): found
        for gpu, sizing in ways
        if sizing is not None and (found := said.measured(gpu, sizing)) is not None
    }


def _where(gpu: GpuClass, shape: Shape) -> Place:
    cards = IN_RAM if gpu.kind is AcceleratorKind.CPU else gpu
    return (sizings.class_text(cards), shape.tensor_parallel, shape.pipeline_parallel)


def _place(key: sizings.SizingKey) -> Place:
    return (key.gpu_class, key.tensor_parallel, key.pipeline_parallel)


def _batch(key: sizings.SizingKey) -> tuple[Place, int, int]:
    return (_place(key), key.batched_tokens, key.sequences)
