"""Would a model run, where, how often, and at what price? Pure: it changes and asks nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleet.catalog.machines import Machine
from fleet.engines.adapter import EngineAdapter
from fleet.engines.catalog import ADAPTERS, adapter_for
from fleet.engines.derive import engine_spec
from fleet.engines.spec import EngineSpec
from fleet.evaluation import scene
from fleet.evaluation.answer import Against, ClassView, Evaluation, FitView, MaxReplicas, Message, ModelSummary, Way
from fleet.evaluation.capacity import Capacity, Counted, Tally
from fleet.evaluation.engines import Verdicts, judge
from fleet.evaluation.flags import flags_of
from fleet.evaluation.messages import catalog_messages, filter_counts, fleet_messages, shape_text
from fleet.evaluation.question import Question
from fleet.evaluation.rent import Rental, rank, rentals
from fleet.evaluation.scene import Cards
from fleet.inventory import AcceleratorKind
from fleet.placement.builds import fitting
from fleet.placement.decision import Refusal
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Needs
from fleet.placement.place import place
from fleet.placement.request import PlacementRequest
from fleet.placement.search import Search
from fleet.placement.sized import fits_on, needs_for, needs_of, why_not_on
from fleet.rollouts import Template
from fleet.sizing.facts import ModelFacts
from fleet.sizing.sizing import Fit, GpuClass, Sizing

_NAME = "evaluated"
_MOST_SHAPES = 4
"""That are shown of each class: those with the fewest cards. Room is counted for all."""
_MOST_PLACED = 16
"""So many replicas are placed in thought, to say why one more finds no place."""


@dataclass(frozen=True)
class Ground:
    """What a model is evaluated against."""

    against: Against
    fleet: Fleet | None = None
    """None: machines that can be rented."""
    machines: tuple[Machine, ...] = ()
    files: frozenset[str] | None = None
    """Hosts that have the model's files; None: it can be brought to any."""


@dataclass(frozen=True)
class _Case:
    """All that the parts of an answer are made from."""

    question: Question
    facts: ModelFacts
    ground: Ground
    cards: tuple[Cards, ...]
    verdicts: Verdicts
    adapter: EngineAdapter
    spec: EngineSpec
    fits: dict[GpuClass, tuple[Fit, ...]]
    needs: Needs


def evaluate(question: Question, facts: ModelFacts, ground: Ground) -> Evaluation:
    case = _case(question, facts, ground)
    return _on_fleet(case, ground.fleet) if ground.fleet is not None else _on_catalog(case)


def _case(question: Question, facts: ModelFacts, ground: Ground) -> _Case:
    """Where no engine can run it, sizes are those of the nearest: they are of use all the same."""
    fleet, wish = ground.fleet, question.spec.placement
    cards = scene.of_fleet(fleet, wish) if fleet is not None else scene.of_catalog(ground.machines, wish)
    verdicts = judge(question.spec, facts, fleet, _refused(question))
    spec = _spec(question, verdicts.engine, verdicts.version)
    adapter, version = adapter_for(spec), verdicts.sized_as
    cards = tuple(c for c in cards if c.gpu.kind is not AcceleratorKind.CPU or _runs_on_cpus(spec, fleet))
    barred = {c.gpu: why for c in cards if (why := why_not_on(adapter, facts, version, c.gpu))}
    fits = {c.gpu: fits_on(adapter, spec, facts, c.for_sizing, version=version) for c in cards if c.gpu not in barred}
    needs = needs_for(spec, facts, ()) if spec.memory_bytes is not None else needs_of(spec, fits, barred)
    return _Case(question, facts, ground, cards, verdicts, adapter, spec, fits, needs)


def _runs_on_cpus(spec: EngineSpec, fleet: Fleet | None) -> bool:
    """Whether some host has a build for that."""
    builds = (b for software in (fleet.software if fleet else ()) for b in fitting(spec, software))
    return any(AcceleratorKind.CPU in b.accelerators for b in builds)


def _refused(question: Question) -> dict[str, list[str]]:
    args = question.spec.engine_args
    return {
        name: [f"{args[n]!r} cannot be given: {how}" for n, how in adapter.refuse(args).items()]
        for name, adapter in ADAPTERS.items()
    }


def _spec(question: Question, engine: str, version: str) -> EngineSpec:
    template = Template(revision=1, launch=1, spec=question.spec, engine=engine, engine_version=version)
    return engine_spec(_NAME, template)


# -- on hosts ----------------------------------------------------------------------------------------------------------


def _on_fleet(case: _Case, fleet: Fleet) -> Evaluation:
    request = PlacementRequest(
        instance_id=f"{_NAME}/1", deployment=_NAME, fence=1, spec=case.spec, labels=case.question.labels
    )
    search = Search(request, case.needs, fleet, files=case.ground.files)
    tally = Tally(search)
    views = [_on_hosts(case, cards, tally) for cards in case.cards]
    most = MaxReplicas(now=sum(v.replicas_now for v in views), if_empty=sum(v.replicas_if_empty for v in views))
    wanted = case.question.wanted
    refusal = _refusal(case, search, request, most.now or 0)
    return _answer(
        case,
        compatible=(most.now or 0) >= wanted,
        views=views,
        most=most,
        refusal=refusal,
        messages=fleet_messages(wanted, most, views, refusal.filters, refusal.reasons),
    )


def _on_hosts(case: _Case, cards: Cards, tally: Tally) -> ClassView:
    found = tally.in_ram() if cards.gpu.kind is AcceleratorKind.CPU else tally.on_cards(cards.gpu)
    fits = [_fit_view(case, cards.gpu, fit, found) for fit in case.fits.get(cards.gpu, ())[:_MOST_SHAPES]]
    best = max((c.capacity for c in found), key=lambda c: (c.now, c.empty), default=Capacity(0, 0))
    return _class_view(case, cards, fits, best)


def _refusal(case: _Case, search: Search, request: PlacementRequest, now: int) -> Refusal:
    """Why there is no room for another replica; empty where that is not asked."""
    wanted = case.question.wanted
    if now >= wanted or now > _MOST_PLACED:
        return Refusal((), ())
    trial, found = search.fleet.copy() if now else search.fleet, Refusal((), ())
    for _ in range(now + 1):
        decision = place(request, case.needs, trial, files=case.ground.files)
        if isinstance(decision, Refusal):
            return decision
        trial.take(decision)
    return found


# -- on machines that can be rented ------------------------------------------------------------------------------------


def _on_catalog(case: _Case) -> Evaluation:
    views = [_on_machines(case, cards) for cards in case.cards]
    views.sort(key=_price)
    return _answer(
        case,
        compatible=any(view.rentals for view in views),
        views=views,
        most=MaxReplicas(),
        refusal=Refusal((), ()),
        messages=catalog_messages(case.question.wanted, views),
    )


def _on_machines(case: _Case, cards: Cards) -> ClassView:
    fits = case.fits.get(cards.gpu, ())
    found = [r for fit in fits if fit.asked for r in rentals(cards.machines, fit.asked, case.question.wanted)]
    view = _class_view(
        case, cards, [_fit_view(case, cards.gpu, fit, ()) for fit in fits[:_MOST_SHAPES]], Capacity(0, 0)
    )
    return view.model_copy(update={"rentals": _cheapest_of_each(found)})


def _cheapest_of_each(found: Iterable[Rental]) -> list[Rental]:
    """Of each type of machine the shape that costs least on it."""
    best: dict[tuple[str, str], Rental] = {}
    for rental in found:
        known = best.get((rental.cloud, rental.instance_type))
        if known is None or rank(rental) < rank(known):
            best[rental.cloud, rental.instance_type] = rental
    return sorted(best.values(), key=rank)


def _price(view: ClassView) -> tuple[bool, tuple[object, ...]]:
    return (not view.rentals, rank(view.rentals[0]) if view.rentals else ())


# -- answers -----------------------------------------------------------------------------------------------------------


def _class_view(case: _Case, cards: Cards, fits: list[FitView], room: Capacity) -> ClassView:
    return ClassView(
        gpu=cards.gpu,
        gpus=cards.gpus,
        hosts=cards.hosts,
        most_gpus_per_host=cards.most_per_host,
        allocatable_bytes=cards.allocatable,
        why_not="" if cards.gpu in case.fits else case.needs.why_not.get(cards.gpu, ""),
        fits=fits,
        replicas_now=room.now,
        replicas_if_empty=room.empty,
    )


def _fit_view(case: _Case, gpu: GpuClass, fit: Fit, room: Sequence[Counted]) -> FitView:
    mine = next((c.capacity for c in room if c.need.shape == fit.shape), Capacity(0, 0))
    return FitView(
        shape=shape_text(fit.shape, gpu),
        gpus=fit.shape.gpus if gpu.kind is not AcceleratorKind.CPU else 0,
        hosts=fit.shape.hosts,
        tensor_parallel=fit.shape.tensor_parallel,
        pipeline_parallel=fit.shape.pipeline_parallel,
        minimum=_way(case, gpu, fit.minimum),
        asked=_way(case, gpu, fit.asked),
        full_card=_way(case, gpu, fit.full_card),
        limit=fit.limit,
        remedy=fit.remedy,
        longest_context=fit.longest_context,
        warnings=list(fit.warnings),
        replicas_now=mine.now,
        replicas_if_empty=mine.empty,
    )


def _way(case: _Case, gpu: GpuClass, sizing: Sizing | None) -> Way | None:
    if sizing is None:
        return None
    flags = flags_of(case.adapter, case.spec, case.facts, gpu, sizing)
    return Way.model_construct(**dict(sizing), flags=flags)


def _answer(
    case: _Case,
    *,
    compatible: bool,
    views: list[ClassView],
    most: MaxReplicas,
    refusal: Refusal,
    messages: list[Message],
) -> Evaluation:
    verdicts = case.verdicts
    nobody = [] if verdicts.can_run else [_no_engine(case)]
    conflicts = _conflicts(case)
    return Evaluation(
        compatible=compatible and verdicts.can_run,
        against=case.ground.against,
        replicas=case.question.wanted,
        messages=[*nobody, *messages, *(Message(level="warning", text=text) for text in conflicts)],
        engine=verdicts.engine if verdicts.can_run else "",
        engine_version=verdicts.version if verdicts.can_run else "",
        max_replicas=most,
        model=_summary(case.question, case.facts),
        engines=list(verdicts.all),
        classes=views,
        conflicts=conflicts,
        filters=filter_counts(refusal.filters),
    )


def _no_engine(case: _Case) -> Message:
    told = "; ".join(f"{v.engine}: {', '.join(v.reasons)}" for v in case.verdicts.all if v.reasons)
    return Message(level="problem", text=f"no engine can run it: {told}")


def _conflicts(case: _Case) -> list[str]:
    args = case.question.spec.engine_args
    return [f"spec.engine_args.{n} ({args[n]!r}): {how}" for n, how in case.adapter.conflicts(case.spec).items()]


def _summary(question: Question, facts: ModelFacts) -> ModelSummary:
    return ModelSummary(
        display=question.spec.model.display,
        architecture=facts.architecture,
        model_type=facts.model_type,
        task=facts.task,
        format=facts.format,
        quantization=facts.quantization.method if facts.quantization else "",
        dtype=facts.dtype,
        parameters=sum(w.elements for w in facts.weights),
        weight_bytes=facts.weight_bytes,
        file_bytes=facts.file_bytes,
        context=facts.context,
        fingerprint=facts.fingerprint,
        notes=list(facts.notes),
    )
