"""How much of a GPU may be claimed. Pure."""


def gpu_room(memory_bytes: int, foreign_bytes: int, reserved_bytes: int) -> int:
    """What is left for engines of ours, in bytes.

    ``foreign_bytes``: used by processes that are none of ours. ``reserved_bytes``: kept for such. What they use counts
    against what is kept for them.
    """
    return max(0, memory_bytes - max(foreign_bytes, reserved_bytes))
