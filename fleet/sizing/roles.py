"""What a tensor of a Hugging Face checkpoint is for, by its name. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

from fleet.sizing.facts import Role, Weights
from fleet.sizing.safetensors import Tensor

_BESIDE_TEXT = frozenset(
    [
        "visual",
        "vision",
        "vision_tower",
        "vision_model",
        "vision_encoder",
        "vision_embed_tokens",
        "vision_backbone",
        "vit",
        "vpm",
        "resampler",
        "multi_modal_projector",
        "mm_projector",
        "mlp1",
        "aligner",
        "image_newline",
        "patch_merger",
        "pre_mm_projector_norm",
        "vision_language_adapter",
        "embed_vision",
        "embed_audio",
        "audio_tower",
        "audio_model",
        "audio_encoder",
        "audio_projector",
        "sound_encoder",
        "sam_model",
    ]
)
_OF_ANOTHER_MODEL = frozenset({"talker", "token2wav", "code2wav"})
"""Speech synthesis of omni models, which text engines do not load."""
_NEVER_LOADED = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|attn\.bias|rotary_emb\..*)$")
_EMBEDDING = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_tokens_per_layer", "embed_in"}
)
_POSITIONS = frozenset({"position_embeddings", "token_type_embeddings", "embed_positions", "wpe"})
_HEAD = frozenset({"lm_head", "proj_out", "embed_out"})
_CLASSIFIER = frozenset({"classifier", "score", "pooler", "v_head"})
_ROUTER = frozenset({"gate", "router", "e_score_correction_bias", "shared_expert_gate", "gate_weight", "wg"})
_ATTENTION = frozenset(
    [
        "self_attn",
        "attn",
        "attention",
        "self_attention",
        "mixer",
        "mamba",
        "linear_attn",
        "encoder_attn",
        "linear_attention",
        "temporal_block",
        "conv",
        "SelfAttention",
        "EncDecAttention",
    ]
)
_KV = frozenset({"k_proj", "v_proj", "key", "value", "wk", "wv", "kv_proj", "k_conv1d", "v_conv1d"})
_MLA_DOWN = frozenset({"q_a_proj", "kv_a_proj_with_mqa", "fused_qkv_a_proj_with_mqa", "indexer"})
_MLP_IN_MIXER = frozenset({"up_proj", "down_proj", "gate_proj", "gate_up_proj"})
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_NUMBER = re.compile(r"\d+")


def weights_by_role(tensors: Iterable[Tensor], layers: int, *, tied: bool) -> tuple[Weights, ...]:
    """Those that engines load, added up. ``layers``: what comes after so many predicts several tokens ahead."""
    sums: defaultdict[tuple[Role, str], list[int]] = defaultdict(lambda: [0, 0])
    for tensor in tensors:
        role = role_of(tensor.name, layers, tied=tied)
        if role is not None:
            entry = sums[role, tensor.dtype]
            entry[0] += tensor.elements
            entry[1] += tensor.bytes
    return tuple(
        Weights(role=role, dtype=dtype, elements=elements, bytes=size)
        for (role, dtype), (elements, size) in sorted(sums.items())
    )


def role_of(name: str, layers: int, *, tied: bool) -> Role | None:
    """None: not loaded, or shared with another one."""
    role = _role(_NUMBER.sub("0", name), tied)
    if role in (Role.VISION, None) or not _predicts_ahead(name, layers):
        return role
    # Layers for speculation use the model's own embedding and head, whatever copies are stored with them.
    return None if role in (Role.EMBEDDING, Role.HEAD) else Role.MTP


def mtp_layers(tensors: Iterable[Tensor], layers: int) -> int:
    """Layers that come after the last of the model, or lie under a name of their own."""
    found = {_predictor(t.name, layers) for t in tensors if not _beside(t.name)}
    return len(found - {None})


def _predictor(name: str, layers: int) -> int | None:
    """Number of the MTP layer that it belongs to."""
    apart, layer = any(p.startswith("mtp") for p in name.split(".")), _layer(name)
    if layer is not None and (apart or layer >= layers):
        return layer
    return None


def is_head(name: str) -> bool:
    return _role(_NUMBER.sub("0", name), False) is Role.HEAD


def is_embedding(name: str) -> bool:
    return _role(_NUMBER.sub("0", name), False) is Role.EMBEDDING and "embed_tokens_per_layer" not in name


def _predicts_ahead(name: str, layers: int) -> bool:
    layer = _layer(name)
    return (layer is not None and layer >= layers) or any(p.startswith("mtp") for p in name.split("."))


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1][:9]) if found is not None else None


def _beside(name: str) -> bool:
    return not _BESIDE_TEXT.isdisjoint(name.split(".")[:4])


@lru_cache(maxsize=100_000)
def _role(name: str, tied: bool) -> Role | None:
    """``name``: with all numbers replaced by 0, so that all layers are one."""
    parts = name.split(".")
    inside = frozenset(parts)
    if _NEVER_LOADED.search(name) or not _OF_ANOTHER_MODEL.isdisjoint(parts[:2]):
        return None
    if _beside(name):
        return Role.VISION
    if _is_head(parts, inside):
        return None if tied else Role.HEAD
    if inside & _EMBEDDING or parts[:-1] == ["shared"] or parts[-2:-1] in (["embed"], ["embeddings"]):
        return Role.EMBEDDING
    if _is_replicated(parts, inside):
        return Role.REPLICATED
    if "experts" in inside:
        return Role.EXPERTS
    return _role_in_layer(parts, inside)


def _is_head(parts: list[str], inside: frozenset[str]) -> bool:
    return bool(inside & _HEAD) or parts[:-1] in (["output"], ["head"]) or parts[-3:-1] == ["shared_head", "head"]


def _is_replicated(parts: list[str], inside: frozenset[str]) -> bool:
    if inside & (_POSITIONS | _CLASSIFIER | _ROUTER | _MLA_DOWN):
        return True
    module = parts[-2] if len(parts) > 1 else parts[0]
    return "norm" in module.lower() or module.startswith("ln_") or parts[-1].endswith("layernorm")


def _role_in_layer(parts: list[str], inside: frozenset[str]) -> Role:
    if _LAYER.search(".".join(parts)) is None and not inside & _ATTENTION:
        return Role.REPLICATED
    if inside & _ATTENTION and not inside & _MLP_IN_MIXER and "mlp" not in inside:
        return Role.KV_PROJECTION if inside & _KV else Role.ATTENTION
    return Role.MLP
