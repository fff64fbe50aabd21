"""Why a workload does not fit, and the smallest change that would make it fit, for people. Pure."""

from dataclasses import replace

from fleet.sizing.cards import GIB
from fleet.sizing.division import refusal
from fleet.sizing.facts import ModelFacts
from fleet.sizing.sizing import Shape
from fleet.sizing.solve import Plan

_MORE_GPUS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
_RANKS_OF_HOST = 8
_QUANTISED = (("8 bit", 8.0), ("4 bit", 4.25))


def limit_of(plan: Plan) -> str:
    """What is needed, what may be used and the largest term."""
    question, needs, context = plan.question, plan.needs, plan.context
    share, budget = question.workload.utilization, needs.budget
    if share is not None and budget is not None and budget.taken(share) > plan.limit:
        return f"a utilization of {share} is {_gib(budget.taken(share))} of each GPU; {_gib(plan.limit)} may be booked"
    ran_out = question.too_big
    if ran_out is not None and replace(plan, question=replace(question, too_big=None)).asked() is not None:
        return (
            f"it ran out of memory at its start with {_gib(ran_out)}, and no more than {_gib(plan.limit)} may be booked"
        )
    requests = question.workload.concurrency or 1
    terms = {**needs.fixed(context), **needs.outside(context), "kv_cache": needs.kv(context, requests)}
    if question.on_cpu:
        terms |= {f"{name} (RAM)": size for name, size in needs.ram(context, requests).items()}
    need, largest = sum(terms.values()), max(terms, key=lambda name: terms[name])
    missing = max(0, terms["kv_cache"] - plan.room(context, requests))
    where = "of RAM" if question.on_cpu else "on each GPU" if question.shape.gpus > 1 else "on one GPU"
    return (
        f"needs {_gib(need)} {where} for {_requests(requests)} of {context:,} tokens, {_gib(need - missing)} can be "
        f"used; {_gib(missing)} are missing; most is for {largest.replace('_', ' ')}: {_gib(terms[largest])}"
    )


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def remedy_of(plan: Plan) -> str:
    """Fewer requests, a shorter context, an FP8 KV cache, more GPUs, quantised weights: the first that is enough."""
    if refusal(plan.question.facts, plan.question.shape) and plan.question.engine != "llama_cpp":
        return _divisible(plan.question.facts, plan.question.shape)
    return (
        _fewer_requests(plan)
        or _shorter_context(plan)
        or _smaller_kv(plan)
        or _more_gpus(plan)
        or _quantised(plan)
        or "none found: take larger GPUs or a smaller model"
    )


def _fits(plan: Plan) -> bool:
    return plan.asked() is not None


def _fewer_requests(plan: Plan) -> str:
    asked = plan.question.workload.concurrency or 1
    low, high = 0, asked
    while high - low > 1:
        middle = (low + high) // 2
        fits = _fits(plan.but(concurrency=middle))
        low, high = (middle, high) if fits else (low, middle)
    if not low:
        return ""
    return f"fewer requests at a time: {low} instead of {asked} (concurrency)"


def _shorter_context(plan: Plan) -> str:
    longest = min(plan.longest_context, plan.but(concurrency=1).longest_context)
    if not 0 < longest < plan.context:
        return ""
    single = " for one request at a time" if (plan.question.workload.concurrency or 1) > 1 else ""
    return f"a shorter context: {longest:,} tokens{single} instead of {plan.context:,} (max_model_len)"


def _smaller_kv(plan: Plan) -> str:
    small = "q8_0" if plan.question.engine == "llama_cpp" else "fp8"
    if plan.question.workload.kv_dtype not in ("auto", "f16", "bf16", "bfloat16", "float16"):
        return ""
    return f"a KV cache in 8 bit (kv_cache.dtype: {small})" if _fits(plan.but(kv_dtype=small)) else ""


def _more_gpus(plan: Plan) -> str:
    question = plan.question
    if question.on_cpu:
        return ""
    for gpus in _MORE_GPUS:
        for shape in _shapes_of(question.engine, gpus):
            larger = replace(plan, question=replace(question, shape=shape), gpu_layers=None)
            refused = question.engine != "llama_cpp" and refusal(question.facts, shape)
            if gpus > question.shape.gpus and not refused and _fits(larger):
                return f"more GPUs: {gpus} for each replica instead of {question.shape.gpus}"
    return ""


def _shapes_of(engine: str, gpus: int) -> tuple[Shape, ...]:
    if engine == "llama_cpp":
        return (Shape(pipeline_parallel=gpus),)
    if gpus <= _RANKS_OF_HOST:
        return (Shape(tensor_parallel=gpus),)
    hosts = gpus // _RANKS_OF_HOST
    return (Shape(tensor_parallel=_RANKS_OF_HOST, pipeline_parallel=hosts, hosts=hosts),)


def _quantised(plan: Plan) -> str:
    facts = plan.question.facts
    bits = facts.quantization.bits if facts.quantization is not None else 16.0
    for name, fewer in _QUANTISED:
        if fewer < bits and _fits(_with(plan, _scaled(facts, fewer / bits))):
            return f"quantised weights: a checkpoint in {name}"
    return ""


def _with(plan: Plan, facts: ModelFacts) -> Plan:
    return replace(plan, question=replace(plan.question, facts=facts))


def _scaled(facts: ModelFacts, by: float) -> ModelFacts:
    """As if every tensor were stored in fewer bits."""
    weights = tuple(w.model_copy(update={"bytes": int(w.bytes * by)}) for w in facts.weights)
    blocks = tuple(int(size * by) for size in facts.layer_bytes)
    sizes = {name: int(getattr(facts, name) * by) for name in ("file_bytes", "largest_file_bytes")}
    return facts.model_copy(update={"weights": weights, "layer_bytes": blocks, **sizes})


def _divisible(facts: ModelFacts, shape: Shape) -> str:
    fewer = (n for n in range(shape.tensor_parallel - 1, 0, -1) if not refusal(facts, Shape(tensor_parallel=n)))
    ranks = next(fewer, 0)
    return f"a tensor parallelism of {ranks}" if ranks else ""


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
