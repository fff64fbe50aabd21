from functools import partial

import pytest

from fleet.inventory import AcceleratorKind
from fleet.sizing.cards import GIB, MIB
from fleet.sizing.facts import Format, LayerKind, Layers, Lora, ModelFacts, Quantization, Role, Weights
from fleet.sizing.fit import best_fit, fit
from fleet.sizing.measure import differs
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import Draft, Fit, GpuClass, Shape, Sizing, Workload
from tests.unit.sizing.checkpoints import facts_of
from tests.unit.sizing.numbers import A100, CPUS, H100, H200, L40S, RTX_4090

ONE = Shape()
QWEN_8B = facts_of("Qwen/Qwen3-8B")
vllm = partial(fit, "vllm", "0.32.0")


def asked(found: Fit) -> Sizing:
    assert found.asked is not None, found.limit
    return found.asked


def gguf(layers: int = 32, layer_gib: float = 0.2) -> ModelFacts:
    """Of a dense model of 7 B parameters in 8 bit."""
    block, vocabulary = int(layer_gib * GIB), 300 * MIB
    return ModelFacts(
        format=Format.GGUF,
        architecture="llama",
        fingerprint="0" * 32,
        hidden=4096,
        layers_total=layers,
        heads=32,
        vocab=32_000,
        ffn=14_336,
        context=32_768,
        layers=(Layers(kind=LayerKind.FULL, count=layers, kv_heads=8, key_dim=128, value_dim=128),),
        weights=(
            Weights(role=Role.EMBEDDING, dtype="Q8_0", elements=0, bytes=vocabulary),
            Weights(role=Role.HEAD, dtype="Q8_0", elements=0, bytes=vocabulary),
            Weights(role=Role.MLP, dtype="Q8_0", elements=0, bytes=block * layers),
        ),
        layer_bytes=(block,) * layers,
        file_bytes=block * layers + 2 * vocabulary,
    )


# Defaults


def test_a_small_model_books_what_it_needs_of_a_large_card() -> None:
    sizing = asked(vllm(facts_of("Qwen/Qwen3-0.6B"), Workload(), H100, ONE))
    assert sizing.gpu_bytes < 16 * GIB
    assert sizing.utilization is not None
    assert sizing.utilization < 0.2


def test_the_default_context_is_bounded_by_what_fits() -> None:
    assert asked(vllm(QWEN_8B, Workload(), H100, ONE)).context == 32_768
    assert asked(vllm(QWEN_8B, Workload(), RTX_4090, ONE)).context == 32_768
    assert asked(vllm(QWEN_8B, Workload(), RTX_4090, ONE, allocatable=21 * GIB)).context == 8192
    assert 2048 <= asked(vllm(QWEN_8B, Workload(), RTX_4090, ONE, allocatable=int(18.8 * GIB))).context < 8192
    assert asked(fit("llama_cpp", "0.1.2", gguf(), Workload(), H100, ONE)).context == 4096


def test_the_default_concurrency_is_bounded_by_what_fits() -> None:
    roomy, tight = (asked(vllm(QWEN_8B, Workload(context=8192), gpu, ONE)) for gpu in (H100, RTX_4090))
    assert roomy.concurrency >= 8 > tight.concurrency >= 1
    assert asked(fit("llama_cpp", "0.1.2", gguf(), Workload(), H100, ONE)).sequences == 4
    long = Workload(context=32_768)
    assert asked(fit("llama_cpp", "0.1.2", gguf(), long, RTX_4090, ONE, allocatable=20 * GIB)).sequences == 3


def test_a_persons_own_utilization_is_booked_as_it_is() -> None:
    sizing = asked(vllm(QWEN_8B, Workload(utilization=0.5, concurrency=1), H100, ONE))
    assert sizing.utilization == 0.5
    assert sizing.gpu_bytes == pytest.approx(0.5 * 79.18 * GIB, abs=MIB)
    refused = vllm(QWEN_8B, Workload(utilization=0.5), H100, ONE, allocatable=30 * GIB)
    assert refused.asked is None
    assert "a utilization of 0.5 is 39.6 GiB" in refused.limit


# Limits and remedies


@pytest.mark.parametrize(
    ("model", "load", "gpu", "remedy"),
    [
        (QWEN_8B, Workload(context=32_768, concurrency=16), H100, "fewer requests at a time: 12 instead of 16"),
        (QWEN_8B, Workload(context=40_960, concurrency=1, sequences=256), RTX_4090, "a shorter context: "),
        (facts_of("Qwen/Qwen3-32B"), Workload(context=8192, concurrency=1), L40S, "more GPUs: 2 for each replica"),
        (facts_of("deepseek-ai/DeepSeek-R1"), Workload(context=8192), H100, "more GPUs: 16 for each replica"),
        (facts_of("moonshotai/Kimi-K2-Instruct"), Workload(context=8192), RTX_4090, "none found"),
    ],
)
def test_the_remedy_is_the_smallest_change(model: ModelFacts, load: Workload, gpu: GpuClass, remedy: str) -> None:
    found = vllm(model, load, gpu, ONE)
    assert found.asked is None
    assert remedy in found.remedy


def test_the_shorter_context_of_the_remedy_fits() -> None:
    found = vllm(QWEN_8B, LONG, RTX_4090, ONE)
    assert f"{found.longest_context:,} tokens" in found.remedy
    for more, fits in ((0, True), (64, False)):
        load = LONG.model_copy(update={"context": found.longest_context + more})
        assert (vllm(QWEN_8B, load, RTX_4090, ONE).asked is not None) == fits


LONG = Workload(context=40_960, concurrency=1, sequences=256)


def test_weights_in_fewer_bits_are_a_remedy_on_cpus() -> None:
    ram = CPUS.model_copy(update={"memory_bytes": 16 * GIB})
    found = fit("something-else", "1", QWEN_8B, Workload(context=2048, concurrency=1), ram, ONE)
    assert "quantised weights: a checkpoint in 8 bit" in found.remedy


def test_the_limit_names_the_largest_term() -> None:
    found = vllm(facts_of("Qwen/Qwen3-32B"), Workload(context=8192, concurrency=1), L40S, ONE)
    assert found.limit.startswith("needs 65.2 GiB on one GPU for 1 request of 8,192 tokens, 42.7 GiB can be used")
    assert found.limit.endswith("most is for weights: 61.0 GiB")


# Dividing a model


def test_heads_must_divide() -> None:
    found = vllm(QWEN_8B, Workload(), H100, Shape(tensor_parallel=3))
    assert found.asked is found.minimum is None
    assert "does not divide the model's 32 attention heads" in found.limit
    assert found.remedy == "a tensor parallelism of 2"


def test_fp8_blocks_must_divide() -> None:
    blocks = Quantization(method="fp8", bits=8, block=(128, 128))
    model = facts_of("Qwen/Qwen3-30B-A3B").model_copy(update={"quantization": blocks})
    assert vllm(model, Workload(), H100, Shape(tensor_parallel=2)).asked is not None
    assert "no multiple of the FP8 block of 128" in vllm(model, Workload(), H100, Shape(tensor_parallel=4)).limit


def test_kv_heads_that_are_kept_several_times_are_a_warning() -> None:
    model = facts_of("Qwen/Qwen3-30B-A3B")
    assert "each is kept 2 times" in " ".join(vllm(model, Workload(), H100, Shape(tensor_parallel=8)).warnings)


def test_pipeline_stages_share_layers_and_ends() -> None:
    whole, stages = (asked(vllm(QWEN_8B, Workload(), H100, Shape(pipeline_parallel=n))) for n in (1, 2))
    ends = QWEN_8B.bytes_of(Role.EMBEDDING)
    expected = (whole.terms["weights"] - 2 * ends) / 2 + ends
    assert stages.terms["weights"] == pytest.approx(expected, rel=0.001)


# Best fits


def test_best_fits_come_with_fewest_gpus_first() -> None:
    found = best_fit("vllm", "0.32.0", facts_of("Qwen/Qwen3-32B"), Workload(), RTX_4090, most_gpus_per_host=8)
    assert [f.shape.gpus for f in found] == [4, 8]
    assert all(f.asked is not None for f in found)


def test_a_model_for_no_host_spans_two() -> None:
    model = facts_of("deepseek-ai/DeepSeek-R1")
    load = Workload(context=8192, concurrency=1)
    first, *_ = best_fit("vllm", "0.32.0", model, load, H100, most_gpus_per_host=8, most_hosts=2)
    assert first.shape == Shape(tensor_parallel=8, pipeline_parallel=2, hosts=2)
    (failed,) = best_fit("vllm", "0.32.0", model, load, H100, most_gpus_per_host=8)
    assert failed.asked is None
    assert "more GPUs: 16" in failed.remedy


def test_llama_cpp_prefers_more_cards_to_layers_in_ram() -> None:
    found = best_fit("llama_cpp", "0.1.2", gguf(layer_gib=0.9), Workload(), RTX_4090, most_gpus_per_host=3)
    assert [(f.shape.gpus, asked(f).gpu_layers is None) for f in found] == [(2, True), (3, True), (1, False)]


# llama.cpp


def test_as_many_layers_as_fit_go_to_the_card() -> None:
    model = gguf(layer_gib=0.9)
    found = fit("llama_cpp", "0.1.2", model, Workload(context=4096, concurrency=2), RTX_4090, ONE)
    sizing = asked(found)
    assert sizing.gpu_layers is not None
    assert 20 <= sizing.gpu_layers < 32
    assert sizing.terms["weights"] == sizing.gpu_layers * model.layer_bytes[0]
    in_ram = model.weight_bytes - sizing.terms["weights"]
    assert sizing.ram_terms["weights"] == in_ram
    assert sizing.ram_terms["kv_cache"] > 0
    assert "layers fit onto the GPU" in " ".join(found.warnings)
    one_more = Workload(context=4096, concurrency=2, gpu_layers=sizing.gpu_layers + 1)
    assert fit("llama_cpp", "0.1.2", model, one_more, RTX_4090, ONE).asked is None


def test_without_cards_all_is_in_ram() -> None:
    sizing = asked(fit("llama_cpp", "0.1.2", gguf(), Workload(context=4096, concurrency=2), CPUS, ONE))
    assert sizing.gpu_bytes == 0
    assert sizing.utilization is None
    assert sizing.terms["kv_cache"] == 2 * 4096 * 32 * 8 * 256 * 2
    assert sizing.ram_bytes == pytest.approx(sum(sizing.terms.values()), abs=MIB)


def test_windows_keep_a_window_and_a_micro_batch() -> None:
    window = Layers(kind=LayerKind.SLIDING, count=32, kv_heads=8, key_dim=128, value_dim=128, window=1024)
    model = gguf().model_copy(update={"layers": (window,)})
    sizing = asked(fit("llama_cpp", "0.1.2", model, Workload(context=16_384, concurrency=1), CPUS, ONE))
    assert sizing.kv_bytes == (1024 + 512) * 32 * 8 * 256 * 2


# What else takes memory


def test_adapters_are_set_aside_for_as_large_as_the_largest_rank() -> None:
    adapters = (Lora(name="a", rank=12), Lora(name="b", rank=40))
    none, two = (
        asked(vllm(QWEN_8B, Workload(loras=adapters[:n], max_loras=2), H100, ONE)).terms.get("lora", 0) for n in (0, 2)
    )
    # 32 of attention, MLP: (3 x 4096 + 4096 in, 4096 + 2 x 1024 + 4096 out) + (2 x 4096 + 12288, 2 x 12288 + 4096).
    assert none == 0
    assert two == 2 * 36 * 64 * (36_864 + 38_912) * 2


def test_drafts_take_their_weights_and_their_share_of_the_cache() -> None:
    small = facts_of("Qwen/Qwen3-0.6B")
    draft = Draft(method="draft_model", facts=small)
    plain, drafted = (
        asked(vllm(QWEN_8B, Workload(context=8192, concurrency=1, draft=d), H100, ONE)) for d in (None, draft)
    )
    assert drafted.terms["draft"] / GIB == pytest.approx(1.12, abs=0.01)
    assert drafted.kv_bytes / drafted.kv_tokens - plain.kv_bytes / plain.kv_tokens == pytest.approx(114_688, rel=0.01)


def test_mtp_layers_are_loaded_for_speculation_alone() -> None:
    model = facts_of("zai-org/GLM-4.5-Air")
    load = Workload(context=8192, concurrency=1)
    mtp = load.model_copy(update={"draft": Draft(method="mtp", tokens=1)})
    off, on = (asked(vllm(model, w, H200, Shape(tensor_parallel=2))).terms["weights"] for w in (load, mtp))
    assert on - off == pytest.approx(model.bytes_of(Role.MTP) / 2, abs=2)


def test_ngrams_take_no_weights() -> None:
    sizing = asked(vllm(QWEN_8B, Workload(draft=Draft(method="ngram")), H100, ONE))
    assert "draft" not in sizing.terms


def test_offloaded_kv_cache_is_booked_of_ram() -> None:
    load = Workload(kv_offload_bytes=50 * GIB)
    shape = Shape(tensor_parallel=2, pipeline_parallel=2, hosts=2)
    assert asked(vllm(QWEN_8B, load, H100, shape)).ram_terms["kv_offload"] == 25 * GIB


def test_text_only_leaves_the_vision_tower_out() -> None:
    model = facts_of("Qwen/Qwen3-VL-8B-Instruct")
    seeing, reading = (asked(vllm(model, Workload(text_only=t), H100, ONE)) for t in (False, True))
    assert seeing.terms["weights"] - reading.terms["weights"] == model.bytes_of(Role.VISION)
    assert seeing.terms["vision"] > 0
    assert "vision" not in reading.terms


def test_encoders_need_no_kv_cache() -> None:
    sizing = asked(vllm(facts_of("BAAI/bge-m3"), Workload(), RTX_4090, ONE))
    assert sizing.kv_bytes == 0
    assert sizing.terms["weights"] / 1e9 == pytest.approx(1.14, abs=0.01)
    assert sizing.gpu_bytes < 4 * GIB


def test_state_layers_cap_the_batch() -> None:
    """Each decoding sequence holds a block of every group of state layers."""
    model = facts_of("Qwen/Qwen3.5-35B-A3B")
    sizing = asked(vllm(model, Workload(context=8192, concurrency=1, sequences=1024, text_only=True), H100, ONE))
    block = 10 * 1056 * 2048
    assert sizing.sequences == sizing.kv_bytes // block // 3 < 1024


def test_eager_takes_no_graphs() -> None:
    assert "cuda_graphs" not in asked(vllm(QWEN_8B, Workload(eager=True), H100, ONE)).terms


# SGLang


def test_sglangs_fraction_is_of_weights_and_cache() -> None:
    sizing = asked(fit("sglang", "0.5.6", QWEN_8B, Workload(context=8192, concurrency=4), H100, ONE))
    static = sizing.terms["weights"] + sizing.terms["kv_cache"]
    assert sizing.utilization == pytest.approx(static / (79.18 * GIB), abs=0.0001)
    assert sizing.gpu_bytes - static >= 10 * GIB
    """What the rule for cards of more than 60 GiB leaves at least."""


def test_sglang_leaves_less_on_a_small_card() -> None:
    sizing = asked(fit("sglang", "0.5.6", QWEN_8B, Workload(context=8192, concurrency=1), RTX_4090, ONE))
    assert sizing.terms["activation"] == (512 + 2048 * 1.5 + 128) * MIB
    assert sizing.terms["cuda_graphs"] == 1 * 2 * MIB


# Measurements


MEASURED = Measured(weights_bytes=15 * GIB, activation_bytes=GIB, non_torch_bytes=GIB // 2, graph_bytes=GIB)


def test_measured_terms_replace_predicted_ones() -> None:
    predicted, measured = (asked(vllm(QWEN_8B, Workload(), H100, ONE, measured=m)) for m in (None, MEASURED))
    assert not predicted.measured
    assert measured.measured
    assert measured.terms["weights"] == 15 * GIB
    assert measured.terms["cuda_graphs"] == GIB
    assert measured.error_bytes < predicted.error_bytes / 10


def test_a_cache_that_took_more_for_a_token_is_believed() -> None:
    measured = Measured(kv_bytes=200_000 * 1000, kv_tokens=1000)
    load = Workload(context=8192, concurrency=1)
    assert asked(vllm(QWEN_8B, load, H100, ONE, measured=measured)).terms["kv_cache"] >= 200_000 * 8192


def test_differences_are_told_largest_first() -> None:
    sizing = asked(vllm(QWEN_8B, Workload(), H100, ONE))
    told = differs(sizing, Measured(weights_bytes=sizing.terms["weights"], activation_bytes=3 * GIB, graph_bytes=GIB))
    assert told.startswith("activation 3.00 GiB, not 1.28 GiB; cuda graphs 1.00 GiB, not ")
    assert not differs(sizing, Measured(weights_bytes=sizing.terms["weights"]))


def test_what_ran_out_of_memory_is_given_more() -> None:
    before = asked(vllm(QWEN_8B, Workload(), H100, ONE))
    after = asked(vllm(QWEN_8B, Workload(), H100, ONE, too_big=before.gpu_bytes))
    assert after.gpu_bytes >= before.gpu_bytes + 512 * MIB
    assert after.utilization == before.utilization
    assert asked(vllm(QWEN_8B, Workload(), H100, ONE, too_big=before.gpu_bytes // 2)) == before


def test_what_ran_out_of_memory_on_a_whole_card_does_not_fit() -> None:
    found = vllm(QWEN_8B, Workload(), H100, ONE, too_big=H100.memory_bytes)
    assert found.asked is None
    assert "ran out of memory" in found.limit


def test_another_vendors_card_is_sized_by_the_general_rule() -> None:
    mi300 = GpuClass(kind=AcceleratorKind.AMD, name="AMD Instinct MI300X", memory_bytes=192 * GIB)
    sizing = asked(vllm(facts_of("Qwen/Qwen3-32B"), Workload(), mi300, ONE))
    assert sizing.batched_tokens == 16_384
    assert sizing.gpu_bytes < 0.6 * mi300.memory_bytes


def test_a_whole_a100_leaves_something_for_the_cuda_context() -> None:
    full = vllm(QWEN_8B, Workload(), A100, ONE).full_card
    assert full is not None
    assert full.utilization is not None
    assert full.utilization <= 0.95


@pytest.mark.parametrize("hosts", [2, 3, 4])
def test_llama_cpp_divides_layers_and_their_cache_among_the_ram_of_hosts(hosts: int) -> None:
    model, load = gguf(), Workload(context=4096, concurrency=4)
    alone = asked(fit("llama_cpp", "0.1.2", model, load, CPUS, Shape()))
    shared = asked(fit("llama_cpp", "0.1.2", model, load, CPUS, Shape(pipeline_parallel=hosts, hosts=hosts)))
    layers = model.layers_total
    assert shared.gpu_layers == layers * (hosts - 1) // hosts
    assert shared.terms["kv_cache"] * hosts >= alone.terms["kv_cache"], "all of it is somewhere"
    assert shared.terms["kv_cache"] <= alone.terms["kv_cache"] * (1 / hosts + 1 / layers)
    assert shared.ram_bytes < alone.ram_bytes
