"""What an engine's answers say of its load, in the header ``holdfast-load`` (``fleet.policy.engine_load`` reads it)."""

from fleet.engines.adapter import Queue

FRESH_S = 5.0
"""What an engine said of its queue longer ago is not passed on."""


class LastLook:
    """How full an engine was when its metrics were last read."""

    __slots__ = ("_at", "_said")

    def __init__(self) -> None:
        self._at = float("-inf")
        self._said = b""

    def note(self, queue: Queue | None, now: float) -> None:
        """``now``: by the monotonic clock, in seconds. ``queue`` None: the engine does not say."""
        self._at = now
        if queue is None:
            self._said = b""
        else:
            self._said = b";%d;%d" % (queue.waiting, round(1000 * min(max(queue.kv_usage or 0.0, 0.0), 1.0)))

    def header(self, in_flight: int, now: float) -> bytes:
        """``<in flight>;<waiting>;<KV cache in use, permille>``; the first alone while the rest is not known."""
        if now - self._at > FRESH_S:
            return b"%d" % in_flight
        return b"%d%b" % (in_flight, self._said)
