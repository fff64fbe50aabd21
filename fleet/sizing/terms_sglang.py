"""SGLang's memory, term by term. Pure.

``mem_fraction_static`` is the share of the card for weights and KV cache together; activations and CUDA graphs come
out of the rest, by the rule that SGLang itself applies where it is told no share.
"""

from functools import cached_property
from math import ceil

from fleet.sizing import extras, moments
from fleet.sizing.cards import GIB, MIB
from fleet.sizing.facts import LayerKind, Layers
from fleet.sizing.host_ram import of_ranks
from fleet.sizing.kv import of_stage, sequence_bytes
from fleet.sizing.needs import Budget, Question, Terms, budget, error_of
from fleet.sizing.sizing import GpuClass
from fleet.sizing.weights import rank_weights

_CEILING = 0.95
_TIERS = ((20, (2048, 8, 8)), (35, (2048, 24, 80)), (60, (4096, 32, 160)), (160, (8192, 256, 512)))
"""(below so many GiB, (chunked prefill, largest graph's batch with less than 4 ranks, with more))."""
_LARGEST_TIER = (16_384, 512, 512)
_BASE_MIB = 512
_MIB_OF_TOKEN = 1.5
_MIB_OF_GRAPH = 2
_LEAST_CHUNK = 2048
_DRAFT_MIB = {"draft_model": 6144, "eagle3": 2048, "mtp": 2048}
_CONTEXT = 512 * MIB
_WINDOW_SHARE = 0.8
"""Of full attention's tokens, for which the pool of sliding windows is made (``--swa-full-tokens-ratio``)."""


class Sglang:
    static = False

    def __init__(self, question: Question) -> None:
        self.question = question
        load, gpu, shape = question.workload, question.gpu, question.shape
        chunk, few, many = tier(gpu)
        self.batched_tokens = load.batched_tokens or chunk
        self.graph_batch = few if shape.tensor_parallel < 4 else many
        self.sequences = load.sequences or load.concurrency or self.graph_batch
        self.budget: Budget | None = None if question.on_cpu else budget(gpu, load.utilization or _CEILING)

    def fixed(self, context: int) -> Terms:
        return self._constant

    def outside(self, context: int) -> Terms:
        reserved, question = self._reserved, self.question
        return reserved if question.on_cpu else {"cuda_context": _CONTEXT, **reserved}

    def kv(self, context: int, requests: int) -> int:
        return self._request(context) * requests

    def concurrency(self, kv_bytes: int, context: int) -> float:
        one = self._request(context)
        return round(kv_bytes / one, 2) if one else float(self.sequences)

    def most_sequences(self, kv_bytes: int, context: int) -> int:
        return self.sequences

    def ram(self, context: int, requests: int) -> Terms:
        return of_ranks(self.question)

    def error(self, terms: Terms) -> int:
        return error_of(terms, self.question.measured)

    @cached_property
    def _constant(self) -> Terms:
        question = self.question
        load, shape, measured = question.workload, question.shape, question.measured
        mtp = load.draft is not None and load.draft.method == "mtp"
        weights = rank_weights(question.facts, shape, text_only=load.text_only, mtp=mtp, dtype=load.dtype)
        terms = {
            "weights": weights if measured.weights_bytes is None else measured.weights_bytes,
            "lora": extras.lora_bytes(question.facts, load, shape.tensor_parallel),
            "draft": extras.draft_bytes(question.facts, load.draft, shape),
        }
        return {name: size for name, size in terms.items() if size}

    @cached_property
    def _reserved(self) -> Terms:
        """What SGLang leaves for activations and graphs."""
        question = self.question
        load, measured = question.workload, question.measured
        draft = _DRAFT_MIB.get(load.draft.method, 0) if load.draft is not None else 0
        activation = _BASE_MIB + max(self.batched_tokens, _LEAST_CHUNK) * _MIB_OF_TOKEN + draft
        activation += question.shape.gpus / 8 * 1024
        graphs = 0 if load.eager or question.on_cpu else min(self.graph_batch, self.sequences) * _MIB_OF_GRAPH * MIB
        vision = moments.encoder(question.facts) if moments.multimodal(question.facts, load) else 0
        terms = {
            "activation": int(activation) * MIB if measured.activation_bytes is None else measured.activation_bytes,
            "cuda_graphs": graphs if measured.graph_bytes is None else measured.graph_bytes,
            "vision": vision,
        }
        return {name: size for name, size in terms.items() if size}

    @cached_property
    def _layers(self) -> tuple[tuple[Layers, ...], tuple[Layers, ...]]:
        """(those with sliding windows, the others), of one stage."""
        question = self.question
        kept = extras.kept_layers(question.facts, question.workload.draft)
        stage = of_stage(kept, question.shape.pipeline_parallel)
        sliding = tuple(layer for layer in stage if layer.kind is LayerKind.SLIDING)
        return sliding, tuple(layer for layer in stage if layer.kind is not LayerKind.SLIDING)

    def _request(self, context: int) -> int:
        sliding, others = self._layers
        load, parts = self.question.workload, self.question.shape.tensor_parallel
        kept = sequence_bytes(others, context, tensor_parallel=parts, dtype=load.kv_dtype)
        states = [layer for layer in others if layer.state is not None] if load.prefix_caching else []
        if states:
            # The radix cache keeps a second state for each running sequence.
            kept += sequence_bytes(tuple(states), 0, tensor_parallel=parts, dtype=load.kv_dtype)
        if not sliding:
            return kept
        pool = ceil(context * _WINDOW_SHARE)
        return kept + sequence_bytes(sliding, pool, tensor_parallel=parts, dtype=load.kv_dtype, in_flight=pool)


def tier(gpu: GpuClass) -> tuple[int, int, int]:
    """(chunked prefill, largest graph's batch with less than 4 ranks, with more) that SGLang takes for a card."""
    size = gpu.memory_bytes / GIB
    return next((defaults for below, defaults in _TIERS if size < below), _LARGEST_TIER)
