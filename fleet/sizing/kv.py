"""What attention and state layers keep for each token and each sequence, on one rank. Pure."""

from math import ceil

from fleet.sizing.facts import LayerKind, Layers, State

_WIDTHS = {
    "auto": 2.0,
    "f32": 4.0,
    "float32": 4.0,
    "f16": 2.0,
    "float16": 2.0,
    "bf16": 2.0,
    "bfloat16": 2.0,
    "int8": 1.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
    "nvfp4": 18 / 32,
    "fp4": 18 / 32,
}
"""Bytes of one element, scales included."""
_FP8_DS_MLA_BYTES = 656
"""A token of FlashMLA's FP8 layout: 512 B latent, 16 B scales, 128 B of the rotary part in 16 bit."""


def width(dtype: str) -> float:
    """Bytes of one element; 2 for what is not known, which is never too little but for FP32."""
    if dtype.startswith("fp8"):
        return 1.0
    return _WIDTHS.get(dtype, 0.5625 if dtype.startswith("int4") else 2.0)


def token_bytes(layer: Layers, tensor_parallel: int, dtype: str) -> float:
    """Of one layer and one token. State and encoder layers: 0."""
    match layer.kind:
        case LayerKind.MLA:
            return _latent_bytes(layer, dtype) + layer.indexer_bytes
        case LayerKind.FULL | LayerKind.SLIDING | LayerKind.CROSS:
            heads = ceil(layer.kv_heads / tensor_parallel)
            return heads * (layer.key_dim + layer.value_dim) * width(dtype) + layer.indexer_bytes
        case _:
            return 0.0


def _latent_bytes(layer: Layers, dtype: str) -> float:
    """Whole on every rank. Sparse attention knows FP8 in FlashMLA's layout only."""
    if dtype == "fp8_ds_mla" or (layer.indexer_bytes and dtype.startswith("fp8")):
        return _FP8_DS_MLA_BYTES
    return (layer.key_dim + layer.value_dim) * width(dtype)


def state_bytes(state: State, tensor_parallel: int, *, conv_width: int = 2) -> int:
    """Of one layer and one sequence: the convolution's last inputs, and the state itself in FP32."""
    conv = ceil(state.conv_channels / tensor_parallel) * (state.conv_kernel - 1) * conv_width
    return conv + ceil(state.heads / tensor_parallel) * state.value_dim * state.key_dim * 4


def kept_tokens(layer: Layers, context: int, in_flight: int) -> int:
    """Of a sequence of ``context`` tokens, by layers that keep no more than they need."""
    match layer.kind:
        case LayerKind.FULL | LayerKind.MLA:
            return context
        case LayerKind.SLIDING:
            return min(layer.window - 1 + in_flight, context)
        case LayerKind.CROSS:
            return layer.window
        case _:
            return 0


def sequence_bytes(
    layers: tuple[Layers, ...], context: int, *, tensor_parallel: int = 1, dtype: str = "auto", in_flight: int = 1
) -> int:
    """Of all layers for one sequence of ``context`` tokens, without any paging."""
    total = 0.0
    for layer in layers:
        total += layer.count * token_bytes(layer, tensor_parallel, dtype) * kept_tokens(layer, context, in_flight)
        if layer.state is not None:
            total += layer.count * state_bytes(layer.state, tensor_parallel)
    return ceil(total)


def of_stage(layers: tuple[Layers, ...], pipeline_parallel: int) -> tuple[Layers, ...]:
    """Those of the fullest pipeline stage."""
    if pipeline_parallel == 1:
        return layers
    return tuple(layer.model_copy(update={"count": ceil(layer.count / pipeline_parallel)}) for layer in layers)
