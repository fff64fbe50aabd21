"""What each layer keeps of a sequence, from a ``config.json``. Pure."""

from collections import Counter
from collections.abc import Sequence

from fleet.sizing.facts import LayerKind, Layers, State
from fleet.sizing.files import ReadError, ReadProblem
from fleet.sizing.json_fields import Fields

MOST_LAYERS = 10_000

Kinds = tuple[LayerKind, ...]
"""What one layer keeps: nothing (an MLP alone), one thing, or two (attention beside a state)."""

_FULL: Kinds = (LayerKind.FULL,)
_SLIDING: Kinds = (LayerKind.SLIDING,)
_STATE: Kinds = (LayerKind.STATE,)

_TYPES: dict[str, Kinds] = {
    **dict.fromkeys(("full_attention", "attention", "global", "full", "global_attention"), _FULL),
    **dict.fromkeys(("sliding_attention", "chunked_attention", "local", "local_attention"), _SLIDING),
    **dict.fromkeys(("linear_attention", "mamba", "mamba2", "conv", "recurrent"), _STATE),
    "hybrid": (*_FULL, *_STATE),
    "mlp": (),
    "moe": (),
}
_PATTERN: dict[str, Kinds] = {"M": _STATE, "*": _FULL, "-": (), "E": ()}
"""``hybrid_override_pattern`` of Nemotron-H."""
_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2, "llama4_text": 4, "exaone4": 4}
"""Where the config does not say it: one in so many layers looks at everything, the rest slide."""
_ALL_SLIDE = frozenset({"mistral", "mixtral", "phi3", "phimoe", "starcoder2", "ministral"})
_PARALLEL = frozenset({"falcon_h1"})
_NO_MLA = frozenset({"minicpm3"})
"""Has the low-rank projections, but engines cache whole heads."""
_INDEXER_BYTES = 132
"""128 values in FP8 and their scale."""


def is_mla(text: Fields) -> bool:
    return text.count("kv_lora_rank") > 0 and text.text("model_type") not in _NO_MLA


def head_dim(text: Fields) -> int:
    heads = text.count("num_attention_heads", "n_head", "n_heads")
    rope = text.count("qk_nope_head_dim") + text.count("qk_rope_head_dim")
    if rope:
        return rope
    hidden = text.count("hidden_size", "n_embd", "d_model")
    return text.count("head_dim", "attention_head_dim", default=hidden // heads if heads else 0)


def decoder_layers(text: Fields, total: int) -> tuple[tuple[Layers, ...], tuple[str, ...]]:
    """(layers, notes)."""
    kinds, notes = _kinds(text, total)
    shared = text.count("num_kv_shared_layers")
    counts = Counter(kind for kinds_of_one in kinds[: total - min(shared, total)] for kind in kinds_of_one)
    found = [_group(text, kind, count) for kind, count in sorted(counts.items())]
    if any(g.kind is LayerKind.STATE and g.state is None for g in found):
        notes += ("the size of its state layers is not known: none is counted for them",)
    return tuple(found), notes


def _group(text: Fields, kind: LayerKind, count: int) -> Layers:
    if kind is LayerKind.STATE:
        return Layers(kind=kind, count=count, state=_state(text))
    if kind is LayerKind.FULL and is_mla(text):
        latent = text.count("kv_lora_rank") + text.count("qk_rope_head_dim")
        indexer = _INDEXER_BYTES if text.count("index_head_dim") and text.count("index_topk") else 0
        return Layers(kind=LayerKind.MLA, count=count, kv_heads=1, key_dim=latent, indexer_bytes=indexer)
    return _attention(text, kind, count)


def _attention(text: Fields, kind: LayerKind, count: int) -> Layers:
    heads = text.count("num_attention_heads", "n_head", "n_heads")
    kv_heads = 1 if text.flag("multi_query") else text.count("num_key_value_heads", "num_kv_heads", default=heads)
    key = value = head_dim(text)
    if kind is LayerKind.FULL:
        key = value = text.count("global_head_dim", default=key)
        kv_heads = text.count("num_global_key_value_heads", default=kv_heads)
    else:
        key = value = text.count("swa_head_dim", default=key)
        kv_heads = text.count("swa_num_key_value_heads", default=kv_heads)
    window = _window(text) if kind is LayerKind.SLIDING else 0
    return Layers(kind=kind, count=count, kv_heads=kv_heads, key_dim=key, value_dim=value, window=window)


def _window(text: Fields) -> int:
    return text.count("sliding_window", "attention_chunk_size", "sliding_window_size", "local_attention")


# -- which layer keeps what ---------------------------------------------------------------------------------------


def _kinds(text: Fields, total: int) -> tuple[Sequence[Kinds], tuple[str, ...]]:
    """(of each layer, notes)."""
    said = _listed(text, total) or _hybrid(text, total)
    if said is not None:
        if _window(text) == 0 and _SLIDING in said:
            said = [_FULL if kinds == _SLIDING else kinds for kinds in said]
        return said, ()
    window, model_type = _window(text), text.text("model_type")
    if window == 0 or text.flag("use_sliding_window") is False:
        return [_FULL] * total, ()
    every = text.count("_sliding_window_pattern", "sliding_window_pattern", default=_EVERY.get(model_type, 0))
    if every:
        return [_FULL if (i + 1) % every == 0 else _SLIDING for i in range(total)], ()
    if text.flag("use_sliding_window"):
        first = text.count("max_window_layers")
        return [_SLIDING if i >= first else _FULL for i in range(total)], ()
    if model_type in _ALL_SLIDE:
        return [_SLIDING] * total, ()
    return [_FULL] * total, (f"it has a window of {window:,} tokens, but not for which layers: none is counted",)


def _listed(text: Fields, total: int) -> list[Kinds] | None:
    """Where the config lists its layers one by one."""
    names = text.texts("layer_types", "layers_block_type")
    if names:
        unknown = next((name for name in names if name not in _TYPES), None)
        if unknown is not None:
            raise _unknown(f"layers of type {unknown[:40]!r}")
        return _fitting([_TYPES[name] for name in names], total)
    pattern = text.text("hybrid_override_pattern")
    if pattern:
        return _fitting([_PATTERN.get(letter, _FULL) for letter in pattern], total)
    attention = text.counts("attn_type_list")
    return _fitting([_FULL if one else _STATE for one in attention], total) if attention else None


def _hybrid(text: Fields, total: int) -> list[Kinds] | None:
    """Where it says by a rule which layers attend."""
    if text.text("model_type") in _PARALLEL:
        return [(*_FULL, *_STATE)] * total
    if "linear_num_value_heads" in text:
        return _every(total, text.count("full_attention_interval", default=4) or 1, -1)
    if "attn_layer_period" in text:
        return _every(total, text.count("attn_layer_period") or 1, text.count("attn_layer_offset"))
    attending = text.counts("attn_layer_indices")
    linear = text.sub("linear_attn_config")
    if linear:
        attending = tuple(n - 1 for n in linear.counts("full_attn_layers"))  # counted from 1
    if attending:
        return [_FULL if i in attending else _STATE for i in range(total)]
    only_state = text.text("model_type") in ("mamba", "mamba2", "falcon_mamba")
    return [_STATE] * total if only_state else None


def _every(total: int, period: int, offset: int) -> list[Kinds]:
    return [_FULL if i % period == offset % period else _STATE for i in range(total)]


def _fitting(kinds: list[Kinds], total: int) -> list[Kinds]:
    if len(kinds) < total:
        raise ReadError(
            ReadProblem.MALFORMED,
            f"config.json says {total} layers, but of which kind only for {len(kinds)}",
            "the file is damaged: fetch it again",
        )
    return kinds[:total]


def _unknown(what: str) -> ReadError:
    return ReadError(ReadProblem.UNSUPPORTED, f"it has {what}, which are not known", "a newer Holdfast may know them")


# -- states -------------------------------------------------------------------------------------------------------


def _state(text: Fields) -> State | None:
    linear = text.sub("linear_attn_config")
    if "linear_num_value_heads" in text:
        return _gated_delta(text)
    if linear:
        return _kimi_delta(linear)
    if text.counts("attn_type_list"):
        dim = head_dim(text)
        return State(
            conv_channels=0, conv_kernel=1, heads=text.count("num_attention_heads"), key_dim=dim, value_dim=dim
        )
    if "conv_L_cache" in text:
        return State(
            conv_channels=text.count("conv_dim", "hidden_size"),
            conv_kernel=text.count("conv_L_cache"),
            heads=0,
            key_dim=0,
            value_dim=0,
        )
    return _mamba2(text) or _mamba(text)


def _gated_delta(text: Fields) -> State:
    key, value = text.count("linear_key_head_dim"), text.count("linear_value_head_dim")
    heads = text.count("linear_num_value_heads")
    return State(
        conv_channels=2 * text.count("linear_num_key_heads") * key + heads * value,
        conv_kernel=text.count("linear_conv_kernel_dim", default=4),
        heads=heads,
        key_dim=key,
        value_dim=value,
    )


def _kimi_delta(linear: Fields) -> State:
    heads, dim = linear.count("num_heads"), linear.count("head_dim")
    kernel = linear.count("short_conv_kernel_size", default=4)
    return State(conv_channels=3 * heads * dim, conv_kernel=kernel, heads=heads, key_dim=dim, value_dim=dim)


def _mamba2(text: Fields) -> State | None:
    pure = text.text("model_type") == "mamba2"
    heads = text.count("num_heads" if pure else "mamba_num_heads", "mamba_n_heads", "n_mamba_heads")
    dim = text.count("head_dim" if pure else "mamba_head_dim", "mamba_d_head", "mamba_headdim")
    if not heads or not dim:
        return None
    state = text.count("ssm_state_size", "mamba_d_state", "state_size")
    groups = text.count("n_groups", "mamba_n_groups", "mamba_ngroups", default=1)
    return State(
        conv_channels=heads * dim + 2 * groups * state,
        conv_kernel=text.count("conv_kernel", "mamba_d_conv", "d_conv", default=4),
        heads=heads,
        key_dim=state,
        value_dim=dim,
    )


def _mamba(text: Fields) -> State | None:
    """The first Mamba has no heads: each channel counts as one."""
    state = text.count("mamba_d_state", "state_size")
    hidden = text.count("hidden_size", "d_model")
    inner = text.count("intermediate_size") if "state_size" in text else 0
    inner = inner or hidden * text.count("mamba_expand", "expand", default=2)
    if not state:
        return None
    kernel = text.count("mamba_d_conv", "conv_kernel", default=4)
    return State(conv_channels=inner, conv_kernel=kernel, heads=inner, key_dim=state, value_dim=1)
