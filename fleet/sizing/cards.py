"""What engines make of a card: how much of its memory they see, and the defaults that depend on it. Pure."""

from fleet.inventory import AcceleratorKind
from fleet.sizing.sizing import GpuClass

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SEEN = (
    ("H100", 79.0, 80.5, 79.18),
    ("A100", 79.0, 80.5, 79.25),
    ("H200", 139.0, 141.5, 139.8),
    ("L40S", 44.0, 46.0, 44.4),
    ("4090", 23.5, 24.1, 23.65),
)
"""(in the name, least and most GiB by the vendor's tool, GiB that CUDA reports). Only the H100's was measured, on the
same machine as its 81,559 MiB; the others are commonly reported and may be lower than the truth. Of the RTX 4090
PyTorch's messages name 23.61 to 23.68 GiB, depending on the driver."""
_MEASURED = ("H100",)
_UNKNOWN_SHARE = 0.985
"""The least share of NVML's total that CUDA reports on cards of the table above."""


def seen_least(gpu: GpuClass) -> int:
    """Bytes that an engine takes for the card's memory, or a little less: what fits into this fits."""
    share = _pair(gpu)
    if gpu.kind is AcceleratorKind.CPU or gpu.unified:
        return gpu.memory_bytes
    return min(gpu.memory_bytes, int(share * GIB)) if share else int(gpu.memory_bytes * _UNKNOWN_SHARE)


def seen_most(gpu: GpuClass) -> int:
    """The same, or a little more: no share of the engine's own total is more than that share of this."""
    known = any(name in gpu.name for name in _MEASURED) and _pair(gpu) is not None
    return seen_least(gpu) if known else gpu.memory_bytes


def default_batched_tokens(gpu: GpuClass) -> int:
    """vLLM's ``--max-num-batched-tokens`` for its OpenAI server."""
    if gpu.memory_bytes >= 160 * GIB:
        return 16384
    return 8192 if _large(gpu) else 2048


def default_sequences(gpu: GpuClass) -> int:
    """vLLM's ``--max-num-seqs`` for its OpenAI server."""
    return 1024 if _large(gpu) else 256


def is_ampere_or_ada(gpu: GpuClass) -> bool:
    """Compute capability 8.x, which needs less beside PyTorch's own memory than later cards; unknown: no."""
    return gpu.compute_capability.startswith("8.")


def _large(gpu: GpuClass) -> bool:
    large = gpu.kind is not AcceleratorKind.CPU and gpu.memory_bytes >= 70 * GIB
    return large and "A100" not in gpu.name


def _pair(gpu: GpuClass) -> float | None:
    total = gpu.memory_bytes / GIB
    return next((seen for name, low, high, seen in _SEEN if name in gpu.name and low <= total <= high), None)
