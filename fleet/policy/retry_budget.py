"""Retries as a share of requests, so that a failing fleet is not also flooded."""


class RetryBudget:
    """What was retried is a debt. Each request pays back ``share`` of a retry, time pays back a small floor.

    The debt may be as high as the number of requests that are on their way, and at least ``burst``: when one engine
    dies, each request in it may be sent again, however many there are; when engines go on dying, retries are soon
    not more than ``share`` of the requests. Times are seconds of any monotonic clock.
    """

    __slots__ = ("_burst", "_debt", "_floor", "_paid_at", "_share")

    def __init__(self, *, share: float = 0.1, floor: float = 1.0, burst: float = 10.0) -> None:
        """``floor``: retries a second that are allowed however few requests come."""
        self._share = share
        self._floor = floor
        self._burst = burst
        self._debt = 0.0
        self._paid_at: float | None = None

    def note_request(self) -> None:
        debt = self._debt
        if debt:
            self._debt = debt - self._share if debt > self._share else 0.0

    def take(self, now: float, in_flight: int = 0) -> bool:
        """Whether one retry may be made now, while ``in_flight`` requests are on their way; True spends it."""
        since = 0.0 if self._paid_at is None else max(0.0, now - self._paid_at)
        self._paid_at = now
        self._debt = max(0.0, self._debt - since * self._floor)
        if self._debt + 1 > max(self._burst, in_flight):
            return False
        self._debt += 1
        return True
