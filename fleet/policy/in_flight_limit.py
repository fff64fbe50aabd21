"""How many requests a replica works well on at a time: more would only wait in its engine. Pure; time is given."""

from math import sqrt

from fleet.policy.replica import EngineLoad

SMALL = 8
"""An engine with at most so many places is given as many: there is nothing to be learned."""
START = 32
"""Where it begins for an engine that has not said how many places it has."""
MOST = 4096
"""For such an engine; others say themselves."""
TOLERANCE = 2.0
"""Times as long as with little to do may a first byte take: batching is slower for each, and faster for all."""
ROUND = 8
"""Answers that are looked at together."""
LITTLE = 0.25
"""With at most this share of its limit, an engine has little to do."""
RELEARN_S = 30.0
"""The measure of how fast it is then is about so old at most…"""
PROBE_S = 2.0
"""…and while there is no time with little to do, one is made, of at most this length."""
_RELEARN_AT_MOST_S = 480.0
"""When answers are too long for that, it is tried less and less often."""
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
    first byte per prompt token is compared with that when there was little to do (gradient, with a queue of the
    square root allowed); now and then the limit is lowered for a moment to measure that again. What an engine says
    itself comes first: when requests wait in it, those that do not are what it works on.
    """

    __slots__ = (
        "_best", "_capacity", "_count", "_exact", "_fixed", "_idle_count", "_idle_sum", "_peak", "_probe_until",
        "_relearn_at", "_relearn_s", "_sum", "value",
    )  # fmt: skip

    def __init__(self, capacity: int = 0, fixed: int | None = None) -> None:
        """``capacity``: requests that the engine works on at a time; 0: not known."""
        self._fixed = fixed
        self._best = 0.0
        self._relearn_at = 0.0
        self._relearn_s = RELEARN_S
        self._probe_until: float | None = None
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
        if in_flight <= max(1.0, self._exact * LITTLE):
            self._idle_sum += pace
            self._idle_count += 1
        self._sum += pace
        self._count += 1
        self._peak = max(self._peak, in_flight)
        if self._probe_until is not None:
            self._look_at_probe(now)
        elif self._count >= ROUND:
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

    def sweep(self, now: float) -> bool:
        """To be called about once a second, for when no answers begin; whether ``value`` changed."""
        before = self.value
        if self._probe_until is not None:
            self._look_at_probe(now)
        return self.value != before

    def _look(self, now: float) -> None:
        if self._idle_count >= ROUND // 2:
            self._learn_best(now)
        if now >= self._relearn_at:
            self._probe_until = now + PROBE_S
            self._show()
        elif self._best:
            self._follow(self._sum / self._count, self._peak)
        self._sum, self._count, self._peak = 0.0, 0, 0

    def _look_at_probe(self, now: float) -> None:
        until = self._probe_until or 0.0
        if self._idle_count >= ROUND // 2:
            self._learn_best(now)
        elif now >= until:
            self._relearn_s = min(2 * self._relearn_s, _RELEARN_AT_MOST_S)
            self._relearn_at = now + self._relearn_s
        else:
            return
        self._probe_until = None
        self._sum, self._count, self._peak = 0.0, 0, 0
        self._show()

    def _learn_best(self, now: float) -> None:
        self._best = self._idle_sum / self._idle_count
        self._idle_sum, self._idle_count = 0.0, 0
        self._relearn_s = RELEARN_S
        self._relearn_at = now + RELEARN_S

    def _follow(self, pace: float, peak: int) -> None:
        gradient = max(_BACK_OFF, min(1.0, TOLERANCE * self._best / pace)) if pace > 0 else 1.0
        limit = self._exact * gradient + sqrt(self._exact)
        if limit > self._exact and peak < 0.8 * self._exact:
            return  # it was not tried: nothing says that more would go well
        self._set((self._exact + limit) / 2)

    def _set(self, exact: float) -> None:
        self._exact = max(1.0, min(exact, float(self._capacity or MOST)))
        self._show()

    def _show(self) -> None:
        self.value = max(1, int(self._exact if self._probe_until is None else self._exact * LITTLE))
