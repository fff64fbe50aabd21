"""What a config.json says, family by family."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.sizing.facts import LayerKind, ModelFacts, Quantization, State, Task
from fleet.sizing.files import ReadError, ReadProblem
from fleet.sizing.hf_config import Documents, facts_of_config
from fleet.sizing.json_fields import Fields

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


def facts(beside: dict[str, Any] | None = None, **config: Any) -> ModelFacts:
    documents = {name: Fields(values, name) for name, values in (beside or {}).items()}
    return facts_of_config(Documents(config=Fields(LLAMA | config, "config.json"), **documents))


def kinds(found: ModelFacts) -> dict[LayerKind, int]:
    return {g.kind: g.count for g in found.layers}


FULL, SLIDING, STATE, MLA = LayerKind.FULL, LayerKind.SLIDING, LayerKind.STATE, LayerKind.MLA


def test_head_dim_is_hidden_by_heads_unless_said() -> None:
    assert facts().layers[0].key_dim == 128
    assert facts(head_dim=64).layers[0].key_dim == 64
    assert facts(num_key_value_heads=None).layers[0].kv_heads == 32
    assert facts(multi_query=True, num_key_value_heads=None).layers[0].kv_heads == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, {SLIDING: 32}),
        ({"model_type": "mistral", "sliding_window": None}, {FULL: 32}),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, {FULL: 32}),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 20}, {FULL: 20, SLIDING: 12}),
        ({"model_type": "gemma2"}, {FULL: 16, SLIDING: 16}),
        ({"sliding_window": 512, "sliding_window_pattern": 4}, {FULL: 8, SLIDING: 24}),
        (
            {"sliding_window": 512, "layer_types": ["sliding_attention"] * 31 + ["full_attention"]},
            {FULL: 1, SLIDING: 31},
        ),
        ({"sliding_window": None, "layer_types": ["sliding_attention"] * 32}, {FULL: 32}),
        (
            {"attention_chunk_size": 8192, "layer_types": ["chunked_attention"] * 24 + ["full_attention"] * 8},
            {FULL: 8, SLIDING: 24},
        ),
        ({"model_type": "gemma3n", "num_kv_shared_layers": 12}, {FULL: 20}),
    ],
)
def test_windows(config: dict[str, Any], expected: dict[LayerKind, int]) -> None:
    found = facts(**config)
    assert kinds(found) == expected
    assert all((g.window > 0) == (g.kind is SLIDING) for g in found.layers)


def test_window_of_unknown_layers_is_said_and_not_counted() -> None:
    found = facts(model_type="surprise", sliding_window=4096)
    assert kinds(found) == {FULL: 32}
    assert "4,096" in found.notes[0]


def test_nemotron_h() -> None:
    found = facts(
        model_type="nemotron_h",
        num_hidden_layers=7,
        hybrid_override_pattern="M-M*-ME",
        mamba_num_heads=128,
        mamba_head_dim=64,
        ssm_state_size=128,
        n_groups=8,
        conv_kernel=4,
    )
    assert kinds(found) == {FULL: 1, STATE: 3}
    state = State(conv_channels=128 * 64 + 2 * 8 * 128, conv_kernel=4, heads=128, key_dim=128, value_dim=64)
    assert next(g.state for g in found.layers if g.kind is STATE) == state


def test_jamba() -> None:
    found = facts(
        model_type="jamba", attn_layer_period=8, attn_layer_offset=4, mamba_d_state=16, mamba_d_conv=4, mamba_expand=2
    )
    assert kinds(found) == {FULL: 4, STATE: 28}
    state = next(g.state for g in found.layers if g.kind is STATE)
    assert state == State(conv_channels=8192, conv_kernel=4, heads=8192, key_dim=16, value_dim=1)


def test_falcon_h1_has_both_in_each_layer() -> None:
    found = facts(model_type="falcon_h1", mamba_n_heads=24, mamba_d_head=64, mamba_d_state=256, mamba_n_groups=1)
    assert kinds(found) == {FULL: 32, STATE: 32}


def test_granite_hybrid_and_lfm2() -> None:
    types = ["mamba"] * 28 + ["attention"] * 4
    granite = facts(layer_types=types, mamba_n_heads=48, mamba_d_head=64, mamba_d_state=128, mamba_n_groups=1)
    assert kinds(granite) == {FULL: 4, STATE: 28}
    short = facts(layer_types=["conv"] * 22 + ["full_attention"] * 10, conv_L_cache=3)
    state = next(g.state for g in short.layers if g.kind is STATE)
    assert state == State(conv_channels=4096, conv_kernel=3, heads=0, key_dim=0, value_dim=0)


def test_kimi_linear() -> None:
    linear = {"full_attn_layers": [4, 8], "kda_layers": [1, 2, 3, 5, 6, 7], "num_heads": 32, "head_dim": 128}
    found = facts(num_hidden_layers=8, linear_attn_config=linear, kv_lora_rank=512, qk_rope_head_dim=64)
    assert kinds(found) == {MLA: 2, STATE: 6}


def test_decoder_that_is_shorter_than_its_encoder() -> None:
    found = facts(
        architectures=["WhisperForConditionalGeneration"],
        model_type="whisper",
        is_encoder_decoder=True,
        d_model=1280,
        hidden_size=None,
        encoder_layers=32,
        decoder_layers=4,
        decoder_attention_heads=20,
        num_attention_heads=None,
        max_source_positions=1500,
        max_target_positions=448,
        max_position_embeddings=None,
    )
    assert (found.layers_total, found.encoder_layers, found.context, found.task) == (4, 32, 448, Task.TRANSCRIBE)
    assert {g.kind: (g.count, g.window) for g in found.layers} == {FULL: (4, 0), LayerKind.CROSS: (4, 1500)}


def test_small_gemma_says_next_to_nothing() -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    found = facts_of_config(Documents(config=Fields(config, "config.json")))
    assert (found.heads, found.vocab, found.context) == (8, 262208, 131072)
    assert [(g.kind, g.count, g.kv_heads, g.key_dim) for g in found.layers] == [
        (FULL, 5, 4, 256),
        (SLIDING, 29, 4, 256),
    ]


def test_unknown_state_is_said() -> None:
    found = facts(layer_types=["recurrent"] * 32)
    assert found.layers[0].state is None
    assert "state layers" in found.notes[0]


def test_unknown_kind_of_layer_is_refused() -> None:
    with pytest.raises(ReadError) as refused:
        facts(layer_types=["telepathy"] * 32)
    assert (refused.value.kind, "telepathy" in refused.value.message) == (ReadProblem.UNSUPPORTED, True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 8192),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}}, 32768),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}}, 163840),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 8192}}, 8192),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 16384),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 8192),
        ({"max_position_embeddings": None}, 2048),
    ],
)
def test_context(config: dict[str, Any], expected: int) -> None:
    assert facts(**config).context == expected


def test_context_is_never_shorter_for_its_scaling() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    assert facts(rope_scaling=scaling).context == 8192


def test_sentence_length_bounds_the_context() -> None:
    assert facts({"sentence": {"max_seq_length": 512}}, architectures=["BertModel"], model_type="bert").context == 512


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, Quantization(method="awq", bits=4, group=128)),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, Quantization(method="gptq", bits=8)),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, Quantization(method="fp8", bits=8)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Quantization(method="bitsandbytes", bits=4)),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Quantization(method="bitsandbytes", bits=8)),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128, "strategy": "group"}}},
            },
            Quantization(method="compressed-tensors", bits=4, group=128),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]}}
                },
            },
            Quantization(method="compressed-tensors", bits=8, block=(128, 128)),
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, Quantization(method="modelopt_fp4", bits=8)),
    ],
)
def test_quantization(said: dict[str, Any], expected: Quantization) -> None:
    found = facts(quantization_config=said).quantization
    assert found is not None
    if expected.method == "modelopt_fp4":
        expected = expected.model_copy(update={"bits": 4.0, "group": 16})
    assert found == expected
    assert facts(quantization_config=None).quantization is None


def test_quantization_beside_the_config() -> None:
    found = facts({"quantization": {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}})
    assert found.quantization == Quantization(method="modelopt", bits=8)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", Task.GENERATE),
        ("Gemma3ForConditionalGeneration", Task.GENERATE),
        ("GPT2LMHeadModel", Task.GENERATE),
        ("Qwen3ForSequenceClassification", Task.RERANK),
        ("Qwen2ForRewardModel", Task.RERANK),
        ("BertModel", Task.EMBED),
        ("XLMRobertaForMaskedLM", Task.EMBED),
    ],
)
def test_task(architecture: str, task: Task) -> None:
    assert facts(architectures=[architecture]).task is task


def test_experts_and_which_layers_are_dense() -> None:
    mixtral = facts(num_local_experts=8, num_experts_per_tok=2)
    assert mixtral.moe is not None
    assert (mixtral.moe.experts, mixtral.moe.per_token, mixtral.moe.expert_ffn, mixtral.ffn) == (8, 2, 14336, 0)
    deepseek = facts(n_routed_experts=64, n_shared_experts=2, moe_intermediate_size=1408, first_k_dense_replace=1)
    assert deepseek.moe is not None
    assert (deepseek.moe.shared_ffn, deepseek.ffn) == (2816, 14336)
    assert facts(num_experts=0).moe is None


def test_flags() -> None:
    found = facts(auto_map={"AutoModel": "x.Y"}, final_logit_softcapping=30.0, torch_dtype="float16")
    assert (found.remote_code, found.soft_cap, found.dtype) == (True, True, "F16")
    assert facts(dtype="torch.unknown").dtype == ""


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": "32"},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 2**60},
        {"num_hidden_layers": 20_000},
        {"hidden_size": True},
        {"rope_scaling": {"type": "linear", "factor": "four"}},
        {"layer_types": ["full_attention"]},
        {"max_position_embeddings": 1.5},
    ],
)
def test_nonsense_is_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(ReadError) as refused:
        facts(**config)
    assert refused.value.kind is ReadProblem.MALFORMED
    assert refused.value.message


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size"])
def test_what_is_needed_and_missing_is_named(missing: str) -> None:
    with pytest.raises(ReadError, match=f"does not say {missing}"):
        facts(**{missing: None})


NAMES = st.sampled_from(
    [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "layer_types",
        "sliding_window",
        "rope_scaling",
        "vision_config",
        "text_config",
        "quantization_config",
        "kv_lora_rank",
        "num_experts",
        "attn_type_list",
        "linear_attn_config",
        "hybrid_override_pattern",
        "auto_map",
        "is_encoder_decoder",
        "model_type",
        "architectures",
        "head_dim",
        "linear_num_value_heads",
        "attn_layer_period",
        "mamba_d_state",
        "mlp_only_layers",
        "index_topk",
        "tie_word_embeddings",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["whisper", "jamba", "yarn", "MM*", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_whatever_the_config_says_it_is_read_or_refused(config: dict[str, Any]) -> None:
    try:
        found = facts(**config)
    except ReadError:
        return
    assert found.layers_total >= 1
    assert found.context >= 1
