"""What vLLM says: of memory when it starts, of requests in its metrics, and of causes when it fails. Pure."""

import re

from fleet.engines.adapter import Progress, Queue
from fleet.engines.prometheus import highest, total
from fleet.sizing.measured import Measured

_GIB = 1 << 30
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB")
_KV = re.compile(r"(?:Available KV cache memory: |Explicitly set \(|Auto set \(|reserved )([\d.]+)(?: GiB|/)")
_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_GRAPHS = re.compile(r"Graph capturing finished in .* took ([\d.]+) GiB")
_GRAPHS_ESTIMATED = re.compile(r"Estimated CUDA graph memory: ([\d.]+) GiB")
_ACTIVATION = re.compile(r"torch peak memory increase: ([\d.]+)GiB")
_NON_TORCH = re.compile(r"non-torch forward increase(?: memory)?: ([\d.]+)GiB")
_LONGEST = re.compile(r"estimated maximum model length is (\d{1,9})")

FAILURES = (
    ("oom_kv", r"on kv cache allocation is less than requested memory for kv"),
    ("oom_load", r"on startup is less than desired CPU memory utilization"),
    ("no_device", r"World size \(\d+\) is larger than the number of available GPUs"),
    ("not_installed", r"ImportError: lib\S+: cannot open shared object file|Failed to find C(?:\+\+)? compiler"),
    ("bad_flag", r"LoRA rank \d+ is greater than max_lora_rank|invalid (?:tool call|reasoning) parser"),
    ("nccl", r"torch\.distributed\.DistStoreError|Timed out after \d+ seconds waiting for clients"),
)
"""Beside the common ones."""


def measures(log: str) -> Measured:
    """Of the worker that says the largest number, where several do. Debug lines give more, where they are on."""
    return Measured(
        weights_bytes=_largest(_WEIGHTS, log),
        kv_bytes=_largest(_KV, log),
        kv_tokens=max((int(t.replace(",", "")) for t in _TOKENS.findall(log)), default=None),
        activation_bytes=_largest(_ACTIVATION, log),
        non_torch_bytes=_largest(_NON_TORCH, log),
        graph_bytes=_largest(_GRAPHS, log) or _largest(_GRAPHS_ESTIMATED, log),
        longest_context=max((int(n) for n in _LONGEST.findall(log)), default=None),
    )


def queue(metrics: str) -> Queue | None:
    running, waiting = total(metrics, "vllm:num_requests_running"), total(metrics, "vllm:num_requests_waiting")
    if running is None and waiting is None:
        return None
    return Queue(
        running=int(running or 0),
        waiting=int(waiting or 0),
        kv_usage=highest(metrics, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        first_tokens=int(total(metrics, "vllm:time_to_first_token_seconds_count") or 0),
        first_token_s=total(metrics, "vllm:time_to_first_token_seconds_sum") or 0.0,
    )


def progress(metrics: str) -> Progress | None:
    """Tokens, and the use of the KV cache: while a long prompt is worked through, that alone moves, with each chunk."""
    tokens = total(metrics, "vllm:generation_tokens_total")
    if tokens is None:
        return None
    prompts = total(metrics, "vllm:prompt_tokens_total") or 0.0
    return Progress(tokens + prompts + (total(metrics, "vllm:kv_cache_usage_perc") or 0.0))


def _largest(pattern: re.Pattern[str], log: str) -> int | None:
    found = [round(float(value) * _GIB) for value in pattern.findall(log)]
    return max(found, default=None)
