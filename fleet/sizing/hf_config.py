"""What a ``config.json`` (and the small files beside it) says of a model. Pure."""

import math
from dataclasses import dataclass
from typing import Any

from fleet.sizing.facts import (
    Format,
    LayerKind,
    Layers,
    Mla,
    ModelFacts,
    Moe,
    Task,
    Vision,
)
from fleet.sizing.files import ReadError, ReadProblem
from fleet.sizing.hf_layers import MOST_LAYERS, decoder_layers, head_dim, is_mla
from fleet.sizing.hf_quantization import quantization_of
from fleet.sizing.json_fields import Fields

_EMPTY = Fields({}, "")

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_DECODER_LAYERS = ("num_decoder_layers", "decoder_layers", *_LAYERS)
"""``num_hidden_layers`` of models with an encoder are the encoder's."""
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads")
_FFN = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim")
_CONTEXT = (
    "max_position_embeddings",
    "max_target_positions",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "n_ctx",
)
_ENCODERS = frozenset(
    [
        "bert",
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "distilbert",
        "mpnet",
        "electra",
        "deberta",
        "deberta-v2",
        "nomic_bert",
        "new",
        "modernbert",
        "gte",
        "jina_bert",
        "snowflake_gte",
        "xlm",
        "albert",
        "ernie",
    ]
)
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert"})
"""Their positions start behind the padding token's."""
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "half": "F16", "float32": "F32", "float": "F32"}
_UNSCALED = frozenset({"default", "mrope", "su", "longrope", "llama3", "proportional"})
"""Kinds of rope scaling after which ``max_position_embeddings`` is the whole context already."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    "gemma2": {"head_dim": 256, "sliding_window": 4096, "max_position_embeddings": 8192},
    "mistral": {"num_key_value_heads": 8},
    "llama4_text": {"head_dim": 128, "attention_chunk_size": 8192},
    "modernbert": {"max_position_embeddings": 8192},
}
"""What configs of these types leave out, because it is the default of their class in transformers."""


@dataclass(frozen=True)
class Documents:
    """The small files of a model."""

    config: Fields
    quantization: Fields = _EMPTY
    """``hf_quant_config.json``."""
    preprocessor: Fields = _EMPTY
    sentence: Fields = _EMPTY
    """``sentence_bert_config.json``."""
    pools: bool = False
    """Of sentence-transformers: it comes with ``modules.json``."""
    chat_template: bool = False


def facts_of_config(docs: Documents) -> ModelFacts:
    """Without weights, files and fingerprint. Raises ReadError."""
    config, text = docs.config, text_of(docs.config)
    architecture = next(iter(config.texts("architectures") or text.texts("architectures")), "")
    total = text.need(*(_DECODER_LAYERS if config.flag("is_encoder_decoder") else _LAYERS))
    if total > MOST_LAYERS:
        raise ReadError(ReadProblem.MALFORMED, f"config.json says {total:,} layers", "the file is damaged")
    layers, notes = _layers(config, text, total)
    moe = _moe(text)
    context, about_context = _context(docs, text)
    return ModelFacts(
        format=Format.SAFETENSORS,
        architecture=architecture,
        model_type=config.text("model_type"),
        task=_task(architecture, docs.pools),
        fingerprint="",
        hidden=text.need(*_HIDDEN),
        layers_total=total,
        heads=text.count(*_HEADS),
        vocab=text.count("vocab_size", "padded_vocab_size"),
        ffn=_dense_ffn(text, moe, total),
        context=context,
        tied_head=_tied(config, text) or False,
        soft_cap=text.number("final_logit_softcapping") > 0,
        remote_code="auto_map" in config or "auto_map" in text,
        dtype=_DTYPES.get((config.text("torch_dtype", "dtype") or text.text("torch_dtype", "dtype")).lower(), ""),
        quantization=quantization_of(config, text, docs.quantization),
        layers=layers,
        moe=moe,
        mla=_mla(text),
        vision=_vision(docs),
        mtp_layers=text.count("num_nextn_predict_layers", "mtp_num_hidden_layers"),
        encoder_layers=_encoder_layers(config),
        chat_template=docs.chat_template,
        notes=notes + about_context,
    )


def says_tied(docs: Documents) -> bool | None:
    """None: it does not say."""
    return _tied(docs.config, text_of(docs.config))


def text_of(config: Fields) -> Fields:
    """Of the language model in it; the whole where it is nothing else."""
    inner = config.sub("thinker_config") or config
    text = inner.sub("text_config", "llm_config", "language_config")
    if not text:
        text = inner
    return text.with_defaults(_DEFAULTS.get(text.text("model_type"), {}))


def _tied(config: Fields, text: Fields) -> bool | None:
    said = config.flag("tie_word_embeddings")
    return said if said is not None else text.flag("tie_word_embeddings")


def _task(architecture: str, pools: bool) -> Task:
    if architecture.endswith(("ForSequenceClassification", "RewardModel", "ForTokenClassification")):
        return Task.RERANK
    if architecture.startswith("Whisper") or "SpeechSeq2Seq" in architecture or "ASR" in architecture:
        return Task.TRANSCRIBE
    if pools or (architecture.endswith(("Model", "ForMaskedLM")) and not architecture.endswith("LMHeadModel")):
        return Task.EMBED
    return Task.GENERATE


# -- layers -------------------------------------------------------------------------------------------------------


def _layers(config: Fields, text: Fields, total: int) -> tuple[tuple[Layers, ...], tuple[str, ...]]:
    if config.flag("is_encoder_decoder"):
        return _encoder_decoder(text, total), ()
    heads = text.count(*_HEADS)
    if text.text("model_type").lower() in _ENCODERS:
        dim = head_dim(text)
        return (Layers(kind=LayerKind.ENCODER, count=total, kv_heads=heads, key_dim=dim, value_dim=dim),), ()
    return decoder_layers(text, total)


def _encoder_decoder(text: Fields, total: int) -> tuple[Layers, ...]:
    heads = text.need(*_HEADS[:-1], "encoder_attention_heads", "num_heads")
    dim = text.count("d_kv") or text.need(*_HIDDEN) // heads
    encoded = text.count("max_source_positions", *_CONTEXT)
    shape = {"kv_heads": heads, "key_dim": dim, "value_dim": dim}
    return (
        Layers(kind=LayerKind.FULL, count=total, **shape),
        Layers(kind=LayerKind.CROSS, count=total, window=encoded, **shape),
    )


def _encoder_layers(config: Fields) -> int:
    if not config.flag("is_encoder_decoder"):
        return 0
    return config.count("encoder_layers", "num_layers")


def _mla(text: Fields) -> Mla | None:
    if not is_mla(text):
        return None
    return Mla(
        q_lora_rank=text.count("q_lora_rank"),
        kv_lora_rank=text.count("kv_lora_rank"),
        nope_dim=text.count("qk_nope_head_dim"),
        rope_dim=text.count("qk_rope_head_dim"),
        value_dim=text.count("v_head_dim"),
    )


# -- experts ------------------------------------------------------------------------------------------------------


def _moe(text: Fields) -> Moe | None:
    experts = text.count("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    if experts < 2:
        return None
    width = text.count("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size", "ffn_hidden_size")
    shared = text.count("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
    return Moe(
        experts=experts,
        per_token=text.count("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", default=1),
        expert_ffn=width,
        shared_ffn=text.count(
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
            default=shared * width,
        ),
    )


def _dense_ffn(text: Fields, moe: Moe | None, total: int) -> int:
    width = text.count("intermediate_size_mlp", *_FFN, default=4 * text.count(*_HIDDEN))
    if moe is None:
        return width
    first = text.count("first_k_dense_replace")
    apart = text.counts("mlp_only_layers")
    listed = text.counts("moe_layer_freq")
    some = 0 in listed or 0 < first < total or bool(apart) or text.count("decoder_sparse_step", default=1) > 1
    return width if some or "-" in text.text("hybrid_override_pattern") else 0


# -- context ------------------------------------------------------------------------------------------------------


def _context(docs: Documents, text: Fields) -> tuple[int, tuple[str, ...]]:
    """(tokens, notes)."""
    longest = text.count(*_CONTEXT)
    if longest == 0:
        return 2048, ("its longest context is not said: 2,048 tokens are assumed",)
    if text.text("model_type") in _OFFSET_POSITIONS:
        longest -= text.count("pad_token_id", default=1) + 1
    pooled = docs.sentence.count("max_seq_length")
    longest = min(longest, pooled) if pooled else longest
    return max(1, math.floor(longest * _stretch(text, longest))), ()


def _stretch(text: Fields, longest: int) -> float:
    """By how much rope scaling lengthens ``longest``."""
    rope = text.sub("rope_scaling", "rope_parameters")
    rope = rope.sub("full_attention") or rope
    kind = rope.text("rope_type", "type")
    factor = rope.number("factor", default=1.0)
    if not kind or kind in _UNSCALED or factor <= 1 or text.text("model_type").startswith("gemma"):
        return 1.0
    original = rope.count("original_max_position_embeddings")
    if original:
        return max(1.0, original * factor / longest)
    return factor


# -- vision -------------------------------------------------------------------------------------------------------


def _vision(docs: Documents) -> Vision | None:
    inner = docs.config.sub("thinker_config") or docs.config
    tower = inner.sub("vision_config", "vision_encoder", "vit_config")
    hidden = tower.count("embed_dim", "hidden_size", "width")
    layers = tower.count("depth", "num_hidden_layers", "layers", "num_layers")
    if tower.text("model_type").startswith("qwen2_5_vl"):
        hidden = tower.count("hidden_size", default=hidden)
    if not hidden or not layers:
        return None
    return Vision(
        hidden=hidden,
        layers=layers,
        patch=tower.count("patch_size", "spatial_patch_size", default=14),
        largest_image=_largest_image(tower, docs.preprocessor),
        spatial_merge=tower.count("spatial_merge_size") or inner.count("spatial_merge_size") or 1,
    )


def _largest_image(tower: Fields, preprocessor: Fields) -> int:
    """Pixels on one side, of a square one. Engines size themselves for it."""
    fixed = tower.count("image_size")
    if fixed:
        return fixed
    size = preprocessor.sub("size")
    pixels = preprocessor.count("max_pixels") or size.count("max_pixels")
    if not pixels and "shortest_edge" in size:
        pixels = size.count("longest_edge")
    return math.isqrt(pixels or _MOST_PIXELS)


_MOST_PIXELS = 16_777_216
"""What Qwen's processors take at most where nothing else is said."""
