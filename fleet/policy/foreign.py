"""How much of a GPU's memory others than our engines hold, as far as placement is to hear of it. Pure."""

from fleet.telemetry import MiB

_SLACK_SHARE = 0.01
_SLACK_LEAST = 256 * MiB


def slack(memory_bytes: int) -> int:
    """Differences up to this are noise: what drivers keep for themselves, and what processes take and give back."""
    return max(_SLACK_LEAST, int(memory_bytes * _SLACK_SHARE))


def settled(noted: int, seen: int, memory_bytes: int) -> int:
    """What to note as foreign, in bytes, when ``noted`` was so far and ``seen`` is reported now.

    Stays while the two differ by no more than ``slack``; else it is what is seen, at most the whole card. Very little
    counts as nothing.
    """
    seen = min(max(0, seen), memory_bytes)
    least = slack(memory_bytes)
    if abs(seen - noted) <= least and noted <= memory_bytes:
        return noted
    return seen if seen > least else 0
