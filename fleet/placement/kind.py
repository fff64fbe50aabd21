"""One kind of replica: a model in an engine, and in which shapes it fits onto which cards. Pure."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

from fleet.engines.adapter import EngineAdapter
from fleet.engines.catalog import adapter_for
from fleet.engines.spec import EngineSpec
from fleet.inventory import AcceleratorKind
from fleet.sizing.facts import Lora, ModelFacts
from fleet.sizing.fit import Lookup, TooBig, best_fit
from fleet.sizing.known import NOTHING_KNOWN, Known, Said, place_of
from fleet.sizing.sizing import Fit, GpuClass, Workload

_REMEMBERED = 4096

ClassOfCards = tuple[GpuClass, int, int, int]
"""(class, bytes of each card that may be booked, most cards on one host, most hosts); kind CPU: the RAM of hosts."""


@dataclass(frozen=True)
class ReplicaKind:
    """All that the memory of a replica depends on, but for the cards."""

    spec: EngineSpec
    facts: ModelFacts
    draft: ModelFacts | None = None
    """Of the model that guesses ahead; None: there is none, or it could not be read."""
    loras: tuple[Lora, ...] = ()
    """Of its adapters, as far as they could be read."""
    known: Known = NOTHING_KNOWN
    """What such engines said before."""

    @cached_property
    def adapter(self) -> EngineAdapter:
        return adapter_for(self.spec)

    def why_not_on(self, gpu: GpuClass) -> str:
        """Why the engine cannot run the model on such cards, whatever their memory; empty: it may."""
        if gpu.kind not in self.adapter.accelerators:
            cards = "CPUs" if gpu.kind is AcceleratorKind.CPU else f"{gpu.kind} cards"
            return f"{self.adapter.name} does not run on {cards}"
        return self.adapter.supports(self.facts, self.spec.engine_version, gpu)

    def fits_on(self, cards: ClassOfCards, gpus: int | None = None, *, explain: bool = True) -> tuple[Fit, ...]:
        """All shapes on cards of one class that hold what is asked for; else the nearest miss, with its limit and
        remedy only if ``explain``. ``gpus``: so many cards; None: as many as the spec names, or any number."""
        wanted = self.spec.placement.gpus_per_replica if gpus is None else gpus
        return _remembered(_Asked(self, cards, wanted, explain))

    @cached_property
    def workload(self) -> Workload:
        """With what the files of a draft model and of adapters say."""
        found = self.adapter.workload(self.spec, self.facts)
        if self.loras:
            found = found.model_copy(update={"loras": self.loras})
        if found.draft is None or self.draft is None:
            return found
        return found.model_copy(update={"draft": found.draft.model_copy(update={"facts": self.draft})})

    @cached_property
    def told(self) -> Known:
        """Of ``known`` what is of its kind."""
        return self.known.with_kv(self.spec.kv_cache.dtype)

    @cached_property
    def key(self) -> tuple[object, ...]:
        """The same where fits are."""
        model = (self.facts.fingerprint, self.facts.task, self.facts.format)
        draft = self.draft.fingerprint if self.draft is not None else ""
        load = self.workload.model_dump_json(exclude={"draft": {"facts"}})
        return (*model, draft, self.adapter.name, self.spec.engine_version, load, self.told)


@dataclass(frozen=True, eq=False)
class _Asked:
    """Equal where the answers are."""

    kind: ReplicaKind
    cards: ClassOfCards
    gpus: int | None
    explain: bool

    @cached_property
    def _key(self) -> tuple[object, ...]:
        return (self.kind.key, self.cards, self.gpus, self.explain)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self._key == other._key


@lru_cache(maxsize=_REMEMBERED)
def _remembered(asked: _Asked) -> tuple[Fit, ...]:
    said = Said(asked.kind.told)
    return _with_what_was_said(asked, said) if said.known else _predicted(asked, explain=asked.explain)


def _with_what_was_said(asked: _Asked, said: Said) -> tuple[Fit, ...]:
    """With what was measured in place of what is predicted for the same, and more than what was not enough."""
    gpu = asked.cards[0]
    ways = (f.asked for f in _predicted(asked, explain=False) if f.asked is not None)
    exact = said.exact(gpu, ways)
    return _best(
        asked,
        measured=lambda shape: exact.get(place_of(gpu, shape)),
        too_big=lambda shape: said.too_big(gpu, shape),
        explain=asked.explain,
    )


def _predicted(asked: _Asked, *, explain: bool) -> tuple[Fit, ...]:
    return _best(asked, measured=None, too_big=None, explain=explain)


def _best(asked: _Asked, *, measured: Lookup | None, too_big: TooBig | None, explain: bool) -> tuple[Fit, ...]:
    kind, (gpu, allocatable, most_per_host, most_hosts) = asked.kind, asked.cards
    return best_fit(
        kind.adapter.name,
        kind.spec.engine_version,
        kind.facts,
        kind.workload,
        gpu,
        allocatable=allocatable,
        most_gpus_per_host=most_per_host,
        most_hosts=most_hosts,
        gpus=asked.gpus,
        measured=measured,
        too_big=too_big,
        explain=explain,
    )
