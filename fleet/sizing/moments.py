"""What vLLM needs beside weights and KV cache: the largest moment of a step, CUDA graphs, tables. Pure.

Formulas follow vLLM 0.29 to 0.32; up to 0.20 the sampler alone decides. T is ``max_num_batched_tokens``, S is
``max_num_seqs``. All sizes are bytes of one rank.
"""

from dataclasses import dataclass
from math import ceil

from fleet.sizing.cards import KIB, MIB, is_ampere_or_ada
from fleet.sizing.facts import Mla, ModelFacts, Moe, Task
from fleet.sizing.sizing import GpuClass, Workload
from fleet.sizing.weights import head_dim

_WIDTH = 2
"""Bytes of an activation: 16 bit."""
_OLD_SAMPLER_COPIES = 9.6
"""FP32 copies of all logits at the peak of vLLM 0.10 and 0.11: fits six models measured on H100."""
_MLA_MOST_POSITIONS = 65_536
_OLD_TABLES = 133 * MIB
"""Non-torch memory of vLLM 0.11 on one card; NCCL is extra."""
_TABLES_AMPERE = 112 * MIB
_TABLES_HOPPER = 307 * MIB
_GRAPH_AMPERE = 374 * KIB
_GRAPH_HOPPER = 537 * KIB
"""Of one layer and one captured size; medians."""


@dataclass(frozen=True)
class Step:
    """One engine step at its largest."""

    tokens: int
    """T."""
    sequences: int
    """S."""
    context: int
    tensor_parallel: int = 1
    multimodal: bool = False
    compiles: bool = True
    """With CUDA graphs, and so with torch.compile."""


def activation(facts: ModelFacts, step: Step, *, old: bool) -> int:
    """The largest moment on the text side."""
    if facts.task is not Task.GENERATE and facts.task is not Task.TRANSCRIBE:
        return forward(facts, step)
    if old:
        return int(_OLD_SAMPLER_COPIES * step.sequences * padded_vocab(facts) * 4)
    return max(compiling(facts, step), forward(facts, step), sampler(facts, step))


def compiling(facts: ModelFacts, step: Step) -> int:
    """With a cold compile cache; only text models on one card."""
    if step.tensor_parallel > 1 or step.multimodal or not step.compiles:
        return 0
    return padded_vocab(facts) * facts.hidden * _WIDTH + 2 * step.tokens * facts.hidden * _WIDTH


def forward(facts: ModelFacts, step: Step) -> int:
    media = step.tokens * facts.hidden * _WIDTH if step.multimodal else 0
    # A MoE's few dense layers are not what its measured peaks come from.
    mlp = _experts(facts, facts.moe, step) if facts.moe is not None else _dense(facts, step)
    if facts.mla is not None:
        return _latent(facts, facts.mla, step) + mlp + media
    queries = step.tokens * ceil(facts.heads / step.tensor_parallel) * head_dim(facts) * _WIDTH
    return queries + 2 * step.tokens * facts.hidden * _WIDTH + mlp + media


def sampler(facts: ModelFacts, step: Step) -> int:
    logits = step.sequences * padded_vocab(facts) * _WIDTH
    hidden = step.tokens * facts.hidden * _WIDTH
    if step.tensor_parallel > 1:
        return 2 * logits + logits // step.tensor_parallel + hidden
    return logits * (2 if facts.soft_cap else 1) + hidden


def non_torch(facts: ModelFacts, step: Step, gpu: GpuClass, *, old: bool) -> int:
    """Libraries' workspaces and the sampler's tables."""
    if old:
        return _OLD_TABLES
    base = _TABLES_AMPERE if is_ampere_or_ada(gpu) else _TABLES_HOPPER
    if facts.task is not Task.GENERATE and facts.task is not Task.TRANSCRIBE:
        return base
    vocab = padded_vocab(facts)
    return base + step.sequences * (vocab + 2 * ceil(vocab / 32)) * 4


def graphs(layers: int, sequences: int, gpu: GpuClass) -> int:
    """Of a stage with ``layers``; ``sequences``: most tokens of a decoding batch."""
    each = _GRAPH_AMPERE if is_ampere_or_ada(gpu) else _GRAPH_HOPPER
    most = 1024 if gpu.compute_capability.startswith("10.") else 512
    return layers * captured_sizes(sequences, most) * each


def captured_sizes(sequences: int, most: int = 512) -> int:
    """How many batch sizes get a graph: 1, 2, 4, then every 8 up to 248, then every 16."""
    largest = min(max(sequences, 1), most)
    small = sum(size <= largest for size in (1, 2, 4))
    return small + min(largest, 248) // 8 + max(0, (largest - 240) // 16)


def padded_vocab(facts: ModelFacts) -> int:
    return -(-facts.vocab // 64) * 64


def _dense(facts: ModelFacts, step: Step) -> int:
    return 3 * step.tokens * ceil(facts.ffn / step.tensor_parallel) * _WIDTH


def _experts(facts: ModelFacts, moe: Moe, step: Step) -> int:
    width = ceil(moe.expert_ffn / step.tensor_parallel)
    rows = step.tokens * moe.per_token
    return rows * (max(width, facts.hidden) + max(2 * width, facts.hidden)) * _WIDTH


def _latent(facts: ModelFacts, mla: Mla, step: Step) -> int:
    """Of multi-head latent attention, in place of queries and residuals."""
    heads = ceil(facts.heads / step.tensor_parallel)
    positions = min(max(8 * step.context, 4 * step.sequences * 16), _MLA_MOST_POSITIONS)
    workspace = -(-positions // 16) * 16 * heads * (mla.nope_dim + mla.value_dim)
    attention = 5 * step.tokens * heads * max(mla.nope_dim + mla.rope_dim, mla.value_dim)
    rest = 7 * step.tokens * facts.hidden + 2 * step.tokens * mla.kv_lora_rank
    return (workspace + attention + rest) * _WIDTH


def multimodal(facts: ModelFacts, workload: Workload) -> bool:
    return facts.vision is not None and not workload.text_only


def encoder(facts: ModelFacts) -> int:
    """Peak of the vision tower on its largest image."""
    if facts.vision is None:
        return 0
    side = facts.vision.largest_image
    patches = (side // facts.vision.patch) ** 2
    return 12 * patches * facts.vision.hidden * _WIDTH + side * side * 3 * 4
