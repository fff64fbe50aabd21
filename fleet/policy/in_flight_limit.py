"""How many requests a replica works well on at a time: more would only wait in its engine. Pure; time is given."""

from math import inf, sqrt

from fleet.policy.replica import EngineLoad

SMALL = 8
"""An engine with at most so many places is given as many: there is nothing to be learned."""
START = 32
"""Where it begins for an engine that has not said how many places it has."""
MOST = 4096
"""For such an engine; others say themselves."""
TOLERANCE = 1.0
"""All of a round may have waited for so many times what a first byte takes with little to do."""
ROUND, ROUND_S = 8, 3.0
"""At least so many answers, and so many seconds, are looked at together."""
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
_BACK_OFF = 0.9
"""What is left of a limit when all had to wait."""
_USED = 0.8
"""Of a limit; what is not used does not show whether more would go well."""
_REFUSED = 0.5
"""What is left of it at least when the engine refuses a request…"""
_SOFTLY = 0.9
"""…and when it says something, which it may with each answer."""


class LearnedLimit:
    """``value`` is at least 1 and at most what the engine can do; cheap to read.

    What is known is not learned: a limit that somebody set, and engines with few places. For others it is found out
    whether requests wait in the engine: when even the luckiest of a round had its first byte much later than prompts
    like its own have with little to do. Then the limit is cut; else, while it is used, it grows. So a burst, of
    which the first ones do not wait, costs nothing. What fast is, is measured anew when that was long ago and a
    cut would follow from it: the limit is lowered for a moment. What an engine says itself comes first: when requests
    wait in it, those that do not are what it works on.
    """

    __slots__ = (
        "_best", "_capacity", "_count", "_exact", "_fixed", "_idle_count", "_idle_sum", "_peak", "_probe_until",
        "_relearn_at", "_relearn_s", "_round_ends", "_usual", "_waited", "value",
    )  # fmt: skip

    def __init__(self, capacity: int = 0, fixed: int | None = None) -> None:
        """``capacity``: requests that the engine works on at a time; 0: not known."""
        self._fixed = fixed
        self._best = 0.0
        self._relearn_at = 0.0
        self._relearn_s = RELEARN_S
        self._probe_until: float | None = None
        self._usual = float(_OVERHEAD_TOKENS)
        self._waited, self._count, self._peak, self._round_ends = inf, 0, 0, 0.0
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
        size = prompt_tokens + _OVERHEAD_TOKENS
        if in_flight <= max(1.0, self._exact * LITTLE):
            self._idle_sum += seconds / size
            self._idle_count += 1
        self._waited = min(self._waited, seconds - self._best * size)
        self._usual += (size - self._usual) * 0.1
        self._count += 1
        self._peak = max(self._peak, in_flight)
        if self._probe_until is not None:
            self._look_at_probe(now)
        elif self._count >= ROUND and now >= self._round_ends:
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
        self._set(max(self._exact * _REFUSED, min(self._exact, in_flight - 1.0)))
        return self.value != before

    def sweep(self, now: float) -> bool:
        """To be called about once a second, for when no answers begin; whether ``value`` changed."""
        before = self.value
        if self._probe_until is not None:
            self._look_at_probe(now)
        return self.value != before

    def _look(self, now: float) -> None:
        known, waited = self._best > 0, self._waited > TOLERANCE * self._best * self._usual
        if self._idle_count >= ROUND // 2:
            self._learn_best(now)
        if waited and now >= self._relearn_at:
            self._probe_until = now + PROBE_S
            self._show()
        elif known:
            self._judge(waited=waited)
        self._begin_round(now)

    def _judge(self, *, waited: bool) -> None:
        if waited:
            self._set(self._exact * _BACK_OFF)
        elif self._peak >= _USED * self._exact:
            self._set(self._exact + sqrt(self._exact) / 2)

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
        self._begin_round(now)
        self._show()

    def _learn_best(self, now: float) -> None:
        self._best = self._idle_sum / self._idle_count
        self._idle_sum, self._idle_count = 0.0, 0
        self._relearn_s = RELEARN_S
        self._relearn_at = now + RELEARN_S

    def _begin_round(self, now: float) -> None:
        self._waited, self._count, self._peak, self._round_ends = inf, 0, 0, now + ROUND_S

    def _set(self, exact: float) -> None:
        self._exact = max(1.0, min(exact, float(self._capacity or MOST)))
        self._show()

    def _show(self) -> None:
        self.value = max(1, int(self._exact if self._probe_until is None else self._exact * LITTLE))
