"""In which shapes a model fits onto which cards: only those that an answer needs are worked out. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from fleet.engines.adapter import EngineAdapter
from fleet.engines.spec import EngineSpec
from fleet.evaluation.scene import Cards
from fleet.placement.sized import fits_on
from fleet.sizing.facts import ModelFacts
from fleet.sizing.shapes import shapes
from fleet.sizing.sizing import Fit, GpuClass

_REMEMBERED = 4096
_SMALLEST_SHARE = 0.3
"""Of its weights as stored, what an engine may make of them at least: FP32 served in FP16, and layers left out."""

Fits = dict[GpuClass, tuple[Fit, ...]]


@dataclass(frozen=True)
class Fitting:
    """One model for one engine."""

    adapter: EngineAdapter
    spec: EngineSpec
    facts: ModelFacts
    version: str

    def on_one_host(self, cards: Iterable[Cards]) -> Fits:
        """Every shape that fits on one host; those over several hosts only where there is none."""
        found = {c.gpu: self._of(replace(c, most_hosts=1)) for c in cards}
        return {c.gpu: found[c.gpu] if _holds(found[c.gpu]) else self._of(c) for c in cards}

    def on_any_hosts(self, cards: Iterable[Cards]) -> Fits:
        return {c.gpu: self._of(c) for c in cards}

    def with_fewest_cards(self, cards: Iterable[Cards]) -> Fits:
        """The first shape that fits on each class, or the nearest miss."""
        return {c.gpu: self._first(c) for c in cards}

    def _first(self, cards: Cards) -> tuple[Fit, ...]:
        counts = self._counts(cards) if self.spec.placement.gpus_per_replica is None else []
        if not counts:
            return self._of(cards)
        least = self.facts.weight_bytes * _SMALLEST_SHARE / max(1, cards.allocatable)
        possible = [n for n in counts if n >= least] or counts[-1:]
        found = next((fits for n in possible if _holds(fits := self._of(cards, n))), None)
        return found[:1] if found else self._of(cards, possible[-1])

    def _counts(self, cards: Cards) -> list[int]:
        """Numbers of cards that the model can be spread over."""
        most = {"most_gpus_per_host": cards.most_per_host, "most_hosts": cards.most_hosts}
        return sorted({shape.gpus for shape in shapes(self.adapter.name, self.facts, **most)})

    def _of(self, cards: Cards, gpus: int | None = None) -> tuple[Fit, ...]:
        spec = self.spec
        if gpus is not None:
            wish = spec.placement.model_copy(update={"gpus_per_replica": gpus})
            spec = spec.model_copy(update={"placement": wish})
        return _remembered(_Key.of(self, spec, cards))


def _holds(fits: Sequence[Fit]) -> bool:
    return any(fit.asked is not None for fit in fits)


@dataclass(frozen=True)
class _Key:
    """All that a fit depends on, and what it is worked out from."""

    told: tuple[object, ...]
    fitting: Fitting
    spec: EngineSpec
    cards: Cards

    @classmethod
    def of(cls, fitting: Fitting, spec: EngineSpec, cards: Cards) -> "_Key":
        workload = fitting.adapter.workload(spec, fitting.facts)
        model = (fitting.facts.fingerprint, fitting.facts.task, fitting.adapter.name, fitting.version)
        where = (cards.for_sizing, spec.placement.gpus_per_replica)
        return cls((*model, workload.model_dump_json(), *where), fitting, spec, cards)

    def __hash__(self) -> int:
        return hash(self.told)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.told == other.told


@lru_cache(maxsize=_REMEMBERED)
def _remembered(key: _Key) -> tuple[Fit, ...]:
    fitting = key.fitting
    return fits_on(fitting.adapter, key.spec, fitting.facts, key.cards.for_sizing, version=fitting.version)
