"""What each layer keeps of a sequence in llama.cpp, from the keys of a GGUF file. Pure."""

from collections import Counter
from collections.abc import Sequence

from fleet.sizing.facts import LayerKind, Layers, State
from fleet.sizing.json_fields import Fields

ENCODERS = frozenset(
    [
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "eurobert",
        "t5encoder",
        "gemma-embedding",
    ]
)
_EVERY = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma-embedding": 6,
    "gpt-oss": 2,
    "cohere2": 4,
    "llama4": 4,
    "exaone4": 4,
    "olmo2": 4,
    "plamo3": 8,
}
"""Where the file does not say it, llama.cpp knows: one in so many layers looks at everything, the rest slide."""
_STATE_ALONE = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
_PARALLEL = frozenset({"falcon-h1"})

_Kept = tuple[LayerKind, int]
"""(what a layer keeps, KV heads)."""


def layers_of(arch: str, own: Fields, total: int) -> tuple[tuple[Layers, ...], tuple[str, ...]]:
    """``own``: the keys of its architecture, without that prefix. (layers, notes)."""
    kv_heads = _kv_heads(own, total)
    if arch in ENCODERS:
        kinds: list[_Kept] = [(LayerKind.ENCODER, heads) for heads in kv_heads]
    elif own.count("ssm.state_size", "wkv.head_size") or arch in _STATE_ALONE:
        kinds = _with_states(arch, own, kv_heads)
    else:
        kinds = _attending(arch, own, kv_heads)
    shared = min(own.count("attention.shared_kv_layers"), total)
    counts = Counter(kinds[: len(kinds) - shared])
    found = tuple(_group(own, kind, heads, count) for (kind, heads), count in sorted(counts.items()))
    unknown = any(g.kind is LayerKind.STATE and g.state is None for g in found)
    return found, ("the size of its state layers is not known: none is counted for them",) if unknown else ()


def _kv_heads(own: Fields, total: int) -> list[int]:
    each = own.counts("attention.head_count_kv")
    if len(each) >= total:
        return list(each[:total])
    heads = own.count("attention.head_count_kv", default=own.count("attention.head_count"))
    return [heads] * total


def _with_states(arch: str, own: Fields, kv_heads: Sequence[int]) -> list[_Kept]:
    if arch in _STATE_ALONE:
        return [(LayerKind.STATE, 0)] * len(kv_heads)
    if arch in _PARALLEL:
        return [kept for heads in kv_heads for kept in ((LayerKind.FULL, heads), (LayerKind.STATE, 0))]
    every = own.count("full_attention_interval")
    if not every and 0 not in kv_heads and arch.startswith("qwen3"):
        every = 4
    if every:
        return [
            (LayerKind.FULL, heads) if (i + 1) % every == 0 else (LayerKind.STATE, 0)
            for i, heads in enumerate(kv_heads)
        ]
    widths = own.counts("feed_forward_length")
    return [
        (LayerKind.FULL, heads) if heads else (LayerKind.STATE, 0)
        for i, heads in enumerate(kv_heads)
        if heads or not (i < len(widths) and widths[i])  # Nemotron-H has layers of an MLP alone
    ]


def _attending(arch: str, own: Fields, kv_heads: Sequence[int]) -> list[_Kept]:
    slide = _sliding(arch, own, len(kv_heads))
    return [
        (LayerKind.SLIDING if slides else LayerKind.FULL, heads)
        for slides, heads in zip(slide, kv_heads, strict=True)
        if heads
    ]


def _sliding(arch: str, own: Fields, total: int) -> list[bool]:
    if not _window(own):
        return [False] * total
    pattern = own.values.get("attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= total:
        return [bool(slides) for slides in pattern[:total]]
    every = own.count("attention.sliding_window_pattern") if not isinstance(pattern, list | bool) else 0
    every = every or _EVERY.get(arch, 0)
    return [bool(every) and (i + 1) % every != 0 for i in range(total)]


def _window(own: Fields) -> int:
    return own.count("attention.sliding_window", "attention.chunk_size")


def _group(own: Fields, kind: LayerKind, kv_heads: int, count: int) -> Layers:
    if kind is LayerKind.STATE:
        return Layers(kind=kind, count=count, state=_state(own))
    rank = own.count("attention.kv_lora_rank")
    if kind is LayerKind.FULL and rank and "attention.key_length_mla" in own:
        return Layers(
            kind=LayerKind.MLA, count=count, kv_heads=1, key_dim=rank + own.count("rope.dimension_count"), value_dim=0
        )
    heads = own.count("attention.head_count")
    each = own.count("embedding_length") // heads if heads else 0
    key = own.count("attention.key_length", default=each)
    value = own.count("attention.value_length", default=each)
    if kind is not LayerKind.SLIDING:
        return Layers(kind=kind, count=count, kv_heads=kv_heads, key_dim=key, value_dim=value)
    return Layers(
        kind=kind,
        count=count,
        kv_heads=kv_heads,
        key_dim=own.count("attention.key_length_swa", default=key),
        value_dim=own.count("attention.value_length_swa", default=value),
        window=_window(own),
    )


def _state(own: Fields) -> State | None:
    inner, state = own.count("ssm.inner_size"), own.count("ssm.state_size")
    if not inner or not state:
        return None
    groups, ranks = own.count("ssm.group_count"), own.count("ssm.time_step_rank")
    heads = ranks if groups and ranks and inner % ranks == 0 else inner  # the first Mamba has no heads
    return State(
        conv_channels=inner + 2 * groups * state,
        conv_kernel=own.count("ssm.conv_kernel", default=4),
        heads=heads,
        key_dim=state,
        value_dim=inner // heads,
    )
