"""Well-known checkpoints: what is read of them is what their makers say."""

import pytest

from fleet.sizing.facts import Format, LayerKind, Quantization, Role, State, Task, Vision
from fleet.sizing.roles import role_of
from tests.unit.sizing.checkpoints import MODELS, checkpoint_of, facts_of
from tests.unit.sizing.decoders import Checkpoint

BESIDE = (Role.VISION, Role.MTP)


@pytest.mark.parametrize("repo", MODELS)
def test_parameters_of_the_text_model_are_those_that_are_published(repo: str) -> None:
    facts = facts_of(repo)
    last = max(facts.layers_total, facts.encoder_layers)
    loaded = [
        w for w in checkpoint_of(repo).weights if role_of(w.name, last, tied=facts.tied_head) not in (None, *BESIDE)
    ]
    uncounted = ("indexer", "q_norm", "k_norm") if "MiniMax" in repo else ("indexer",)
    counted = tuple(w for w in loaded if not any(part in w.name for part in uncounted))
    assert Checkpoint({}, counted).parameters() == MODELS[repo]["params"]


@pytest.mark.parametrize("repo", [r for r in MODELS if MODELS[r]["dtype"] in ("bfloat16", "float32", "float16")])
def test_weights_are_added_up_whole(repo: str) -> None:
    facts = facts_of(repo)
    elements = sum(w.elements for w in facts.weights if w.role not in BESIDE)
    indexer = sum(
        w.shape[0] * (w.shape[1] if len(w.shape) > 1 else 1)
        for w in checkpoint_of(repo).weights
        if "indexer" in w.name and f"layers.{facts.layers_total}." not in w.name
    )
    assert elements - indexer == MODELS[repo]["params"]


@pytest.mark.parametrize(
    ("repo", "published"), [(r, m["published_params"]) for r, m in MODELS.items() if "published_params" in m]
)
def test_the_whole_is_what_is_published_without_mtp(repo: str, published: int) -> None:
    facts = facts_of(repo)
    mtp = [w for w in checkpoint_of(repo).weights if facts.mtp_layers and f"layers.{facts.layers_total}." in w.name]
    assert checkpoint_of(repo).parameters() - Checkpoint({}, tuple(mtp)).parameters() == published


def test_dense_model_of_one_file() -> None:
    facts = facts_of("Qwen/Qwen3-8B")
    assert (facts.format, facts.architecture, facts.model_type) == (Format.SAFETENSORS, "Qwen3ForCausalLM", "qwen3")
    assert (facts.hidden, facts.layers_total, facts.heads, facts.vocab) == (4096, 36, 32, 151936)
    assert (facts.ffn, facts.context, facts.dtype, facts.tied_head) == (12288, 40960, "BF16", False)
    (group,) = facts.layers
    assert (group.kind, group.count, group.kv_heads, group.key_dim, group.value_dim) == (
        LayerKind.FULL,
        36,
        8,
        128,
        128,
    )
    assert facts.bytes_of(Role.KV_PROJECTION) == 36 * 2 * 8 * 128 * 4096 * 2
    assert facts.bytes_of(Role.REPLICATED) == (36 * (2 * 4096 + 2 * 128) + 4096) * 2
    assert facts.weight_bytes == 2 * 8190735360
    assert facts.file_bytes == facts.largest_file_bytes > facts.weight_bytes
    assert (facts.quantization, facts.moe, facts.mla, facts.vision, facts.remote_code) == (
        None,
        None,
        None,
        None,
        False,
    )
    assert facts.notes == ()


def test_tied_embedding_has_no_head() -> None:
    facts = facts_of("Qwen/Qwen3-0.6B")
    assert facts.tied_head
    assert facts.bytes_of(Role.HEAD) == 0
    assert sum(w.elements for w in facts.weights) == 596049920


def test_mla_with_fp8_blocks_and_mtp() -> None:
    facts = facts_of("deepseek-ai/DeepSeek-R1")
    (group,) = facts.layers
    assert (group.kind, group.count, group.key_dim, group.value_dim, group.indexer_bytes) == (
        LayerKind.MLA,
        61,
        576,
        0,
        0,
    )
    assert facts.mla is not None
    assert (facts.mla.q_lora_rank, facts.mla.kv_lora_rank, facts.mla.rope_dim) == (1536, 512, 64)
    assert facts.quantization == Quantization(method="fp8", bits=8, block=(128, 128))
    assert (facts.mtp_layers, facts.ffn, facts.context) == (1, 18432, 163840)
    assert facts.moe is not None
    assert (facts.moe.experts, facts.moe.per_token, facts.moe.expert_ffn, facts.moe.shared_ffn) == (256, 8, 2048, 2048)
    experts = {w.dtype: w.elements for w in facts.weights if w.role is Role.EXPERTS}
    assert experts["F8_E4M3"] == 58 * 256 * 3 * 7168 * 2048
    assert experts["F32"] == 58 * 256 * 3 * 56 * 16
    mtp = sum(w.elements for w in facts.weights if w.role is Role.MTP and w.dtype != "F32")
    assert mtp == 11_610_068_224 - 256  # its embedding and head are copies
    down = 61 * 7168 * (1536 + 512 + 64)
    assert sum(w.elements for w in facts.weights if w.role is Role.REPLICATED and w.dtype == "F8_E4M3") == down


@pytest.mark.parametrize("repo", ["deepseek-ai/DeepSeek-V3.2", "zai-org/GLM-5"])
def test_sparse_attention_keeps_an_index(repo: str) -> None:
    (group,) = facts_of(repo).layers
    assert (group.kind, group.indexer_bytes, group.key_dim) == (LayerKind.MLA, 132, 576)


@pytest.mark.parametrize(("repo", "half"), [("openai/gpt-oss-20b", 12), ("openai/gpt-oss-120b", 18)])
def test_mxfp4_experts_and_a_window_in_every_other_layer(repo: str, half: int) -> None:
    facts = facts_of(repo)
    kinds = {g.kind: (g.count, g.window, g.kv_heads, g.key_dim) for g in facts.layers}
    assert kinds == {LayerKind.FULL: (half, 0, 8, 64), LayerKind.SLIDING: (half, 128, 8, 64)}
    assert facts.quantization == Quantization(method="mxfp4", bits=4, group=32)
    assert (facts.context, facts.ffn, facts.dtype) == (131072, 0, "BF16")
    packed = 2 * half * MODELS[repo]["moe"]["experts"] * 3 * 2880 * 2880
    assert {w.bytes for w in facts.weights if w.dtype == "U8"} == {packed * 17 // 32}  # values and scales


def test_gemma_leaves_out_what_its_class_knows_and_sees() -> None:
    facts = facts_of("google/gemma-3-27b-it")
    kinds = {g.kind: (g.count, g.window) for g in facts.layers}
    assert kinds == {LayerKind.FULL: (10, 0), LayerKind.SLIDING: (52, 1024)}
    assert (facts.vocab, facts.context, facts.tied_head, facts.soft_cap) == (262208, 131072, True, False)
    assert facts.vision == Vision(hidden=1152, layers=27, patch=14, largest_image=896, spatial_merge=1)
    assert sum(w.elements for w in facts.weights if w.role is Role.VISION) == 423_060_336


@pytest.mark.parametrize(
    ("repo", "vision", "elements"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", (1280, 32, 14, 2), 676_550_144),
        ("Qwen/Qwen3-VL-8B-Instruct", (1152, 27, 16, 2), 456_007_024),
    ],
)
def test_vision_tower_is_apart(repo: str, vision: tuple[int, ...], elements: int) -> None:
    facts = facts_of(repo)
    assert facts.vision is not None
    seen = facts.vision
    assert (seen.hidden, seen.layers, seen.patch, seen.spatial_merge, seen.largest_image) == (*vision, 4096)
    assert sum(w.elements for w in facts.weights if w.role is Role.VISION) == elements
    assert [g.kind for g in facts.layers] == [LayerKind.FULL]  # its window is switched off


@pytest.mark.parametrize(
    ("repo", "full", "states", "heads"),
    [
        ("Qwen/Qwen3-Next-80B-A3B", 12, 36, 32),
        ("Qwen/Qwen3.5-35B-A3B", 10, 30, 32),
        ("Qwen/Qwen3.5-397B-A17B", 15, 45, 64),
    ],
)
def test_gated_delta_layers_keep_a_state(repo: str, full: int, states: int, heads: int) -> None:
    facts = facts_of(repo)
    kinds = {g.kind: g for g in facts.layers}
    assert (kinds[LayerKind.FULL].count, kinds[LayerKind.STATE].count) == (full, states)
    assert kinds[LayerKind.STATE].state == State(
        conv_channels=2 * 16 * 128 + heads * 128, conv_kernel=4, heads=heads, key_dim=128, value_dim=128
    )
    assert (kinds[LayerKind.FULL].kv_heads, kinds[LayerKind.FULL].key_dim, facts.mtp_layers) == (2, 256, 1)


def test_encoders() -> None:
    embeds, ranks = facts_of("BAAI/bge-m3"), facts_of("BAAI/bge-reranker-v2-m3")
    assert (embeds.task, ranks.task) == (Task.EMBED, Task.RERANK)
    for facts in (embeds, ranks):
        (group,) = facts.layers
        assert (group.kind, group.count, facts.context, facts.dtype) == (LayerKind.ENCODER, 24, 8192, "F32")
        assert facts.bytes_of(Role.KV_PROJECTION) == 24 * 2 * (1024 * 1024 + 1024) * 4


def test_whisper_keeps_what_it_heard() -> None:
    facts = facts_of("openai/whisper-large-v3")
    kinds = {g.kind: (g.count, g.kv_heads, g.key_dim, g.window) for g in facts.layers}
    assert kinds == {LayerKind.FULL: (32, 20, 64, 0), LayerKind.CROSS: (32, 20, 64, 1500)}
    assert (facts.task, facts.layers_total, facts.encoder_layers, facts.context) == (Task.TRANSCRIBE, 32, 32, 448)
    assert facts.tied_head
    assert facts.bytes_of(Role.MTP, Role.HEAD) == 0


def test_fingerprint_is_the_same_for_the_same_and_another_for_another() -> None:
    facts = facts_of("meta-llama/Llama-3.1-8B")
    facts_of.cache_clear()
    assert facts_of("meta-llama/Llama-3.1-8B") == facts
    assert len(facts.fingerprint) == 32
    assert facts_of("mistralai/Mistral-7B-v0.3").fingerprint != facts.fingerprint
