"""vLLM's memory, term by term. Pure.

vLLM takes ``gpu_memory_utilization`` of the card, measures what weights and one largest step need of it, and makes the
rest its KV cache. The CUDA context and NCCL lie outside that share, and so do CUDA graphs before 0.21.
"""

import re
from functools import cached_property
from math import ceil

from fleet.sizing import extras, moments
from fleet.sizing.cards import MIB, default_batched_tokens, default_sequences
from fleet.sizing.facts import LayerKind
from fleet.sizing.host_ram import of_ranks
from fleet.sizing.kv import of_stage
from fleet.sizing.moments import Step
from fleet.sizing.needs import Budget, Question, Terms, budget, error_of
from fleet.sizing.paging import Paging, paging
from fleet.sizing.weights import rank_weights

CEILING = 0.95
"""Of what the engine sees: the rest is for the CUDA context, NCCL and what fragments."""
_CONTEXT = 512 * MIB
_NCCL = 430 * MIB
"""0.55 GiB of non-torch memory on two cards against 0.13 GiB on one (vLLM 0.11)."""
_MOST_DEFAULT_SEQUENCES = 256
_GRAPHS_COUNTED = (0, 21)
"""The first version that subtracts CUDA graphs from the KV cache, and that has the new sampler."""


class Vllm:
    static = False

    def __init__(self, question: Question) -> None:
        self.question = question
        facts, load, gpu = question.facts, question.workload, question.gpu
        self.old = is_old(question.version)
        wanted = load.sequences or load.concurrency or min(default_sequences(gpu), _MOST_DEFAULT_SEQUENCES)
        self.sequences = wanted
        self.batched_tokens = max(load.batched_tokens or default_batched_tokens(gpu), wanted)
        if all(layer.kind is LayerKind.ENCODER for layer in facts.layers):
            # Nothing is kept between steps, so a prompt cannot be computed in parts.
            self.batched_tokens = max(self.batched_tokens, load.context or facts.context)
        self.multimodal = moments.multimodal(facts, load)
        self.draft_tokens = extras.draft_tokens(load.draft)
        self.budget: Budget | None = None if question.on_cpu else budget(gpu, load.utilization or CEILING)

    def fixed(self, context: int) -> Terms:
        question, measured = self.question, self.question.measured
        step = self._step(context)
        activation = moments.activation(question.facts, step, old=self.old)
        terms = dict(self._constant)
        terms["activation"] = _or(measured.activation_bytes, activation)
        if self.multimodal and measured.activation_bytes is None:
            terms["vision"] = max(0, moments.encoder(question.facts) - activation)
        beside = moments.non_torch(question.facts, step, question.gpu, old=self.old)
        # Old versions count NCCL among it.
        nccl = _NCCL if self.old and question.shape.gpus > 1 else 0
        terms["non_torch"] = _or(measured.non_torch_bytes, beside + nccl)
        if not self.old and self._graphs:
            terms["cuda_graphs"] = self._graphs
        return {name: size for name, size in terms.items() if size}

    def outside(self, context: int) -> Terms:
        if self.question.on_cpu or self.question.workload.utilization:
            return {}
        terms = {"cuda_context": _CONTEXT}
        if self.question.shape.gpus > 1 and not self.old:
            terms["nccl"] = _NCCL
        if self.old and self._graphs:
            terms["cuda_graphs"] = self._graphs
        return terms

    def kv(self, context: int, requests: int) -> int:
        return ceil(self.paging.request_bytes(context) * self._kv_scale) * requests

    def concurrency(self, kv_bytes: int, context: int) -> float:
        one = self.paging.request_bytes(context) * self._kv_scale
        return round(kv_bytes / one, 2) if one else float(self.sequences)

    def most_sequences(self, kv_bytes: int, context: int) -> int:
        most = self.paging.most_sequences(kv_bytes)
        return self.sequences if most is None else max(1, min(self.sequences, most))

    def ram(self, context: int, requests: int) -> Terms:
        return of_ranks(self.question)

    def error(self, terms: Terms) -> int:
        return error_of(terms, self.question.measured)

    @cached_property
    def paging(self) -> Paging:
        question = self.question
        load, shape = question.workload, question.shape
        batches = max(1 if self.old else 2, shape.pipeline_parallel)
        return paging(
            of_stage(extras.kept_layers(question.facts, load.draft), shape.pipeline_parallel),
            tensor_parallel=shape.tensor_parallel,
            dtype=load.kv_dtype,
            in_flight=batches * self.batched_tokens,
            prefix_caching=load.prefix_caching,
            draft_tokens=self.draft_tokens,
        )

    @cached_property
    def _constant(self) -> Terms:
        question = self.question
        load, shape = question.workload, question.shape
        mtp = load.draft is not None and load.draft.method == "mtp"
        weights = rank_weights(question.facts, shape, text_only=load.text_only, mtp=mtp, dtype=load.dtype)
        return {
            "weights": _or(question.measured.weights_bytes, weights),
            "lora": extras.lora_bytes(question.facts, load, shape.tensor_parallel),
            "draft": extras.draft_bytes(question.facts, load.draft, shape),
        }

    @cached_property
    def _graphs(self) -> int:
        question = self.question
        if question.workload.eager or question.on_cpu:
            return 0
        layers = ceil(question.facts.layers_total / question.shape.pipeline_parallel)
        predicted = moments.graphs(layers, self.sequences * (1 + self.draft_tokens), question.gpu)
        return _or(question.measured.graph_bytes, predicted)

    @cached_property
    def _kv_scale(self) -> float:
        """By how much more (never less) a token took of a real cache, where all layers keep every token."""
        measured = self.question.measured
        if not measured.kv_bytes or not measured.kv_tokens or len(self.paging.groups) != 1:
            return 1.0
        predicted = self.paging.block_bytes / self.paging.groups[0].block
        return max(1.0, measured.kv_bytes / measured.kv_tokens / predicted) if predicted else 1.0

    def _step(self, context: int) -> Step:
        return Step(
            tokens=self.batched_tokens,
            sequences=min(self.sequences * (1 + self.draft_tokens), self.batched_tokens),
            context=context,
            tensor_parallel=self.question.shape.tensor_parallel,
            multimodal=self.multimodal,
            compiles=not self.question.workload.eager and not self.question.on_cpu,
        )


def is_old(version: str) -> bool:
    """Before 0.21. Unknown versions count as new ones."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < _GRAPHS_COUNTED


def _or(measured: int | None, predicted: int) -> int:
    return predicted if measured is None else measured
