"""A replica whose answers fail is left alone for a while, and then tried by one request at a time. Pure."""

from enum import Enum
from typing import NamedTuple

FEWEST = 5
SHARE = 0.5
"""Of at least ``FEWEST`` requests that ended lately, failed."""
WINDOW_S = 10.0
"""Lately: in this piece of time and the one before."""
OFF_S = 5.0
OFF_AT_MOST_S = 60.0
OVERLOADED_S = 1.0
"""So long it is left alone when it says that it has too much to do, and not for how long."""
SUCCESSES = 3
"""So many trials in a row must go well."""
_LONGEST_TRIAL_S = 600.0
"""Should nobody ever say how a trial ended."""


class Fate(Enum):
    """How a request ended, as far as it says something about the replica."""

    ANSWERED = "answered"
    FAILED = "failed"
    """The replica's fault: no connection, no answer in time, broken off, an error of its own."""
    OVERLOADED = "overloaded"
    """It said itself that it has too much to do (429, 503)."""
    UNUSED = "unused"
    """Says nothing: the client left before there was an answer, or it was not sent at all."""


class Outcome(NamedTuple):
    fate: Fate
    retry_after_s: float = 0.0
    """For ``OVERLOADED``: what it asked for; 0: nothing."""


class Outlier:
    """``until`` is when it may be asked again; in the past: now. Callers only have to compare."""

    __slots__ = ("_before", "_begun", "_good", "_now", "_off_s", "_open", "_tried", "until")

    def __init__(self) -> None:
        self.until = float("-inf")
        self._open = False
        self._tried = False
        """A trial is on its way."""
        self._good = 0
        self._off_s = OFF_S
        self._begun = float("-inf")
        self._now = self._before = (0, 0)
        """Ended and failed requests, of this piece of time and of the one before."""

    @property
    def on_trial(self) -> bool:
        """It failed too often, and has to prove itself: the next request is a trial."""
        return self._open

    def begin(self, now: float) -> None:
        """A request goes to it: on trial, no other should until that has ended."""
        if self._open:
            self._tried = True
            self.until = now + _LONGEST_TRIAL_S

    def note(self, outcome: Outcome, now: float) -> bool:
        """A request that was begun has ended; whether ``until`` changed or it is not on trial any more.

        While it is left alone, what had been begun before counts for nothing.
        """
        fate = outcome.fate
        if fate is Fate.ANSWERED and not self._open:
            self._count(False, now)
            return False
        before = (self.until, self._open)
        if fate is Fate.OVERLOADED:
            self._end_trial(now)
            self.until = max(self.until, now + min(outcome.retry_after_s or OVERLOADED_S, OFF_AT_MOST_S))
        elif fate is Fate.UNUSED:
            self._end_trial(now)
        elif not self._open:
            self._count(fate is Fate.FAILED, now)
        elif self._tried:
            self._judge(fate is Fate.ANSWERED, now)
        return (self.until, self._open) != before

    def _end_trial(self, now: float) -> None:
        if self._tried:
            self._tried = False
            self.until = now

    def _judge(self, good: bool, now: float) -> None:
        self._end_trial(now)
        if not good:
            self._off_s = min(2 * self._off_s, OFF_AT_MOST_S)
            self._shut(now)
            return
        self._good += 1
        if self._good >= SUCCESSES:
            self._open = False
            self._off_s = OFF_S
            self._now = self._before = (0, 0)

    def _count(self, failed: bool, now: float) -> None:
        if now - self._begun >= WINDOW_S:
            self._before = self._now if now - self._begun < 2 * WINDOW_S else (0, 0)
            self._begun, self._now = now, (0, 0)
        self._now = (self._now[0] + 1, self._now[1] + failed)
        if failed:
            ended, failures = self._now[0] + self._before[0], self._now[1] + self._before[1]
            if ended >= FEWEST and failures >= SHARE * ended:
                self._shut(now)

    def _shut(self, now: float) -> None:
        self._open = True
        self._good = 0
        self.until = max(self.until, now + self._off_s)
