"""llama.cpp's memory, buffer by buffer. Pure.

All is allocated at the start: weights, a KV cache of whole slots, one compute buffer for the largest moment of the
graph, and logits. Layers go to cards from the last to the first; the token embedding always stays in RAM.
"""

from functools import cached_property
from math import ceil

from fleet.sizing.cards import MIB
from fleet.sizing.facts import LayerKind, Layers, ModelFacts, Role
from fleet.sizing.kv import state_bytes, token_bytes, width
from fleet.sizing.needs import Budget, Question, Terms, error_of
from fleet.sizing.weights import head_dim, kv_heads

DEFAULT_SLOTS = 4
_UBATCH = 512
_CELLS = 256
"""Slots are padded to a multiple of so many tokens."""
_RUNTIME = 150 * MIB
"""The server itself: tokenizer, HTTP, what the C++ runtime keeps."""
_PROMPT_CACHE = 128 * MIB
"""``--cache-ram``, as the adapter sets it."""
_DEVICE = 500 * MIB
"""A CUDA (or kin) context with its libraries, of each card."""
_FLOAT = 4


class LlamaCpp:
    static = True
    budget: Budget | None = None

    def __init__(self, question: Question, gpu_layers: int | None = None) -> None:
        """``gpu_layers``: so many of the last ones go to cards, ``layers_total + 1`` with the head; None: all."""
        self.question = question
        load, facts = question.workload, question.facts
        self.sequences = load.concurrency or load.sequences or DEFAULT_SLOTS
        self.batched_tokens = load.batched_tokens or _UBATCH
        every = facts.layers_total + 1
        wanted = load.gpu_layers if gpu_layers is None else gpu_layers
        alone = question.on_cpu and question.shape.hosts == 1
        self.gpu_layers = 0 if alone else every if wanted is None else min(wanted, every)

    @property
    def whole(self) -> bool:
        """Nothing but the embedding stays in RAM (on CPUs: true)."""
        return self.question.on_cpu or self.gpu_layers > self.question.facts.layers_total

    def fixed(self, context: int) -> Terms:
        measured = self.question.measured
        compute = _or(measured.compute_bytes, compute_bytes(self.question, cells(context)))
        if self.question.on_cpu:
            weights = _or(measured.weights_bytes, self.question.facts.weight_bytes)
            weights = weights if self.question.shape.hosts == 1 else self._on_fullest_host
            output = self._output
            return {"weights": weights, "compute": compute, "output": output, "runtime": _RUNTIME + _PROMPT_CACHE}
        weights = measured.weights_bytes if measured.weights_bytes is not None and self.whole else self._on_card
        terms = {"weights": weights, "compute": compute, "cuda_context": _DEVICE}
        return {**terms, "draft": self._draft} if self._draft else terms

    def outside(self, context: int) -> Terms:
        return {}

    def kv(self, context: int, requests: int) -> int:
        """On CPUs all of it; else the part of the layers of the fullest card."""
        one = slot_bytes(self.question, cells(context))
        if self.question.on_cpu:
            return ceil(one * self._layers_on_host / max(1, self.question.facts.layers_total)) * requests
        return ceil(one * self._layers_on_card / max(1, self.question.facts.layers_total)) * requests

    def concurrency(self, kv_bytes: int, context: int) -> float:
        one = self.kv(context, 1)
        return round(kv_bytes / one, 2) if one else float(self.sequences)

    def most_sequences(self, kv_bytes: int, context: int) -> int:
        one = self.kv(context, 1)
        return max(1, kv_bytes // one) if one else self.sequences

    def ram(self, context: int, requests: int) -> Terms:
        if self.question.on_cpu:
            return {}
        facts, measured = self.question.facts, self.question.measured
        terms = {"weights": self._in_ram, "output": self._output}
        terms["runtime"] = _RUNTIME + _PROMPT_CACHE
        if not self.whole:
            left = max(0, facts.layers_total - self.gpu_layers)
            one = slot_bytes(self.question, cells(context))
            terms["kv_cache"] = one * requests * left // max(1, facts.layers_total)
        terms["compute"] = compute_bytes(self.question, cells(context)) if not self.whole else self._inputs(context)
        if measured.host_bytes is not None and self.whole:
            return {"buffers": measured.host_bytes, "runtime": terms["runtime"]}
        return {name: size for name, size in terms.items() if size > 0}

    def error(self, terms: Terms) -> int:
        return error_of(terms, self.question.measured)

    @cached_property
    def _units(self) -> list[int]:
        """Bytes of each layer (and of the head) that goes to cards, in order."""
        facts = self.question.facts
        blocks = _blocks(facts)
        units = list(blocks[max(0, len(blocks) - self.gpu_layers) :]) if self.gpu_layers else []
        if self.gpu_layers > facts.layers_total:
            units = [*units, facts.bytes_of(Role.HEAD) or facts.bytes_of(Role.EMBEDDING)]
        return units

    @cached_property
    def _in_ram(self) -> int:
        """A head that is tied to the embedding is copied to its card, and the embedding stays."""
        facts = self.question.facts
        gone = sum(self._units[: facts.layers_total])
        head = facts.bytes_of(Role.HEAD) if self.gpu_layers > facts.layers_total else 0
        return max(facts.bytes_of(Role.EMBEDDING), facts.weight_bytes - gone - head)

    @cached_property
    def _on_card(self) -> int:
        cards, units = self.question.shape.gpus, self._units
        sums = [0] * cards
        for index, size in enumerate(units):
            sums[index * cards // len(units)] += size
        return max(sums)

    @cached_property
    def _on_fullest_host(self) -> int:
        """Of several that lend their RAM: the leader keeps what it does not lend out."""
        others, units = self.question.shape.hosts - 1, self._units
        sums = [0] * others
        for index, size in enumerate(units):
            sums[index * others // len(units)] += size
        return max(*sums, self.question.facts.weight_bytes - sum(units))

    @cached_property
    def _layers_on_host(self) -> int:
        hosts, layers = self.question.shape.hosts, self.question.facts.layers_total
        if hosts == 1:
            return layers
        lent = min(self.gpu_layers, layers)
        return max(layers - lent, ceil(lent / (hosts - 1)))

    @cached_property
    def _layers_on_card(self) -> int:
        return ceil(min(len(self._units), self.question.facts.layers_total) / self.question.shape.gpus)

    @cached_property
    def _output(self) -> int:
        """Logits of one token of each slot."""
        return _FLOAT * self.question.facts.vocab * self.sequences

    @cached_property
    def _draft(self) -> int:
        draft = self.question.workload.draft
        return draft.facts.weight_bytes if draft is not None and draft.facts is not None else 0

    def _inputs(self, context: int) -> int:
        """Embeddings and mask of one step, made in RAM."""
        return self.batched_tokens * (_FLOAT * self.question.facts.hidden + 2 * cells(context))


def cells(context: int) -> int:
    """Tokens of a slot as it is allocated."""
    return -(-context // _CELLS) * _CELLS


def slot_bytes(question: Question, slot_cells: int) -> int:
    """KV cache and states of one slot, in all layers."""
    ubatch = question.workload.batched_tokens or _UBATCH
    return ceil(sum(layer.count * _layer_bytes(question, layer, slot_cells, ubatch) for layer in question.facts.layers))


def _layer_bytes(question: Question, layer: Layers, slot_cells: int, ubatch: int) -> float:
    kept = slot_cells
    if layer.kind is LayerKind.SLIDING:
        kept = min(slot_cells, cells(layer.window + ubatch))
    elif layer.kind is LayerKind.CROSS:
        kept = layer.window
    state = state_bytes(layer.state, 1, conv_width=_FLOAT) if layer.state is not None else 0
    return state + kept * token_bytes(layer, 1, question.workload.kv_dtype)


def compute_bytes(question: Question, slot_cells: int) -> int:
    """The compute buffer: the larger of attention's and the MLP's moment for one micro-batch, with the mask.

    Held against what the server printed for a small model with slots of 768 to 32,768 tokens, micro-batches of 128 to
    2048, and with and without flash attention; wide models differ by their dimensions alone.
    """
    facts, load = question.facts, question.workload
    ubatch = load.batched_tokens or _UBATCH
    keys = kv_heads(facts) * head_dim(facts)
    # A quantised cache makes the engine write attention's output elsewhere, and one residual fewer is alive.
    residuals = 4 if width(load.kv_dtype) >= 2 else 3
    mlp = 3 * _mlp_width(facts) + residuals * facts.hidden
    if load.flash_attention:
        return ubatch * (_FLOAT * mlp + 2 * slot_cells)
    attention = 5 * facts.hidden + 2 * keys + (facts.heads + 1) * slot_cells
    return ubatch * _FLOAT * max(mlp + slot_cells, attention)


def _mlp_width(facts: ModelFacts) -> int:
    """Of a MoE: of the experts that one token uses, and their outputs before they are added up."""
    if facts.moe is None:
        return facts.ffn
    active = facts.moe.per_token * facts.moe.expert_ffn + facts.moe.shared_ffn
    return max(facts.ffn, active) + facts.moe.per_token * facts.hidden // 3


def _blocks(facts: ModelFacts) -> tuple[int, ...]:
    if facts.layer_bytes:
        return facts.layer_bytes
    layers = max(1, facts.layers_total)
    rest = facts.weight_bytes - facts.bytes_of(Role.EMBEDDING, Role.HEAD, Role.VISION)
    return (max(0, rest) // layers,) * layers


def _or(measured: int | None, predicted: int) -> int:
    return predicted if measured is None else measured
