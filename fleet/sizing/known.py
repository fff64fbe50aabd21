"""What engines said of their memory when they started, and where they did not fit: better than any prediction. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from fleet.inventory import AcceleratorKind
from fleet.model import Record
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import GpuClass, Shape, Sizing

IN_RAM = GpuClass(kind=AcceleratorKind.CPU, memory_bytes=0)
"""All RAM is alike."""

Place = tuple[str, int, int]
"""(class of cards, tensor parallel, pipeline parallel)."""


class SizingKey(Record):
    """All that an engine's memory depends on, as far as it is known."""

    fingerprint: str
    """``ModelFacts.fingerprint``"""
    engine: str
    engine_version: str
    gpu_class: str
    """``class_text``"""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    batched_tokens: int
    sequences: int
    kv_dtype: str = "auto"


@dataclass(frozen=True)
class MeasuredSizing:
    key: SizingKey
    measured: Measured
    at: datetime
    instance_id: str


@dataclass(frozen=True)
class DidNotFit:
    key: SizingKey
    booked_bytes: int
    """Of each card (of RAM, on CPUs): the most with which its engine ran out of memory at its start."""
    at: datetime
    instance_id: str


@dataclass(frozen=True)
class Known:
    """Of one model with one version of one engine; latest first."""

    measured: tuple[MeasuredSizing, ...] = ()
    did_not_fit: tuple[DidNotFit, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.measured or self.did_not_fit)

    def with_kv(self, dtype: str) -> "Known":
        """Of engines whose KV cache is of that type."""
        measured = tuple(m for m in self.measured if m.key.kv_dtype == dtype)
        return Known(measured, tuple(f for f in self.did_not_fit if f.key.kv_dtype == dtype))


NOTHING_KNOWN = Known()


@dataclass(frozen=True)
class Said:
    """What of ``known`` is true of which way to run the model."""

    known: Known

    def measured(self, gpu: GpuClass, sizing: Sizing) -> Measured | None:
        """By an engine that was told the same batch: its peaks depend on that."""
        return self._measured.get((place_of(gpu, sizing.shape), sizing.batched_tokens, sizing.sequences))

    def too_big(self, gpu: GpuClass, shape: Shape) -> int | None:
        """Booked bytes that were not enough to start with; None once it has started there."""
        place = place_of(gpu, shape)
        return None if place in self._succeeded else self._too_big.get(place)

    def exact(self, gpu: GpuClass, ways: Iterable[Sizing]) -> dict[Place, Measured]:
        """Of ways that were found, those in which an engine has started before."""
        found = ((place_of(gpu, sizing.shape), self.measured(gpu, sizing)) for sizing in ways)
        return {place: measured for place, measured in found if measured is not None}

    @cached_property
    def _measured(self) -> dict[tuple[Place, int, int], Measured]:
        return {_batch(m.key): m.measured for m in reversed(self.known.measured)}

    @cached_property
    def _too_big(self) -> dict[Place, int]:
        most: dict[Place, int] = {}
        for failed in self.known.did_not_fit:
            place = _place(failed.key)
            most[place] = max(failed.booked_bytes, most.get(place, 0))
        return most

    @cached_property
    def _succeeded(self) -> frozenset[Place]:
        return frozenset(_place(m.key) for m in self.known.measured)


def class_text(card: GpuClass) -> str:
    """The same for cards that are the same to sizing."""
    parts = (card.kind.value, card.name, str(card.memory_bytes), card.compute_capability)
    return "/".join((*parts, "unified") if card.unified else parts)


def place_of(gpu: GpuClass, shape: Shape) -> Place:
    cards = IN_RAM if gpu.kind is AcceleratorKind.CPU else gpu
    return (class_text(cards), shape.tensor_parallel, shape.pipeline_parallel)


def _place(key: SizingKey) -> Place:
    return (key.gpu_class, key.tensor_parallel, key.pipeline_parallel)


def _batch(key: SizingKey) -> tuple[Place, int, int]:
    return (_place(key), key.batched_tokens, key.sequences)
