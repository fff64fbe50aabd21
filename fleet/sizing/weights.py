"""What a model's weights take on the fullest rank once an engine has loaded them. Pure."""

from math import ceil

from fleet.sizing.facts import LayerKind, Layers, ModelFacts, Role, Weights
from fleet.sizing.sizing import Shape

_MXFP4_HIDDEN = 256
_MXFP4_WIDTH = 64
_NVFP4_WIDTH = 128
"""Engines pad the dimensions of 4-bit experts to multiples of these. Those of MXFP4 follow from what gpt-oss takes on
an H100 (13.47 and 64.38 GiB of 12.82 and 60.77 stored): its values, not their scales, grow by 3072/2880."""
_MXFP4_VALUES = 16 / 17
"""Of the bytes of packed MXFP4 weights: 16 bytes of values come with one scale."""


def rank_weights(
    facts: ModelFacts, shape: Shape, *, text_only: bool = False, mtp: bool = False, dtype: str = "auto"
) -> int:
    """Bytes on the fullest rank. ``dtype`` ``float32``: FP32 checkpoints stay as they are."""
    if not facts.weights:
        return ceil(facts.file_bytes * _halved(facts, dtype) / shape.gpus) + _rotary_tables(facts)
    share = _stage_share(facts, shape.pipeline_parallel)
    layers = sum(_loaded(facts, w, shape, dtype) for w in facts.weights if w.role in _IN_LAYERS) * share
    first = _of(facts, (Role.EMBEDDING, *(() if text_only else (Role.VISION,))), shape, dtype)
    last = _of(facts, (Role.HEAD, *((Role.MTP,) if mtp else ())), shape, dtype)
    if shape.pipeline_parallel == 1:
        return ceil(layers + first + last) + _rotary_tables(facts)
    if facts.tied_head:
        last += _of(facts, (Role.EMBEDDING,), shape, dtype)
    return ceil(layers + max(first, last)) + _rotary_tables(facts)


_IN_LAYERS = frozenset((Role.ATTENTION, Role.KV_PROJECTION, Role.MLP, Role.EXPERTS, Role.REPLICATED))


def kv_heads(facts: ModelFacts) -> int:
    """Of the layers that have any; 0: none has (MLA, states)."""
    return max((layer.kv_heads for layer in facts.layers if layer.kind is not LayerKind.MLA), default=0)


def head_dim(facts: ModelFacts) -> int:
    """Of one attention head, the widest."""
    if facts.mla is not None:
        return facts.mla.nope_dim + facts.mla.rope_dim
    return max((_key_dim(layer) for layer in facts.layers), default=0) or facts.hidden // max(1, facts.heads)


def _key_dim(layer: Layers) -> int:
    return layer.key_dim if layer.kv_heads else 0


def _of(facts: ModelFacts, roles: tuple[Role, ...], shape: Shape, dtype: str) -> float:
    return sum(_loaded(facts, w, shape, dtype) for w in facts.weights if w.role in roles)


def _loaded(facts: ModelFacts, weights: Weights, shape: Shape, dtype: str) -> float:
    size = weights.bytes / _parts(facts, weights.role, shape.tensor_parallel)
    if weights.dtype == "F32":
        size *= _halved(facts, dtype)
    if weights.role is Role.EXPERTS:
        size *= _padding(facts, weights, shape.tensor_parallel)
    return size


def _parts(facts: ModelFacts, role: Role, tensor_parallel: int) -> int:
    if role is Role.REPLICATED:
        return 1
    if role is Role.KV_PROJECTION:
        return min(tensor_parallel, kv_heads(facts) or tensor_parallel)
    return tensor_parallel


def _halved(facts: ModelFacts, dtype: str) -> float:
    """Engines serve FP32 checkpoints in 16 bit. FP32 tensors of other models are scales and the like, and stay."""
    return 0.5 if facts.dtype == "F32" and dtype not in ("float32", "float") else 1.0


def _padding(facts: ModelFacts, weights: Weights, tensor_parallel: int) -> float:
    """By what 4-bit experts grow when a rank's part is padded to what its kernels take."""
    if facts.moe is None or facts.quantization is None or weights.dtype not in ("U8", "F4", "F4_E2M1"):
        return 1.0
    width = ceil(facts.moe.expert_ffn / tensor_parallel)
    if facts.quantization.method == "mxfp4":
        grown = _up(width, _MXFP4_WIDTH) / width * _up(facts.hidden, _MXFP4_HIDDEN) / facts.hidden
        return 1 + (grown - 1) * _MXFP4_VALUES
    if facts.quantization.bits == 4:
        return _up(width, _NVFP4_WIDTH) / width
    return 1.0


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _stage_share(facts: ModelFacts, pipeline_parallel: int) -> float:
    layers = max(1, facts.layers_total)
    return ceil(layers / pipeline_parallel) / layers


def _rotary_tables(facts: ModelFacts) -> int:
    """Sines and cosines of every position, which all layers share; they count among what is loaded."""
    rotary = facts.mla.rope_dim if facts.mla is not None else head_dim(facts)
    return facts.context * rotary * 2
