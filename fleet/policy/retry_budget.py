"""Retries as a share of requests, so that a failing fleet is not also flooded."""


class RetryBudget:
    """A token bucket: each request adds ``share`` of a retry, time adds a small floor. Starts full.

    Times are seconds of any monotonic clock.
    """

    __slots__ = ("_burst", "_floor", "_refilled_at", "_share", "_tokens")

    def __init__(self, *, share: float = 0.1, floor: float = 1.0, burst: float = 10.0) -> None:
        """``floor``: retries a second that are allowed however few requests come; ``burst``: most kept."""
        self._share = share
        self._floor = floor
        self._burst = burst
        self._tokens = burst
        self._refilled_at: float | None = None

    def note_request(self) -> None:
        tokens = self._tokens + self._share
        self._tokens = tokens if tokens < self._burst else self._burst  # min() costs more on the hot path

    def take(self, now: float) -> bool:
        """Whether one retry may be made now; True spends it."""
        since = 0.0 if self._refilled_at is None else max(0.0, now - self._refilled_at)
        self._refilled_at = now
        self._tokens = min(self._burst, self._tokens + since * self._floor)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
