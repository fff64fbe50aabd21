"""What one engine needs of a card, as functions of the context: what each engine's model answers. Pure."""

from dataclasses import dataclass, field
from typing import Protocol

from fleet.inventory import AcceleratorKind
from fleet.sizing.cards import GIB, MIB, seen_least, seen_most
from fleet.sizing.facts import ModelFacts
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import GpuClass, Shape, Workload

Terms = dict[str, int]


@dataclass(frozen=True)
class Question:
    """One model on cards of one class in one shape."""

    engine: str
    version: str
    facts: ModelFacts
    workload: Workload
    gpu: GpuClass
    shape: Shape
    measured: Measured = field(default_factory=Measured)
    too_big: int | None = None

    @property
    def on_cpu(self) -> bool:
        return self.gpu.kind is AcceleratorKind.CPU


@dataclass(frozen=True)
class Budget:
    """Of one card. Shares are told to engines with four decimals, so memory comes in steps of them."""

    least: int
    """That the engine takes for the card's memory, or a little less."""
    most: int
    ceiling: float
    """No larger share is asked for."""

    def share(self, need: int) -> float:
        """The least share with which the engine has ``need`` bytes."""
        return -(-need * _STEPS // self.least) / _STEPS

    def taken(self, share: float) -> int:
        """Bytes that the engine may take with it: MiB, up."""
        return up_to_mib(-(-self.most * round(share * _STEPS) // _STEPS))

    def room(self, limit: int) -> int:
        """So many bytes an engine can have without taking more than ``limit``."""
        steps = min(limit // MIB * MIB * _STEPS // self.most, int(self.ceiling * _STEPS))
        return max(0, self.least * steps // _STEPS)


_STEPS = 10_000


def budget(gpu: GpuClass, ceiling: float) -> Budget:
    return Budget(seen_least(gpu), seen_most(gpu), ceiling)


def up_to_mib(size: int) -> int:
    return -(-size // MIB) * MIB


class Needs(Protocol):
    """Sizes are bytes of the fullest card (of RAM, on CPUs)."""

    static: bool
    """The KV cache is made for ``sequences`` requests of the whole context, and is never larger."""
    sequences: int
    """What the engine is told, where the KV cache does not set a lower bound."""
    batched_tokens: int
    budget: Budget | None
    """None: the engine takes what it needs, and is told no share."""

    def fixed(self, context: int) -> Terms:
        """All but the KV cache, within what the engine itself accounts for."""

    def outside(self, context: int) -> Terms:
        """What its processes take besides."""

    def kv(self, context: int, requests: int) -> int:
        """Of so many requests, each as long as ``context``."""

    def concurrency(self, kv_bytes: int, context: int) -> float:
        """So many requests of ``context`` tokens fit."""

    def most_sequences(self, kv_bytes: int, context: int) -> int:
        """That can be told with such a KV cache."""

    def ram(self, context: int, requests: int) -> Terms:
        """Of each host, besides what counts as the card's."""

    def error(self, terms: Terms) -> int:
        """By how much the prediction may be off."""


_ERRORS = {"weights": 0.015, "activation": 0.35, "vision": 0.35, "compute": 0.1, "non_torch": 0.35, "lora": 0.1}
"""Shares of predicted terms by which they were off at most, where anything was measured."""
_GRAPHS_ERROR = 1.6
"""MLA's graphs were seen to take 1.39 MiB a layer and size instead of 0.52."""
MOST_ERROR = 2200 * GIB // 1000
"""The largest over-prediction of a KV cache in 28 starts of vLLM 0.29 and 0.30."""
_LOGGED = GIB // 100
"""Start-up lines are rounded to 0.01 GiB."""


def error_of(terms: Terms, measured: Measured) -> int:
    """Half of it is typical. Terms that were measured are off by the rounding of the log alone."""
    known = {
        "weights": measured.weights_bytes,
        "activation": measured.activation_bytes,
        "non_torch": measured.non_torch_bytes,
        "cuda_graphs": measured.graph_bytes,
        "compute": measured.compute_bytes,
    }
    off = 0.0
    for name, size in terms.items():
        if known.get(name) is not None:
            off += _LOGGED
        else:
            off += size * (_GRAPHS_ERROR if name == "cuda_graphs" else _ERRORS.get(name, 0.0))
    return min(int(off), MOST_ERROR)
