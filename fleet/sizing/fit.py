"""Does a model fit onto cards of one class in one shape, and what is booked for it. Pure; see ``docs/sizing.md``."""

from collections.abc import Callable
from dataclasses import replace

from fleet.sizing.division import doubts, refusal
from fleet.sizing.facts import ModelFacts
from fleet.sizing.measured import Measured
from fleet.sizing.needs import Question
from fleet.sizing.remedy import limit_of, remedy_of
from fleet.sizing.shapes import shapes
from fleet.sizing.sizing import Fit, GpuClass, Shape, Workload
from fleet.sizing.solve import Plan

Lookup = Callable[[Shape], Measured | None]
TooBig = Callable[[Shape], int | None]

_WHOLE = 1 << 31
"""More layers than any model has."""


def fit(  # noqa: PLR0917
    engine: str,
    version: str,
    facts: ModelFacts,
    workload: Workload,
    gpu: GpuClass,
    shape: Shape,
    *,
    allocatable: int | None = None,
    measured: Measured | None = None,
    too_big: int | None = None,
) -> Fit:
    """``allocatable``: bytes of each card (of RAM, on CPUs) that may be booked; None: all of it. ``too_big``: bytes
    with which the same already ran out of memory at its start; what is booked is then more, or it does not fit.

    ``engine`` may be any name: those that are not known are sized by ``fleet.sizing.terms_custom``.
    """
    plan = _plan(Question(engine, version, facts, workload, gpu, shape, measured or Measured(), too_big), allocatable)
    fitting = _fit(plan)
    return fitting if fitting.asked is not None else _explained(plan, fitting)


def best_fit(
    engine: str,
    version: str,
    facts: ModelFacts,
    workload: Workload,
    gpu: GpuClass,
    *,
    allocatable: int | None = None,
    most_gpus_per_host: int,
    most_hosts: int = 1,
    gpus: int | None = None,
    measured: Lookup | None = None,
    too_big: TooBig | None = None,
    explain: bool = True,
) -> tuple[Fit, ...]:
    """The fits of all shapes in which the asked workload runs: whole on cards first, then fewest GPUs, then fewest
    hosts. Where it runs in none: the one that comes closest, with its limit and remedy (without ``explain``, which is
    quicker by far, just that). Empty: no shape at all."""
    fits, failed = [], []
    for shape in shapes(engine, facts, most_gpus_per_host=most_gpus_per_host, most_hosts=most_hosts, gpus=gpus):
        known = measured(shape) if measured is not None else None
        ran_out = too_big(shape) if too_big is not None else None
        question = Question(engine, version, facts, workload, gpu, shape, known or Measured(), ran_out)
        plan = _plan(question, allocatable)
        found = _fit(plan)
        if found.asked is not None:
            fits.append(found)
        else:
            failed.append((plan, found))
    if fits or not failed:
        return tuple(sorted(fits, key=_preference))
    closest = max(failed, key=lambda pair: _closeness(pair[1]))
    return (_explained(*closest) if explain else closest[1],)


def _plan(question: Question, allocatable: int | None) -> Plan:
    whole = question.gpu.memory_bytes
    return Plan(question, whole if allocatable is None else max(0, min(allocatable, whole)))


def _fit(plan: Plan) -> Fit:
    facts, shape = plan.question.facts, plan.question.shape
    refused = "" if plan.question.engine == "llama_cpp" else refusal(facts, shape)
    if refused:
        return Fit(shape=shape, limit=refused)
    plan = _over_hosts_in_ram(plan)
    asked = plan.asked()
    if asked is None:
        plan = _partly_offloaded(plan) or plan
        asked = plan.asked()
    return Fit.model_construct(
        shape=shape,
        minimum=plan.minimum(),
        asked=asked,
        full_card=plan.full_card(),
        limit="",
        remedy="",
        longest_context=plan.longest_context,
        warnings=_warnings(plan),
    )


def _explained(plan: Plan, fitting: Fit) -> Fit:
    limit = fitting.limit or limit_of(plan)
    return fitting.model_copy(update={"limit": limit, "remedy": remedy_of(plan)})


def _over_hosts_in_ram(plan: Plan) -> Plan:
    """llama.cpp lends the RAM of other hosts as if they were cards: the leader keeps as many layers as each of them."""
    question = plan.question
    shape, layers = question.shape, question.facts.layers_total
    if question.engine != "llama_cpp" or not question.on_cpu or shape.hosts == 1:
        return plan
    given = question.workload.gpu_layers
    return replace(plan, gpu_layers=layers * (shape.hosts - 1) // shape.hosts if given is None else given)


def _partly_offloaded(plan: Plan) -> Plan | None:
    """llama.cpp: the same with as many layers on the cards as fit; None: not one does, or it is not to be chosen."""
    question = plan.question
    if question.engine != "llama_cpp" or question.on_cpu or question.workload.gpu_layers is not None:
        return None
    low, high = 0, question.facts.layers_total + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = replace(plan, gpu_layers=middle).asked() is not None
        low, high = (middle, high) if fits else (low, middle)
    return replace(plan, gpu_layers=low) if low else None


def _warnings(plan: Plan) -> tuple[str, ...]:
    question = plan.question
    facts, load = question.facts, question.workload
    found = list(doubts(facts, question.shape)) if question.engine != "llama_cpp" else []
    if load.context is not None and facts.context and load.context > facts.context:
        found.append(f"the model was made for {facts.context:,} tokens, not for {load.context:,}")
    if plan.gpu_layers is not None and not question.on_cpu:
        found.append(f"only {plan.gpu_layers} of {facts.layers_total + 1} layers fit onto the GPU: slow")
    if load.draft is not None and load.draft.method == "mtp" and not facts.mtp_layers:
        found.append("the model has no layers for multi-token prediction")
    return tuple(found)


def _preference(fitting: Fit) -> tuple[int, int, int]:
    """Layers that stay in RAM cost more speed than anything else."""
    offloaded = fitting.asked.gpu_layers if fitting.asked is not None else None
    return -_WHOLE if offloaded is None else -offloaded, fitting.shape.gpus, fitting.shape.hosts


def _closeness(fitting: Fit) -> tuple[bool, bool, int, int]:
    return (
        fitting.minimum is not None,
        fitting.longest_context > 0,
        fitting.longest_context,
        0 if fitting.limit else fitting.shape.gpus,
    )
