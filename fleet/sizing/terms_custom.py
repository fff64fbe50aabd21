"""Any other engine: weights and KV cache as every engine must have them, and a margin for the rest. Pure."""

from functools import cached_property

from fleet.sizing.cards import GIB
from fleet.sizing.kv import of_stage, sequence_bytes
from fleet.sizing.needs import MOST_ERROR, Budget, Question, Terms
from fleet.sizing.weights import rank_weights

_MARGIN = GIB
_SHARE = 0.10
"""Of the weights: with the GiB above it covers what activations and libraries took in every measured start of the known
engines with up to 256 sequences."""
_RAM = 2 * GIB
_BATCHED_TOKENS = 2048
_SEQUENCES = 8


class Custom:
    static = False
    budget: Budget | None = None

    def __init__(self, question: Question) -> None:
        self.question = question
        load = question.workload
        self.sequences = load.sequences or load.concurrency or _SEQUENCES
        self.batched_tokens = load.batched_tokens or _BATCHED_TOKENS

    def fixed(self, context: int) -> Terms:
        weights = self._weights
        return {"weights": weights, "margin": _MARGIN + int(weights * _SHARE)}

    def outside(self, context: int) -> Terms:
        return {}

    def kv(self, context: int, requests: int) -> int:
        shape, load = self.question.shape, self.question.workload
        stage = of_stage(self.question.facts.layers, shape.pipeline_parallel)
        parts = shape.tensor_parallel
        return requests * sequence_bytes(
            stage, context, tensor_parallel=parts, dtype=load.kv_dtype, in_flight=self.batched_tokens
        )

    def concurrency(self, kv_bytes: int, context: int) -> float:
        one = self.kv(context, 1)
        return round(kv_bytes / one, 2) if one else float(self.sequences)

    def most_sequences(self, kv_bytes: int, context: int) -> int:
        return self.sequences

    def ram(self, context: int, requests: int) -> Terms:
        loading = {} if self.question.on_cpu else {"loading": self.question.facts.largest_file_bytes}
        return {"engine": _RAM, **loading}

    def error(self, terms: Terms) -> int:
        return MOST_ERROR

    @cached_property
    def _weights(self) -> int:
        load, measured = self.question.workload, self.question.measured.weights_bytes
        predicted = rank_weights(self.question.facts, self.question.shape, text_only=load.text_only, dtype=load.dtype)
        return predicted if measured is None else measured
