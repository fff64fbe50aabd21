"""What SGLang says: of memory when it starts, of requests in its metrics, and of causes when it fails. Pure."""

import re

from fleet.engines.adapter import Progress, Queue
from fleet.engines.prometheus import highest, total
from fleet.sizing.measured import Measured

_GB = 1 << 30
"""What its log calls GB."""
_WEIGHTS = re.compile(r"Load weight end\..*mem usage=([\d.]+) GB")
_KV = re.compile(r"KV Cache is allocated\.(.*)")
_KV_PARTS = re.compile(r"(?:K|V|KV) size: ([\d.]+) GB")
_TOKENS = re.compile(r"max_total_num_tokens=(\d+)")
_GRAPHS = re.compile(r"Capture .*graph end\..*mem usage=([\d.]+) GB")

FAILURES = (
    ("oom_load", r"Not enough memory\. Please try to increase --mem-fraction-static"),
    (
        "ctx_too_long",
        r"context length \(\d+\) is greater than the derived context length \((?P<max_model_len>\d{1,9})",
    ),
    ("not_installed", r"ImportError: lib\S+: cannot open shared object file"),
    ("nccl", r"torch\.distributed\.DistStoreError|Timed out after \d+ seconds waiting for clients"),
)
"""Beside the common ones."""


def measures(log: str) -> Measured:
    pools = [sum(float(part) for part in _KV_PARTS.findall(line)) for line in _KV.findall(log)]
    return Measured(
        weights_bytes=_largest(_WEIGHTS, log),
        kv_bytes=round(max(pools) * _GB) if pools else None,
        kv_tokens=max((int(tokens) for tokens in _TOKENS.findall(log)), default=None),
        graph_bytes=_largest(_GRAPHS, log),
    )


def queue(metrics: str) -> Queue | None:
    running, waiting = total(metrics, "sglang:num_running_reqs"), total(metrics, "sglang:num_queue_reqs")
    if running is None and waiting is None:
        return None
    return Queue(
        running=int(running or 0),
        waiting=int(waiting or 0),
        kv_usage=highest(metrics, "sglang:token_usage"),
        first_tokens=int(total(metrics, "sglang:time_to_first_token_seconds_count") or 0),
        first_token_s=total(metrics, "sglang:time_to_first_token_seconds_sum") or 0.0,
    )


def progress(metrics: str) -> Progress | None:
    """What it computes, counted at each of its log lines. Older versions count tokens of ended requests only:
    there the use of the KV cache moves, which is rounded."""
    computed = total(metrics, "sglang:realtime_tokens_total")
    if computed is not None:
        return Progress(computed)
    tokens, used = total(metrics, "sglang:generation_tokens_total"), total(metrics, "sglang:token_usage")
    return Progress(tokens + (used or 0.0), exact=False) if tokens is not None else None


def _largest(pattern: re.Pattern[str], log: str) -> int | None:
    return max((round(float(value) * _GB) for value in pattern.findall(log)), default=None)
