"""What the answer to one request of a batch means for it."""

from enum import StrEnum

MOST_ATTEMPTS = 5
"""So often a request is sent that fails for no fault of its own."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_BUSY = frozenset({408, 425, 429, 503, 529})


class Verdict(StrEnum):
    GOOD = "good"
    """For the output file."""
    WRONG = "wrong"
    """Another time it would be the same: for the error file."""
    BUSY = "busy"
    """Nobody had the capacity: later, however often."""
    FAULT = "fault"
    """Something broke: again, but not for ever."""


def verdict(status: int) -> Verdict:
    if 200 <= status < 300:
        return Verdict.GOOD
    if status in _BUSY:
        return Verdict.BUSY
    return Verdict.FAULT if status >= 500 else Verdict.WRONG


def pause(attempts: int) -> float:
    """Seconds, after so many faults of one request."""
    return float(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(attempts - 1, 10)))


def retry_after(value: str | None) -> float | None:
    """Seconds, as the header says; None where it says nothing of use."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86_400 else None
