"""What all parts of an answer are made from: question, model, cards, engine, fits. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fleet.catalog.machines import Machine
from fleet.engines.catalog import ADAPTERS
from fleet.engines.derive import engine_spec
from fleet.engines.spec import EngineSpec
from fleet.evaluation import scene
from fleet.evaluation.answer import Against
from fleet.evaluation.engines import Verdicts, judge
from fleet.evaluation.fits import Fits, Fitting
from fleet.evaluation.question import Question
from fleet.evaluation.scene import Cards
from fleet.inventory import AcceleratorKind
from fleet.placement.builds import fitting
from fleet.placement.fleet import Fleet
from fleet.placement.guess import guessed
from fleet.placement.kind import ReplicaKind
from fleet.placement.needs import Needs
from fleet.placement.sized import needs_of
from fleet.rollouts import Template
from fleet.sizing.facts import Lora, ModelFacts
from fleet.sizing.known import NOTHING_KNOWN, Known
from fleet.sizing.sizing import GpuClass

NAME = "evaluated"
"""Stands for the deployment that there is not."""


@dataclass(frozen=True)
class Ground:
    """What a model is evaluated against."""

    against: Against
    fleet: Fleet | None = None
    """None: machines that can be rented."""
    machines: tuple[Machine, ...] = ()
    files: frozenset[str] | None = None
    """Hosts that have the model's files; None: it can be brought to any."""
    known: Mapping[tuple[str, str], Known] = field(default_factory=dict)
    """What engines that ran the model said of their memory, by engine and version."""
    draft: ModelFacts | None = None
    loras: tuple[Lora, ...] = ()
    """Of the draft model and the adapters, as far as the fleet's hosts could read them."""


@dataclass(frozen=True)
class Case:
    question: Question
    facts: ModelFacts
    ground: Ground
    cards: tuple[Cards, ...]
    verdicts: Verdicts
    kind: ReplicaKind
    barred: dict[GpuClass, str]
    """Classes on which the engine cannot run the model, whatever their memory."""
    fits: Fits
    needs: Needs

    def over_several_hosts(self) -> "Case":
        """With every shape that the spec allows."""
        return self.with_fits(self.fitting.on_any_hosts(self.open_cards))

    def with_fits(self, fits: Fits) -> "Case":
        return replace(self, fits=fits, needs=_needs(self.kind, fits, self.barred))

    @property
    def fitting(self) -> Fitting:
        return Fitting(self.kind)

    @property
    def open_cards(self) -> tuple[Cards, ...]:
        return tuple(c for c in self.cards if c.gpu not in self.barred)


def case_of(question: Question, facts: ModelFacts, ground: Ground) -> Case:
    """Where no engine can run it, sizes are those of the nearest: they are of use all the same."""
    fleet, wish = ground.fleet, question.spec.placement
    cards = scene.of_fleet(fleet, wish) if fleet is not None else scene.of_catalog(ground.machines, wish)
    verdicts = judge(question.spec, facts, fleet, _refused(question))
    spec = _spec(question, verdicts.engine, verdicts.version)
    known = ground.known.get((spec.engine, spec.engine_version), NOTHING_KNOWN)
    kind = ReplicaKind(spec, facts, ground.draft, ground.loras, known)
    cards = tuple(c for c in cards if c.gpu.kind is not AcceleratorKind.CPU or _runs_on_cpus(spec, fleet))
    barred = {c.gpu: why for c in cards if (why := kind.why_not_on(c.gpu))}
    bare = Case(question, facts, ground, cards, verdicts, kind, barred, {}, Needs())
    found = bare.fitting.on_one_host if fleet is not None else bare.fitting.with_fewest_cards
    return bare.with_fits(found(bare.open_cards))


def _needs(kind: ReplicaKind, fits: Fits, barred: dict[GpuClass, str]) -> Needs:
    """A person's own number of bytes goes before any prediction."""
    if kind.spec.memory_bytes is not None:
        return guessed(kind.spec, kind.facts.file_bytes)
    return needs_of(kind.spec, fits, barred)


def _runs_on_cpus(spec: EngineSpec, fleet: Fleet | None) -> bool:
    """Whether some host has a build for that."""
    builds = (b for software in (fleet.software if fleet else ()) for b in fitting(spec, software))
    return any(AcceleratorKind.CPU in b.accelerators for b in builds)


def _refused(question: Question) -> dict[str, list[str]]:
    args = question.spec.engine_args
    return {
        name: [f"spec.engine_args.{n}: {args[n]!r} cannot be given: {how}" for n, how in adapter.refuse(args).items()]
        for name, adapter in ADAPTERS.items()
    }


def _spec(question: Question, engine: str, version: str) -> EngineSpec:
    template = Template(revision=1, launch=1, spec=question.spec, engine=engine, engine_version=version)
    return engine_spec(NAME, template)
