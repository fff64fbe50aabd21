"""What must hold for every model, card and workload."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.inventory import AcceleratorKind
from fleet.sizing.cards import GIB, MIB, seen_most
from fleet.sizing.facts import ModelFacts
from fleet.sizing.fit import fit
from fleet.sizing.sizing import Fit, GpuClass, Shape, Sizing, Workload
from tests.unit.sizing.checkpoints import facts_of
from tests.unit.sizing.numbers import A100, CPUS, H100, H200, L40S, RTX_4090

REPOS = (
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen3.5-35B-A3B",
    "openai/gpt-oss-20b",
    "google/gemma-3-27b-it",
    "BAAI/bge-m3",
    "openai/whisper-large-v3",
)
ENGINES = ("vllm", "sglang", "llama_cpp", "something-else")
facts = st.sampled_from(REPOS).map(facts_of)
engines = st.sampled_from(ENGINES)
versions = st.sampled_from(("0.11.0", "0.32.0"))
cards = st.sampled_from((RTX_4090, L40S, A100, H100, H200, CPUS))
contexts = st.integers(16, 150_000)
requests = st.integers(1, 64)
kv_dtypes = st.sampled_from(("auto", "fp8"))
slow = settings(max_examples=150, deadline=None)


def sizings(found: Fit) -> list[Sizing]:
    return [s for s in (found.minimum, found.asked, found.full_card) if s is not None]


@slow
@given(engines, versions, facts, cards, contexts, requests, kv_dtypes, st.integers(1, 160))
def test_what_is_booked_adds_up_and_is_never_more_than_may_be(
    engine: str,
    version: str,
    model: ModelFacts,
    gpu: GpuClass,
    context: int,
    concurrency: int,
    kv_dtype: str,
    allocatable: int,
) -> None:
    limit = allocatable * GIB
    load = Workload(context=context, concurrency=concurrency, kv_dtype=kv_dtype)
    found = fit(engine, version, model, load, gpu, Shape(), allocatable=limit)
    for sizing in sizings(found):
        terms, ram = sum(sizing.terms.values()), sum(sizing.ram_terms.values())
        if gpu.kind is AcceleratorKind.CPU:
            assert sizing.gpu_bytes == 0
            assert 0 <= sizing.ram_bytes - terms - ram < MIB
            assert sizing.ram_bytes <= limit
        else:
            assert terms == sizing.gpu_bytes <= min(limit, gpu.memory_bytes)
            assert 0 <= sizing.ram_bytes - ram < MIB
        assert all(size >= 0 for size in sizing.terms.values())
        assert sizing.context == context
        assert sizing.concurrency >= 1
    if found.asked is None:
        assert found.limit
        assert found.remedy
    else:
        assert found.minimum is not None
        assert found.asked.gpu_bytes + found.asked.ram_bytes >= found.minimum.gpu_bytes + found.minimum.ram_bytes
        assert found.longest_context >= context


@slow
@given(engines, versions, facts, contexts, contexts, requests, requests)
def test_more_context_or_requests_never_need_less(
    engine: str, version: str, model: ModelFacts, context: int, longer: int, concurrency: int, more: int
) -> None:
    (context, longer), (concurrency, more) = sorted((context, longer)), sorted((concurrency, more))
    less, greater = (
        fit(engine, version, model, Workload(context=c, concurrency=n), HUGE, Shape()).asked
        for c, n in ((context, concurrency), (longer, more))
    )
    assert greater is None or (less is not None and less.gpu_bytes <= greater.gpu_bytes)


HUGE = GpuClass(kind=AcceleratorKind.NVIDIA, memory_bytes=4000 * GIB)
"""On which nothing is split between card and RAM."""


@slow
@given(st.sampled_from(("vllm", "something-else")), versions, facts, contexts, requests, st.sampled_from((1, 2, 4, 8)))
def test_more_ranks_never_need_more_on_each(
    engine: str, version: str, model: ModelFacts, context: int, concurrency: int, ranks: int
) -> None:
    """From one to two cards only weights and KV cache: NCCL and the gathered logits of a small model may be more than
    what is saved."""
    load = Workload(context=context, concurrency=concurrency)
    few, many = (fit(engine, version, model, load, HUGE, Shape(tensor_parallel=n)).asked for n in (ranks, 2 * ranks))
    if few is None or many is None:
        return
    assert many.terms["weights"] <= few.terms["weights"]
    assert many.kv_bytes <= few.kv_bytes + many.terms["rounding"] + STEP
    if ranks > 1 or engine != "vllm":
        assert many.gpu_bytes <= few.gpu_bytes


STEP = HUGE.memory_bytes // 10_000
"""Shares have four decimals, and what is over goes to the KV cache."""


@slow
@given(engines, versions, facts, contexts, requests, st.integers(1, 80), st.integers(1, 80))
def test_more_memory_never_holds_less(
    engine: str, version: str, model: ModelFacts, context: int, concurrency: int, one: int, other: int
) -> None:
    less, more = sorted((one, other))
    load = Workload(context=context, concurrency=concurrency)
    small, large = (fit(engine, version, model, load, A100, Shape(), allocatable=a * GIB) for a in (less, more))
    assert small.asked is None or large.asked is not None
    assert small.minimum is None or large.minimum is not None
    if small.full_card is not None and small.full_card.gpu_layers is None:
        assert large.full_card is not None
        assert small.full_card.kv_bytes <= large.full_card.kv_bytes
        assert small.longest_context <= large.longest_context


@slow
@given(st.sampled_from(("vllm", "sglang")), facts, cards.filter(lambda gpu: gpu is not CPUS), contexts, requests)
def test_the_engine_takes_no_more_than_is_booked(
    engine: str, model: ModelFacts, gpu: GpuClass, context: int, concurrency: int
) -> None:
    """vLLM rounds up what its share of the card is."""
    found = fit(engine, "0.32.0", model, Workload(context=context, concurrency=concurrency), gpu, Shape())
    for sizing in sizings(found):
        assert sizing.utilization is not None
        outside = sum(sizing.terms.get(name, 0) for name in ("cuda_context", "nccl"))
        taken = -(-seen_most(gpu) * round(sizing.utilization * 10_000) // 10_000)
        outside = sum(sizing.terms.get(name, 0) for name in ("cuda_context", "nccl"))
        assert taken + outside <= sizing.gpu_bytes
