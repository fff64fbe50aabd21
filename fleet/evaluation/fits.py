"""In which shapes a model fits onto which cards: only those that an answer needs are worked out. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fleet.evaluation.scene import Cards
from fleet.placement.kind import ReplicaKind
from fleet.sizing.facts import Format, Role
from fleet.sizing.shapes import shapes
from fleet.sizing.sizing import Fit, GpuClass

_PERHAPS_NOT_LOADED = (Role.VISION, Role.MTP)

Fits = dict[GpuClass, tuple[Fit, ...]]


@dataclass(frozen=True)
class Fitting:
    kind: ReplicaKind

    def on_one_host(self, cards: Iterable[Cards]) -> Fits:
        """Every shape that fits on one host; those over several hosts only where there is none."""
        found = {c.gpu: self._of(replace(c, most_hosts=1), explain=c.most_hosts == 1) for c in cards}
        return {c.gpu: found[c.gpu] if c.most_hosts == 1 or _holds(found[c.gpu]) else self._of(c) for c in cards}

    def on_any_hosts(self, cards: Iterable[Cards]) -> Fits:
        return {c.gpu: self._of(c) for c in cards}

    def with_fewest_cards(self, cards: Iterable[Cards]) -> Fits:
        """The first shape that fits on each class, or the nearest miss."""
        return {c.gpu: self._first(c) for c in cards}

    def _first(self, cards: Cards) -> tuple[Fit, ...]:
        counts = self._counts(cards) if self.kind.spec.placement.gpus_per_replica is None else []
        if not counts:
            return self._of(cards)
        possible = [n for n in counts if n * cards.allocatable >= self._least_bytes] or counts[-1:]
        found = next((fits for n in possible if _holds(fits := self._of(cards, n, explain=False))), None)
        return found[:1] if found else self._of(cards, possible[-1])

    def _counts(self, cards: Cards) -> list[int]:
        """Numbers of cards that the model can be spread over."""
        most = {"most_gpus_per_host": cards.most_per_host, "most_hosts": cards.most_hosts}
        return sorted({shape.gpus for shape in shapes(self.kind.adapter.name, self.kind.facts, **most)})

    @cached_property
    def _least_bytes(self) -> int:
        """That its weights take on cards at least: FP32 is served in 16 bit, llama.cpp may leave layers in RAM."""
        facts = self.kind.facts
        if facts.format is Format.GGUF or not facts.weights:
            return 0
        loaded = (w for w in facts.weights if w.role not in _PERHAPS_NOT_LOADED)
        return sum(w.bytes // 2 if w.dtype == "F32" else w.bytes for w in loaded)

    def _of(self, cards: Cards, gpus: int | None = None, *, explain: bool = True) -> tuple[Fit, ...]:
        return self.kind.fits_on(cards.for_sizing, gpus, explain=explain)


def _holds(fits: Sequence[Fit]) -> bool:
    return any(fit.asked is not None for fit in fits)
