"""What llama.cpp says: of buffers when it starts, of requests in its metrics, and of causes when it fails. Pure."""

import re
from collections import Counter

from fleet.engines.adapter import Progress, Queue
from fleet.engines.prometheus import samples, total
from fleet.sizing.measured import Measured

_BUFFER = re.compile(r"\s(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([\d.]+) MiB")
_CONTEXT = re.compile(r"llama_context: n_ctx\s*=\s*(\d{1,12})")
_MIB = 1 << 20

FAILURES = (
    ("bad_flag", r"error: invalid argument|error while handling argument|error: unknown argument"),
    ("not_found", r"failed to open GGUF file|No such file or directory.*\.gguf"),
    (
        "corrupt_file",
        r"invalid magic|gguf_init_from_\w+: failed to read|gguf_init_from_file.*(failed|invalid)"
        r"|failed to read magic|tensor data is not within",
    ),
    ("unsupported_arch", r"unknown model architecture"),
    ("port", r"couldn't bind HTTP server socket|bind.*address already in use"),
    ("oom_kv", r"failed to allocate (?:buffer for )?(?:the )?kv cache|failed to allocate compute buffers"),
    ("nccl", r"Failed to connect to (?:RPC server )?\S+:\d+|RPC server .* (?:crashed|closed)"),
)
"""Beside the common ones."""


def measures(log: str) -> Measured:
    """What is on the fullest card, and beside it in RAM; without cards, all of it."""
    sizes: dict[str, Counter[str]] = {}
    for device, kind, mib in _BUFFER.findall(log):
        sizes.setdefault(device, Counter())[kind] += round(float(mib) * _MIB)
    cards = {device: kinds for device, kinds in sizes.items() if not _is_host(device)}
    host = sum((kinds for device, kinds in sizes.items() if _is_host(device)), Counter[str]())
    shown = max(cards.values(), key=lambda kinds: sum(kinds.values())) if cards else host
    return Measured(
        weights_bytes=shown.get("model"),
        kv_bytes=shown["KV"] + shown["RS"] if "KV" in shown or "RS" in shown else None,
        kv_tokens=max((int(n) for n in _CONTEXT.findall(log)), default=None),
        compute_bytes=shown.get("compute"),
        host_bytes=sum(host.values()) if cards and host else None,
    )


def queue(metrics: str) -> Queue | None:
    """Its use of the KV cache is told for single slots only, elsewhere."""
    running = total(metrics, "llamacpp:requests_processing")
    waiting = total(metrics, "llamacpp:requests_deferred")
    if running is None and waiting is None:
        return None
    return Queue(running=int(running or 0), waiting=int(waiting or 0))


def progress(metrics: str) -> Progress | None:
    """Decodes: its counters of tokens move only when a whole prompt or request is through. From a million on it prints
    six digits, and a number that stands still means nothing any more."""
    printed = samples(metrics, "llamacpp:n_decode_total")
    return Progress(float(printed[0]), exact="e" not in printed[0]) if printed else None


def _is_host(device: str) -> bool:
    """``CPU``, ``CPU_Mapped``, ``CUDA_Host``, …"""
    return device.startswith("CPU") or device.endswith("_Host")
