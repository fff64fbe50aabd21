"""What adapters (LoRA) and speculative decoding add to a model. Pure; bytes of one rank."""

from fleet.sizing.facts import LayerKind, Layers, Lora, ModelFacts
from fleet.sizing.sizing import Draft, Shape, Workload
from fleet.sizing.weights import head_dim, kv_heads, rank_weights

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM accepts as ``--max-lora-rank``."""
_DRAFT_VOCAB = 32_000
"""Of EAGLE3 heads whose files are not at hand."""


def lora_rank(loras: tuple[Lora, ...]) -> int:
    """``--max-lora-rank``: the least allowed that holds all of them."""
    most = max((lora.rank for lora in loras), default=0)
    return next((rank for rank in _RANKS if rank >= most), most)


def lora_bytes(facts: ModelFacts, workload: Workload, tensor_parallel: int) -> int:
    """That engines set aside for adapters before any is loaded: every slot as large as the largest."""
    if not workload.loras:
        return 0
    slots = max(workload.max_loras, 1)
    rank = lora_rank(workload.loras)
    adapters = max(_scaled(lora, rank, tensor_parallel) for lora in workload.loras)
    return slots * max(adapters, _over_linear_layers(facts, rank, tensor_parallel))


def _scaled(lora: Lora, rank: int, tensor_parallel: int) -> int:
    """A is whole on every rank, B is divided; taken as halves."""
    elements = (lora.elements or lora.bytes // 2) * rank // max(1, lora.rank)
    return elements + elements // tensor_parallel


def _over_linear_layers(facts: ModelFacts, rank: int, tensor_parallel: int) -> int:
    """Of attention and dense MLPs of all layers, whatever the adapter itself targets."""
    queries, keys = facts.heads * head_dim(facts), kv_heads(facts) * head_dim(facts)
    inputs = 3 * facts.hidden + queries + (2 * facts.hidden + facts.ffn if facts.ffn else 0)
    outputs = queries + 2 * keys + facts.hidden + (2 * facts.ffn + facts.hidden if facts.ffn else 0)
    return facts.layers_total * rank * (inputs + outputs // tensor_parallel) * 2


def draft_bytes(facts: ModelFacts, draft: Draft | None, shape: Shape) -> int:
    """Weights of a draft that is a model of its own. MTP layers count among the model's weights, n-grams take none."""
    if draft is None or draft.method not in ("draft_model", "eagle3"):
        return 0
    if draft.facts is not None:
        return rank_weights(draft.facts, Shape(tensor_parallel=shape.tensor_parallel))
    return _eagle3(facts) // shape.tensor_parallel if draft.method == "eagle3" else 0


def _eagle3(facts: ModelFacts) -> int:
    """One dense block over twice the width, a small vocabulary's head, and a projection of three layers' outputs."""
    hidden, size = facts.hidden, head_dim(facts)
    attention = 2 * hidden * (facts.heads + 2 * kv_heads(facts)) * size + facts.heads * size * hidden
    mlp = 3 * hidden * (facts.ffn or 4 * hidden)
    return 2 * (attention + mlp + _DRAFT_VOCAB * hidden + 3 * hidden * hidden)


def kept_layers(facts: ModelFacts, draft: Draft | None) -> tuple[Layers, ...]:
    """The model's layers and those that speculation adds to its KV cache."""
    if draft is None or draft.method == "ngram":
        return facts.layers
    if draft.facts is not None:
        return facts.layers + draft.facts.layers
    full = next((layer for layer in facts.layers if layer.kind in (LayerKind.FULL, LayerKind.MLA)), None)
    if full is None or draft.method == "draft_model":
        return facts.layers
    count = max(1, facts.mtp_layers) if draft.method == "mtp" else 1
    return (*facts.layers, full.model_copy(update={"count": count}))


def draft_tokens(draft: Draft | None) -> int:
    return draft.tokens if draft is not None else 0
