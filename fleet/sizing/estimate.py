"""A rough, safe guess of the memory that a replica needs, from the size of its model file.

Good enough to keep a host from being over-filled; a deployment that knows better sets ``resources.memory_bytes``.
"""

_OVERHEAD_BYTES = 384 << 20
"""Compute buffers, the engine itself and its prompt cache."""
_LEAST_KV_BYTES_PER_TOKEN = 32 << 10
_KV_TOKENS_PER_FILE = 40_000
"""A 4-bit file is about as large as the KV cache of so many tokens (8 B parameters: 5 GB, 128 KiB a token)."""


def replica_memory(file_bytes: int, context: int, concurrency: int) -> int:
    """Bytes for weights, KV cache of ``concurrency`` requests of ``context`` tokens, and overhead."""
    kv_per_token = max(_LEAST_KV_BYTES_PER_TOKEN, file_bytes // _KV_TOKENS_PER_FILE)
    return file_bytes * 105 // 100 + kv_per_token * context * concurrency + _OVERHEAD_BYTES
