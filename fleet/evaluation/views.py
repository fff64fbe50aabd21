"""From what was worked out to what is answered. Pure."""

from collections.abc import Sequence

from fleet.evaluation.answer import ClassView, Evaluation, FitView, MaxReplicas, Message, ModelSummary, Way
from fleet.evaluation.capacity import Capacity, Counted
from fleet.evaluation.case import Case
from fleet.evaluation.flags import flags_of
from fleet.evaluation.messages import filter_counts, shape_text
from fleet.evaluation.question import Question
from fleet.evaluation.scene import Cards
from fleet.inventory import AcceleratorKind
from fleet.placement.decision import Refusal
from fleet.sizing.facts import ModelFacts
from fleet.sizing.sizing import Fit, GpuClass, Sizing

_MOST_SHAPES = 4
"""That are shown of each class: those with the fewest cards. Room is counted for all."""


def answer(
    case: Case, *, fits: bool, views: list[ClassView], most: MaxReplicas, refusal: Refusal, told: list[Message]
) -> Evaluation:
    verdicts, conflicts = case.verdicts, _conflicts(case)
    nobody = [] if verdicts.can_run else [_no_engine(case)]
    return Evaluation(
        compatible=fits and verdicts.can_run,
        against=case.ground.against,
        replicas=case.question.wanted,
        messages=[*nobody, *told, *(Message(level="warning", text=text) for text in conflicts)],
        engine=verdicts.engine if verdicts.can_run else "",
        engine_version=verdicts.version if verdicts.can_run else "",
        max_replicas=most,
        model=summary(case.question, case.facts),
        engines=list(verdicts.all),
        classes=views,
        conflicts=conflicts,
        filters=filter_counts(refusal.filters),
    )


def class_view(case: Case, cards: Cards, found: Sequence[Counted], room: Capacity) -> ClassView:
    return ClassView(
        gpu=cards.gpu,
        gpus=cards.gpus,
        hosts=cards.hosts,
        most_gpus_per_host=cards.most_per_host,
        allocatable_bytes=cards.allocatable,
        why_not=case.barred.get(cards.gpu, ""),
        fits=[_fit_view(case, cards.gpu, fit, found) for fit in case.fits.get(cards.gpu, ())[:_MOST_SHAPES]],
        replicas_now=room.now,
        replicas_if_empty=room.empty,
    )


def summary(question: Question, facts: ModelFacts) -> ModelSummary:
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


def _fit_view(case: Case, gpu: GpuClass, fit: Fit, found: Sequence[Counted]) -> FitView:
    mine = next((c.capacity for c in found if c.need.shape == fit.shape), Capacity(0, 0))
    return FitView(
        shape=shape_text(fit.shape, gpu),
        gpus=fit.shape.gpus if gpu.kind is not AcceleratorKind.CPU else 0,
        hosts=fit.shape.hosts,
        tensor_parallel=fit.shape.tensor_parallel,
        pipeline_parallel=fit.shape.pipeline_parallel,
        minimum=_way(case, gpu, fit.minimum, told=fit.asked is None),
        asked=_way(case, gpu, fit.asked, told=True),
        full_card=_way(case, gpu, fit.full_card, told=False),
        limit=fit.limit,
        remedy=fit.remedy,
        longest_context=fit.longest_context,
        warnings=list(fit.warnings),
        replicas_now=mine.now,
        replicas_if_empty=mine.empty,
    )


def _way(case: Case, gpu: GpuClass, sizing: Sizing | None, *, told: bool) -> Way | None:
    """``told``: with flags, which only the way that is taken needs."""
    if sizing is None:
        return None
    flags = flags_of(case.kind.adapter, case.kind.spec, case.facts, gpu, sizing) if told else []
    return Way.model_construct(**dict(sizing), flags=flags)


def _no_engine(case: Case) -> Message:
    told = "; ".join(f"{v.engine}: {', '.join(v.reasons)}" for v in case.verdicts.all if v.reasons)
    return Message(level="problem", text=f"no engine can run it: {told}")


def _conflicts(case: Case) -> list[str]:
    args = case.question.spec.engine_args
    return [
        f"spec.engine_args.{n} ({args[n]!r}): {how}" for n, how in case.kind.adapter.conflicts(case.kind.spec).items()
    ]
