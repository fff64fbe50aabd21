"""The memory model against every number that somebody measured, or that is known to the byte.

Measured on H100 with vLLM 0.11: loaded sizes, peaks and KV caches of the llm-d planner's profiles. Measured with vLLM
0.29 and 0.30: the page accounting, GLM-4.7-Flash's peak, the RTX 4090's longest context. The rest is arithmetic of the
same formulas, done once by hand.
"""

import pytest

from fleet.sizing import moments
from fleet.sizing.cards import GIB, KIB, default_batched_tokens, default_sequences, seen_least, seen_most
from fleet.sizing.facts import LayerKind, Layers, Mla, ModelFacts, Moe, State
from fleet.sizing.fit import fit
from fleet.sizing.kv import sequence_bytes, token_bytes
from fleet.sizing.measured import Measured
from fleet.sizing.moments import Step
from fleet.sizing.paging import paging
from fleet.sizing.sizing import GpuClass, Shape, Sizing, Workload
from fleet.sizing.weights import rank_weights
from tests.unit.sizing.checkpoints import facts_of
from tests.unit.sizing.numbers import A100, H100, H200, L40S, RTX_4090, stored_in

NEW, OLD = "0.32.0", "0.11.0"


# Weights


@pytest.mark.parametrize(
    ("repo", "gib"),
    [
        ("Qwen/Qwen3-0.6B", 1.12),
        ("Qwen/Qwen3-32B", 61.03),
        ("openai/gpt-oss-20b", 13.47),
        ("openai/gpt-oss-120b", 64.38),
        ("meta-llama/Llama-3.1-8B", 14.99),
    ],
)
def test_loaded_weights_are_as_measured(repo: str, gib: float) -> None:
    """Within 0.4 %, gpt-oss with its padded experts too. Without the rotary tables (10 to 32 MiB) the others would be
    0.1 to 1 % too low."""
    assert rank_weights(facts_of(repo), Shape()) / GIB == pytest.approx(gib, rel=0.004)


@pytest.mark.parametrize(
    ("repo", "stored"),
    [
        ("BAAI/bge-m3", 2_271_019_008),
        ("BAAI/bge-reranker-v2-m3", 2_271_023_108),
    ],
)
def test_fp32_checkpoints_are_served_in_16_bit(repo: str, stored: int) -> None:
    facts = facts_of(repo)
    assert rank_weights(facts, Shape()) == pytest.approx(stored / 2, rel=0.001)
    assert rank_weights(facts, Shape(), dtype="float32") == pytest.approx(stored, rel=0.001)


def test_whisper_is_as_large_as_its_file() -> None:
    assert rank_weights(facts_of("openai/whisper-large-v3"), Shape()) == pytest.approx(3_086_981_120, rel=0.001)


def test_glm_4_6_in_bf16_does_not_fit_onto_eight_a100() -> None:
    """657 GiB of weights: why the recipes for eight cards of 80 GB take FP8."""
    facts = facts_of("zai-org/GLM-4.6")
    assert rank_weights(facts, Shape()) / GIB == pytest.approx(657.14, rel=0.001)
    assert fit("vllm", NEW, facts, Workload(), A100, Shape(tensor_parallel=8)).minimum is None


# KV cache

KV = [
    # Bytes of a token: 16 bit, FP8, 16 bit on each of eight ranks; of 32,768 tokens: kept, paged by vLLM.
    ("Qwen/Qwen3-0.6B", 114_688, 57_344, 14_336, 3_758_096_384, 3_758_096_384),
    ("Qwen/Qwen3-8B", 147_456, 73_728, 18_432, 4_831_838_208, 4_831_838_208),
    ("Qwen/Qwen3-32B", 262_144, 131_072, 32_768, 8_589_934_592, 8_589_934_592),
    ("Qwen/Qwen3-30B-A3B", 98_304, 49_152, 24_576, 3_221_225_472, 3_221_225_472),
    ("Qwen/Qwen3-235B-A22B", 192_512, 96_256, 48_128, 6_308_233_216, 6_308_233_216),
    ("openai/gpt-oss-20b", 24_576, 12_288, 3_072, 808_427_520, 1_211_498_496),
    ("openai/gpt-oss-120b", 36_864, 18_432, 4_608, 1_212_641_280, 1_817_247_744),
    ("zai-org/GLM-4.5-Air", 188_416, 94_208, 23_552, 6_174_015_488, 6_174_015_488),
    ("zai-org/GLM-4.6", 376_832, 188_416, 47_104, 12_348_030_976, 12_348_030_976),
    ("deepseek-ai/DeepSeek-R1", 70_272, 35_136, 70_272, 2_302_672_896, 2_302_672_896),
    ("meta-llama/Llama-3.1-8B", 131_072, 65_536, 16_384, 4_294_967_296, 4_294_967_296),
    ("meta-llama/Llama-3.1-70B", 327_680, 163_840, 40_960, 10_737_418_240, 10_737_418_240),
    ("google/gemma-3-27b-it", 81_920, 40_960, 10_240, 3_120_136_192, 11_248_599_040),
    ("mistralai/Mistral-7B-v0.3", 131_072, 65_536, 16_384, 4_294_967_296, 4_294_967_296),
    ("mistralai/Mistral-Small-3.x-24B", 163_840, 81_920, 20_480, 5_368_709_120, 5_368_709_120),
    ("Qwen/Qwen2.5-VL-7B-Instruct", 57_344, 28_672, 14_336, 1_879_048_192, 1_879_048_192),
    ("Qwen/Qwen3-Next-80B-A3B", 24_576, 12_288, 12_288, 882_573_312, 986_185_728),
    ("Qwen/Qwen3.5-35B-A3B", 20_480, 10_240, 10_240, 735_477_760, 821_821_440),
    ("Qwen/Qwen3-1.7B", 114_688, 57_344, 14_336, 3_758_096_384, 3_758_096_384),
    ("Qwen/Qwen3-VL-8B-Instruct", 147_456, 73_728, 18_432, 4_831_838_208, 4_831_838_208),
    ("Qwen/Qwen3-Coder-480B-A35B-Instruct", 253_952, 126_976, 31_744, 8_321_499_136, 8_321_499_136),
    ("meta-llama/Llama-3.1-405B", 516_096, 258_048, 64_512, 16_911_433_728, 16_911_433_728),
    ("MiniMaxAI/MiniMax-M2.5", 253_952, 126_976, 31_744, 8_321_499_136, 8_321_499_136),
    ("moonshotai/Kimi-K2-Instruct", 70_272, 35_136, 70_272, 2_302_672_896, 2_302_672_896),
    ("zai-org/GLM-5", 89_856, 44_928, 89_856, 2_944_401_408, 2_944_401_408),
    ("deepseek-ai/DeepSeek-V3.2", 70_272, 35_136, 70_272, 2_302_672_896, 2_302_672_896),
    ("Qwen/Qwen3.5-397B-A17B", 30_720, 15_360, 15_360, 1_198_694_400, 1_416_560_640),
]


def growing(layers: tuple[Layers, ...], tensor_parallel: int = 1, dtype: str = "auto") -> int:
    """Bytes that one more token takes for as long as its request lives."""
    kept = (layer for layer in layers if layer.kind in (LayerKind.FULL, LayerKind.MLA))
    return int(sum(layer.count * token_bytes(layer, tensor_parallel, dtype) for layer in kept))


def without_indexer(facts: ModelFacts) -> tuple[Layers, ...]:
    return tuple(layer.model_copy(update={"indexer_bytes": 0}) for layer in facts.layers)


@pytest.mark.parametrize(("repo", "token", "fp8", "of_eight", "kept", "paged"), KV)
def test_kv_cache_to_the_byte(repo: str, token: int, fp8: int, of_eight: int, kept: int, paged: int) -> None:
    """Sparse attention's own cache is not part of these numbers, see below. Windows keep all but the
    token that is just computed."""
    layers = without_indexer(facts_of(repo))
    assert growing(layers) == token
    assert growing(layers, dtype="fp8") == fp8
    assert growing(layers, tensor_parallel=8) == of_eight
    assert sequence_bytes(layers, 32_768, in_flight=0) == kept
    assert paging(layers, in_flight=2 * 8192).request_bytes(32_768) == paged


@pytest.mark.parametrize(("repo", "indexer"), [("zai-org/GLM-5", 10_296), ("deepseek-ai/DeepSeek-V3.2", 8_052)])
def test_sparse_attention_keeps_132_bytes_more(repo: str, indexer: int) -> None:
    facts = facts_of(repo)
    assert growing(facts.layers) - growing(without_indexer(facts)) == indexer


def test_fp8_latents_take_656_bytes_in_their_own_layout() -> None:
    assert growing(facts_of("deepseek-ai/DeepSeek-R1").layers, dtype="fp8_ds_mla") == 61 * 656
    assert growing(facts_of("deepseek-ai/DeepSeek-V3.2").layers, dtype="fp8") == 61 * (656 + 132)


def hybrid(full: int, kv_heads: int, states: int, state: State) -> tuple[Layers, ...]:
    return (
        Layers(kind=LayerKind.FULL, count=full, kv_heads=kv_heads, key_dim=256, value_dim=256),
        Layers(kind=LayerKind.STATE, count=states, state=state),
    )


QWEN_3_8_27B = hybrid(16, 4, 48, State(conv_channels=10_240, conv_kernel=4, heads=48, key_dim=128, value_dim=128))
"""Not published with the trace; those of Qwen3.5-27B, with which it comes out to the byte."""
QWEN_3_6_35B_A3B = hybrid(10, 2, 30, State(conv_channels=8192, conv_kernel=4, heads=32, key_dim=128, value_dim=128))
"""As Qwen3.5-35B-A3B."""


@pytest.mark.parametrize(
    ("layers", "size"), [(QWEN_3_8_27B, 17_520_656_384), (QWEN_3_6_35B_A3B, 5_514_854_400)], ids=["27b", "35b-a3b"]
)
def test_vllm_pages_hybrid_models_as_traced(layers: tuple[Layers, ...], size: int) -> None:
    assert paging(layers, in_flight=2 * 8192).request_bytes(262_144) == size


def test_windows_take_less_when_fewer_tokens_are_in_flight() -> None:
    """Gemma 3 27B at 32,768 tokens: 11.2 GB with steps of 8192 tokens, 5.2 GB with 2048."""
    layers = facts_of("google/gemma-3-27b-it").layers
    assert round(paging(layers, in_flight=2 * 8192).request_bytes(32_768) / 1e9, 1) == 11.2
    assert round(paging(layers, in_flight=2 * 2048).request_bytes(32_768) / 1e9, 1) == 5.2


def test_whisper_keeps_its_cross_attention_once() -> None:
    layers = facts_of("openai/whisper-large-v3").layers
    cross = tuple(layer for layer in layers if layer.kind is LayerKind.CROSS)
    assert sequence_bytes(cross, 448) == 245_760_000
    assert growing(layers) == 163_840


def test_encoders_keep_nothing() -> None:
    assert sequence_bytes(facts_of("BAAI/bge-m3").layers, 8192) == 0


# Peaks


GLM_4_7_FLASH = facts_of("deepseek-ai/DeepSeek-R1").model_copy(
    update={
        "hidden": 2048,
        "heads": 20,
        "vocab": 154_880,
        "ffn": 10_240,
        "moe": Moe(experts=64, per_token=4, expert_ffn=1536, shared_ffn=1536),
        "mla": Mla(q_lora_rank=768, kv_lora_rank=512, nope_dim=192, rope_dim=64, value_dim=256),
    }
)


def test_peak_of_glm_4_7_flash_is_as_predicted_elsewhere_and_logged() -> None:
    step = Step(tokens=8192, sequences=1024, context=131_072)
    assert moments.forward(GLM_4_7_FLASH, step) == 2_181_038_080
    assert moments.activation(GLM_4_7_FLASH, step, old=False) == pytest.approx(2_190_433_320, rel=0.005)


def test_peak_of_qwen3_32b_is_as_logged() -> None:
    step = Step(tokens=8192, sequences=1024, context=16_000)
    assert moments.activation(facts_of("Qwen/Qwen3-32B"), step, old=False) / GIB == pytest.approx(1.61, abs=0.01)


@pytest.mark.parametrize(
    ("repo", "least", "most"),
    [
        ("Qwen/Qwen3-0.6B", 5.56, 5.64),
        ("Qwen/Qwen3-32B", 5.56, 5.64),
        ("meta-llama/Llama-3.1-8B", 4.76, 4.84),
        ("meta-llama/Llama-3.1-70B", 4.76, 4.84),
        ("openai/gpt-oss-20b", 7.38, 7.38),
        ("openai/gpt-oss-120b", 7.38, 7.38),
    ],
)
def test_old_vllm_peaks_in_its_sampler(repo: str, least: float, most: float) -> None:
    """Within 1.5 % of what was measured with 1024 sequences. A multimodal Mistral Small took 2.12 GiB where this says
    4.8: its limits were others, which are not known, and no row is made of it."""
    step = Step(tokens=8192, sequences=1024, context=16_000)
    peak = moments.activation(facts_of(repo), step, old=True) / GIB
    assert least * 0.985 <= peak <= most * 1.015


def test_captured_sizes() -> None:
    assert moments.captured_sizes(1024) == 51
    assert moments.captured_sizes(256) == 35
    assert moments.captured_sizes(1) == 1


def test_largest_image_of_qwen3_vl_takes_2_gb() -> None:
    assert moments.encoder(facts_of("Qwen/Qwen3-VL-8B-Instruct")) / 1e9 == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
    ("gpu", "tokens", "sequences"),
    [(RTX_4090, 2048, 256), (L40S, 2048, 256), (A100, 2048, 256), (H100, 8192, 1024), (H200, 8192, 1024)],
    ids=lambda value: value.name if isinstance(value, GpuClass) else None,
)
def test_defaults_by_card(gpu: GpuClass, tokens: int, sequences: int) -> None:
    assert (default_batched_tokens(gpu), default_sequences(gpu)) == (tokens, sequences)


# Whole cards


def booked(version: str, facts: ModelFacts, gpu: GpuClass, ranks: int, context: int, measured: Measured) -> Sizing:
    load = Workload(context=context, concurrency=1, sequences=default_sequences(gpu), utilization=0.9)
    found = fit("vllm", version, facts, load, gpu, Shape(tensor_parallel=ranks), measured=measured).asked
    assert found is not None
    return found


def test_the_identity_holds_for_measured_terms() -> None:
    """0.9 x 79.18 - 61.03 - 5.64 - 0.14 = 4.45 GiB, as vLLM 0.11 logged it for Qwen3-32B on an H100."""
    terms = Measured(weights_bytes=int(61.03 * GIB), activation_bytes=int(5.64 * GIB), non_torch_bytes=int(0.14 * GIB))
    sizing = booked(OLD, facts_of("Qwen/Qwen3-32B"), H100, 1, 16_000, terms)
    assert sizing.kv_bytes / GIB == pytest.approx(4.45, abs=0.01)
    assert sizing.measured


@pytest.mark.parametrize(
    ("repo", "gib", "ranks", "kv"),
    [("Qwen/Qwen3-32B", None, 1, 4.45), ("meta-llama/Llama-3.1-70B", 67.68, 2, 32.0)],
)
def test_kv_cache_of_vllm_0_11_on_h100(repo: str, gib: float | None, ranks: int, kv: float) -> None:
    """Predicted, not measured terms: within 0.3 GiB, and those of 0.32 would be 1.5 GiB off."""
    facts = stored_in(repo, gib)
    assert booked(OLD, facts, H100, ranks, 16_000, Measured()).kv_bytes / GIB == pytest.approx(kv, abs=0.3)
    assert booked(NEW, facts, H100, ranks, 16_000, Measured()).kv_bytes / GIB > kv + 1


LONGEST_MEASURED = 32_640
"""Tokens of Qwen3-8B in BF16 on an RTX 4090 with a utilization of 0.9, as vLLM 0.29 printed it."""


def longest(gpu: GpuClass) -> int:
    load = Workload(concurrency=1, sequences=256, utilization=0.9)
    return fit("vllm", "0.29.0", facts_of("Qwen/Qwen3-8B"), load, gpu, Shape()).longest_context


def test_longest_context_on_an_rtx_4090_is_not_overestimated() -> None:
    """8.2 % low where 8 % was hoped for: that card's 23.65 GiB are what CUDA usually reports, not what was measured
    with this number. With all of NVML's 24,564 MiB the model is 1 to 2 % low, so the gap is the card's total and not
    the model's terms, and stays until a start on such a card says more."""
    assert -0.082 <= longest(RTX_4090) / LONGEST_MEASURED - 1 <= 0
    everything = RTX_4090.model_copy(update={"unified": True})
    assert seen_least(everything) == RTX_4090.memory_bytes
    assert -0.02 <= longest(everything) / LONGEST_MEASURED - 1 <= 0


def test_cuda_sees_less_of_an_h100_than_nvml() -> None:
    assert seen_least(H100) == seen_most(H100) == int(79.18 * GIB)


TERMS = [
    # repo, GiB of its weights if not as published, card, ranks, context; GiB of: weights, activation, non-torch,
    # graphs, KV left, one request
    ("Qwen/Qwen3-8B", None, H100, 1, 32_768, 15.3, 1.28, 0.92, 0.94, 52.87, 4.50),
    ("Qwen/Qwen3-32B", None, H100, 1, 16_000, 61.0, 1.61, 0.92, 1.67, 6.05, 3.91),
    ("Qwen/Qwen3-32B", None, H100, 2, 32_768, 30.5, 0.80, 0.92, 1.67, 37.36, 4.00),
    ("Qwen/Qwen3-30B-A3B", None, A100, 1, 32_768, 56.9, 0.60, 0.26, 0.60, 13.00, 3.00),
    ("openai/gpt-oss-20b", None, RTX_4090, 1, 32_768, 13.45, 1.10, 0.31, 0.30, 6.13, 0.85),
    ("openai/gpt-oss-120b", None, H100, 1, 32_768, 64.38, 1.17, 1.11, 0.94, 3.69, 1.69),
    ("zai-org/GLM-4.6", 330.16, H200, 4, 65_536, 82.5, 1.45, 0.91, 2.40, 38.51, 5.75),
    ("zai-org/GLM-4.6", None, H200, 8, 65_536, 82.1, 1.43, 0.91, 2.40, 38.93, 2.88),
    ("deepseek-ai/DeepSeek-R1", None, H200, 8, 65_536, 79.5, 3.27, 0.82, 1.59, 40.7, 4.29),
    ("meta-llama/Llama-3.1-70B", 67.68, H100, 2, 16_000, 33.8, 0.97, 0.82, 2.09, 33.54, 2.44),
    ("google/gemma-3-27b-it", None, A100, 1, 32_768, 51.1, 0.32, 0.38, 0.77, 18.77, 4.85),
]
"""The table's own weights were 12.8, 60.8 and 78.4 GiB for gpt-oss and DeepSeek-R1: it left out the padding of experts
(0.63 and 3.6 GiB) and that MLA's down-projections are whole on every rank (1.1 GiB). Those rows are corrected by it."""


@pytest.mark.parametrize(
    ("repo", "stored", "gpu", "ranks", "context", "weights", "activation", "non_torch", "graphs", "kv", "one"), TERMS
)
def test_term_by_term(
    repo: str,
    stored: float | None,
    gpu: GpuClass,
    ranks: int,
    context: int,
    weights: float,
    activation: float,
    non_torch: float,
    graphs: float,
    kv: float,
    one: float,
) -> None:
    facts = stored_in(repo, stored)
    sizing = booked(NEW, facts, gpu, ranks, context, Measured())
    terms = {name: size / GIB for name, size in sizing.terms.items()}
    assert terms["weights"] == pytest.approx(weights, rel=0.015)
    assert terms["activation"] == pytest.approx(activation, abs=0.01)
    assert terms["non_torch"] == pytest.approx(non_torch, abs=0.01)
    assert terms["cuda_graphs"] == pytest.approx(graphs, abs=0.01)
    assert terms["kv_cache"] == pytest.approx(kv, abs=0.2)
    assert terms["kv_cache"] / sizing.concurrency == pytest.approx(one, abs=0.02)


@pytest.mark.parametrize(("repo", "gpu"), [("Qwen/Qwen3-8B", RTX_4090), ("Qwen/Qwen3-32B", A100)])
def test_what_just_does_not_start(repo: str, gpu: GpuClass) -> None:
    """0.92 and 0.97 requests of 32,768 tokens fit at a utilization of 0.9: neither starts."""
    load = Workload(context=32_768, concurrency=1, sequences=default_sequences(gpu), utilization=0.9)
    found = fit("vllm", NEW, facts_of(repo), load, gpu, Shape())
    assert found.minimum is None
    assert 0.9 * 32_768 < found.longest_context < 32_768


MIN_GPUS = [
    # repo, GiB of its weights if not as published, fewest GPUs (RTX 4090, L40S, A100, H100, H200; 0: more than 16)
    # for one request of 8192 tokens and for 16 of 32,768
    ("Qwen/Qwen3-0.6B", None, (1, 1, 1, 1, 1), (4, 2, 1, 1, 1)),
    ("Qwen/Qwen3-8B", None, (1, 1, 1, 1, 1), (8, 4, 2, 2, 1)),
    ("Qwen/Qwen3-8B", 8.79, (1, 1, 1, 1, 1), (4, 4, 2, 2, 1)),
    ("Qwen/Qwen3-8B", 5.68, (1, 1, 1, 1, 1), (4, 2, 2, 2, 1)),
    ("Qwen/Qwen3-32B", None, (4, 2, 1, 1, 1), (16, 8, 4, 4, 2)),
    ("Qwen/Qwen3-32B", 31.97, (2, 1, 1, 1, 1), (8, 8, 4, 4, 2)),
    ("Qwen/Qwen3-30B-A3B", None, (4, 2, 1, 1, 1), (8, 4, 2, 2, 1)),
    ("Qwen/Qwen3-235B-A22B", None, (0, 16, 8, 8, 4), (0, 0, 16, 16, 8)),
    ("Qwen/Qwen3-235B-A22B", 220.21, (16, 8, 4, 4, 2), (0, 16, 8, 8, 4)),
    ("openai/gpt-oss-20b", None, (1, 1, 1, 1, 1), (2, 1, 1, 1, 1)),
    ("openai/gpt-oss-120b", None, (4, 2, 1, 1, 1), (8, 4, 2, 2, 1)),
    ("zai-org/GLM-4.5-Air", None, (16, 8, 4, 4, 2), (0, 8, 8, 8, 4)),
    ("zai-org/GLM-4.5-Air", 100.72, (8, 4, 2, 2, 1), (16, 8, 4, 4, 2)),
    ("zai-org/GLM-4.6", None, (0, 0, 16, 16, 8), (0, 0, 16, 16, 8)),
    ("zai-org/GLM-4.6", 330.16, (0, 16, 8, 8, 4), (0, 0, 8, 8, 8)),
    ("deepseek-ai/DeepSeek-R1", None, (0, 0, 16, 16, 8), (0, 0, 0, 0, 8)),
    ("meta-llama/Llama-3.1-8B", None, (1, 1, 1, 1, 1), (4, 4, 2, 2, 1)),
    ("meta-llama/Llama-3.1-70B", None, (8, 4, 2, 2, 2), (0, 8, 8, 8, 4)),
    ("meta-llama/Llama-3.1-70B", 67.68, (4, 2, 2, 2, 1), (0, 8, 4, 4, 2)),
    ("google/gemma-3-27b-it", None, (4, 2, 1, 1, 1), (8, 4, 2, 4, 2)),
    ("mistralai/Mistral-7B-v0.3", None, (1, 1, 1, 1, 1), (4, 2, 2, 2, 1)),
    ("mistralai/Mistral-Small-3.x-24B", None, (4, 2, 1, 1, 1), (8, 4, 2, 2, 2)),
    ("Qwen/Qwen2.5-VL-7B-Instruct", None, (1, 1, 1, 1, 1), (4, 2, 1, 1, 1)),
    ("Qwen/Qwen3-Next-80B-A3B", None, (8, 4, 4, 4, 2), (16, 8, 4, 4, 2)),
    ("Qwen/Qwen3.5-35B-A3B", None, (4, 2, 1, 1, 1), (8, 2, 2, 2, 1)),
]
"""FP8 of Qwen3-235B, GLM-4.5-Air and GLM-4.6 is without blocks here: with blocks of 128 several of these counts do not
divide. gpt-oss-120b needs 8 RTX 4090 for 16 requests, not 4, with the padding of its experts."""


def fewest(facts: ModelFacts, load: Workload, gpu: GpuClass) -> int:
    load = load.model_copy(update={"sequences": default_sequences(gpu), "utilization": 0.9})
    ranks = (n for n in (1, 2, 4, 8, 16) if not facts.heads % n)
    return next((n for n in ranks if fit("vllm", NEW, facts, load, gpu, Shape(tensor_parallel=n)).asked), 0)


@pytest.mark.parametrize(("repo", "stored", "small", "large"), MIN_GPUS)
def test_fewest_gpus(repo: str, stored: float | None, small: tuple[int, ...], large: tuple[int, ...]) -> None:
    facts = stored_in(repo, stored)
    # Of Qwen3.5 the text model alone is meant.
    text_only = repo.startswith("Qwen/Qwen3.5")
    for expected, context, requests in ((small, 8192, 1), (large, 32_768, 16)):
        load = Workload(context=context, concurrency=requests, text_only=text_only)
        assert tuple(fewest(facts, load, gpu) for gpu in (RTX_4090, L40S, A100, H100, H200)) == expected


def test_a_graph_takes_as_much_as_was_measured() -> None:
    assert moments.graphs(1, 1, RTX_4090) == 374 * KIB
    assert moments.graphs(1, 1, H100) == 537 * KIB
