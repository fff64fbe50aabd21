"""In which shapes a model fits onto which cards: only those that an answer needs are worked out. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from fleet.engines.adapter import EngineAdapter
from fleet.engines.spec import EngineSpec
from fleet.evaluation.scene import Cards
from fleet.sizing.facts import Format, ModelFacts, Role
from fleet.sizing.fit import best_fit
from fleet.sizing.shapes import shapes
from fleet.sizing.sizing import Fit, GpuClass, Workload

_REMEMBERED = 4096
_PERHAPS_NOT_LOADED = (Role.VISION, Role.MTP)

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
        found = {c.gpu: self._of(replace(c, most_hosts=1), explain=c.most_hosts == 1) for c in cards}
        return {c.gpu: found[c.gpu] if c.most_hosts == 1 or _holds(found[c.gpu]) else self._of(c) for c in cards}

    def on_any_hosts(self, cards: Iterable[Cards]) -> Fits:
        return {c.gpu: self._of(c) for c in cards}

    def with_fewest_cards(self, cards: Iterable[Cards]) -> Fits:
        """The first shape that fits on each class, or the nearest miss."""
        return {c.gpu: self._first(c) for c in cards}

    @cached_property
    def workload(self) -> Workload:
        return self.adapter.workload(self.spec, self.facts)

    @cached_property
    def told(self) -> tuple[object, ...]:
        """All of the model and the engine that fits depend on."""
        model = (self.facts.fingerprint, self.facts.task, self.facts.format)
        return (*model, self.adapter.name, self.version, self.workload.model_dump_json())

    def _first(self, cards: Cards) -> tuple[Fit, ...]:
        counts = self._counts(cards) if self._wish is None else []
        if not counts:
            return self._of(cards)
        possible = [n for n in counts if n * cards.allocatable >= self._least_bytes] or counts[-1:]
        found = next((fits for n in possible if _holds(fits := self._of(cards, n, explain=False))), None)
        return found[:1] if found else self._of(cards, possible[-1])

    def _counts(self, cards: Cards) -> list[int]:
        """Numbers of cards that the model can be spread over."""
        most = {"most_gpus_per_host": cards.most_per_host, "most_hosts": cards.most_hosts}
        return sorted({shape.gpus for shape in shapes(self.adapter.name, self.facts, **most)})

    @cached_property
    def _least_bytes(self) -> int:
        """That its weights take on cards at least: FP32 is served in 16 bit, llama.cpp may leave layers in RAM."""
        if self.facts.format is Format.GGUF or not self.facts.weights:
            return 0
        loaded = (w for w in self.facts.weights if w.role not in _PERHAPS_NOT_LOADED)
        return sum(w.bytes // 2 if w.dtype == "F32" else w.bytes for w in loaded)

    @property
    def _wish(self) -> int | None:
        return self.spec.placement.gpus_per_replica

    def _of(self, cards: Cards, gpus: int | None = None, *, explain: bool = True) -> tuple[Fit, ...]:
        return _remembered(_Asked(self, cards, self._wish if gpus is None else gpus, explain))


def _holds(fits: Sequence[Fit]) -> bool:
    return any(fit.asked is not None for fit in fits)


@dataclass(frozen=True, eq=False)
class _Asked:
    """Equal where the answers are."""

    fitting: Fitting
    cards: Cards
    gpus: int | None
    explain: bool

    @property
    def _key(self) -> tuple[object, ...]:
        return (self.fitting.told, self.cards.for_sizing, self.gpus, self.explain)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self._key == other._key


@lru_cache(maxsize=_REMEMBERED)
def _remembered(asked: _Asked) -> tuple[Fit, ...]:
    fitting, (gpu, allocatable, most_per_host, most_hosts) = asked.fitting, asked.cards.for_sizing
    return best_fit(
        fitting.adapter.name,
        fitting.version,
        fitting.facts,
        fitting.workload,
        gpu,
        allocatable=allocatable,
        most_gpus_per_host=most_per_host,
        most_hosts=most_hosts,
        gpus=asked.gpus,
        explain=asked.explain,
    )
