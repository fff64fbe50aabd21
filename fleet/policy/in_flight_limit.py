"""How many requests a replica works well on at a time: more would only wait in its engine. Pure; time is given."""

from math import sqrt

from fleet.policy.replica import EngineLoad

SMALL = 8
"""An engine with at most so many places is given as many: there is nothing to be learned."""
START = 32
"""Where it begins for an engine that has not said how many places it has."""
MOST = 4096
"""For such an engine; others say themselves."""
TOLERANCE = 2.5
"""Times as long as with little to do may a first byte take: batching is slower for each, and faster for all."""
ROUND = 8
"""Answers that are looked at together."""
RELEARN_S = 30.0
"""The measure of how fast the engine is with little to do is at most about so old."""
KV_FULL = 0.95
_OVERHEAD_TOKENS = 256
"""What a first byte costs beside the prompt, in prompt tokens."""
_BACK_OFF = 0.5
"""A limit is not cut to less than this at a time, for what was measured or refused…"""
_SOFTLY = 0.9
"""…and for what an engine says, which comes with each answer."""


class LearnedLimit:
    """``value`` is at least 1 and at most what the engine can do; cheap to read.

    What is known is not learned: a limit that somebody set, and engines with few places. For others the time to the
    first byte per prompt token is compared with that at half the limit or below (gradient, with a queue of the
    square root allowed); now and then the limit is halved for a moment to measure that again. What an engine says
    itself comes first: when requests wait in it, those that do not are what it works on.
    """

    __slots__ = (
        "_best", "_capacity", "_count", "_exact", "_fixed", "_idle_count", "_idle_sum", "_peak", "_probing",
        "_relearn_at", "_sum", "value",
    )  # fmt: skip

    def __init__(self, capacity: int = 0, fixed: int | None = None) -> None:
        """``capacity``: requests that the engine works on at a time; 0: not known."""
        self._fixed = fixed
        self._best = 0.0
        self._relearn_at = 0.0
        self._probing = False
        self._sum, self._count, self._peak = 0.0, 0, 0
        self._idle_sum, self._idle_count = 0.0, 0
        self._capacity = -1
        self._exact = 0.0
        self.value = 1
        self.resize(capacity)

    @property
    def learns(self) -> bool:
        return self._fixed is None and not 0 < self._capacity <= SMALL

    def resize(self, capacity: int) -> None:
        """The engine says now that it has so many places."""
        if capacity == self._capacity:
            return
        self._capacity = capacity
        if self._fixed is not None:
            self.value = max(1, self._fixed)
        else:
            self._set(float(capacity or START))

    def note_first_byte(self, prompt_tokens: int, seconds: float, in_flight: int, now: float) -> bool:
        """A streamed answer began after ``seconds``, while ``in_flight`` were there; whether ``value`` changed."""
        if not self.learns:
            return False
        before = self.value
        pace = seconds / (prompt_tokens + _OVERHEAD_TOKENS)
        if in_flight <= max(1.0, self._exact / 2):
            self._idle_sum += pace
            self._idle_count += 1
        self._sum += pace
        self._count += 1
        self._peak = max(self._peak, in_flight)
        if self._count >= ROUND:
            self._look(now)
        return self.value != before

    def note_load(self, load: EngineLoad, ours: int) -> bool:
        """What it said of itself, while ``ours`` of its requests were this gateway's; whether ``value`` changed."""
        if not self.learns or load.in_flight <= 0:
            return False
        before = self.value
        if load.waiting > max(2, load.in_flight // 8):  # a few may just have come, and wait for the next step only
            running = max(0, load.in_flight - load.waiting) * min(1.0, ours / load.in_flight)
            self._set(min(self._exact, max(running, self._exact * _SOFTLY)))
        elif load.kv_used >= KV_FULL and ours <= before:
            self._set(min(self._exact, max(float(ours), self._exact * _SOFTLY)))
        return self.value != before

    def note_overload(self, in_flight: int) -> bool:
        """It refused a request (429, 503) while ``in_flight`` were there; whether ``value`` changed."""
        if not self.learns:
            return False
        before = self.value
        self._set(max(self._exact * _BACK_OFF, min(self._exact, in_flight - 1.0)))
        return self.value != before

    def _look(self, now: float) -> None:
        pace, peak = self._sum / self._count, self._peak
        self._begin_round()
        if self._idle_count >= ROUND // 2:
            self._best = self._idle_sum / self._idle_count
            self._idle_sum, self._idle_count = 0.0, 0
            self._relearn_at = now + RELEARN_S
            if self._probing:
                self._probing = False
                self._show()
                return
        if self._probing:
            return
        if not self._best or now >= self._relearn_at:
            self._probe()
        else:
            self._follow(pace, peak)

    def _follow(self, pace: float, peak: int) -> None:
        gradient = max(_BACK_OFF, min(1.0, TOLERANCE * self._best / pace)) if pace > 0 else 1.0
        limit = self._exact * gradient + sqrt(self._exact)
        if limit > self._exact and peak < 0.8 * self._exact:
            return  # it was not tried: nothing says that more would go well
        self._set((self._exact + limit) / 2)

    def _probe(self) -> None:
        """Half of it for a moment, so that what is measured is the engine and not its queue."""
        self._probing = True
        self._show()

    def _set(self, exact: float) -> None:
        self._exact = max(1.0, min(exact, float(self._capacity or MOST)))
        self._show()

    def _show(self) -> None:
        self.value = max(1, int(self._exact / 2 if self._probing else self._exact))

    def _begin_round(self) -> None:
        self._sum, self._count, self._peak = 0.0, 0, 0
