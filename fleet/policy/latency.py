"""Buckets in which gateways count how long engines take until the first byte of an answer."""

from bisect import bisect_left
from collections.abc import Sequence

BOUNDS_S = tuple(0.005 * 2**i for i in range(18))
"""Upper bounds in seconds, doubling from 5 ms to 11 minutes; what is slower is in one more bucket."""
BUCKETS = len(BOUNDS_S) + 1


def bucket(seconds: float) -> int:
    return bisect_left(BOUNDS_S, seconds)


def bounds(i: int) -> tuple[float, float]:
    """What is counted in bucket ``i`` took longer than the first and at most the second, in seconds."""
    return BOUNDS_S[i - 1] if i > 0 else 0.0, BOUNDS_S[i] if i < len(BOUNDS_S) else float("inf")


def quantile_bucket(counts: Sequence[int], q: float) -> int | None:
    """The bucket that the ``q``-quantile is in; None when nothing was counted."""
    total = sum(counts)
    if total == 0:
        return None
    rank = q * total
    seen = 0
    for i, count in enumerate(counts):
        seen += count
        if seen >= rank and seen > 0:
            return i
    return len(counts) - 1


def quantile(counts: Sequence[int], q: float) -> float | None:
    """Upper bound of the bucket that the ``q``-quantile is in, in seconds; None when nothing was counted."""
    i = quantile_bucket(counts, q)
    return None if i is None else bounds(i)[1]
