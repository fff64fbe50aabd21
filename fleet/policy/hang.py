"""Does an engine that lives still work? Busy is never mistaken for dead. Pure.

Four kinds of evidence, each by itself enough:

1. Its health check has not been answered for a while.
2. Others' requests run in it, and none of its counters has moved for a while.
3. It has nothing to do and twice in a row did not manage one token.
4. It used to say what it does, and has not for a very long while: stuck in the middle of something.

Otherwise what it does not say is no evidence: metrics that come late, or that are rounded, are *unknown*, and unknown
stops the clock of a stall. Time counts only while somebody looks: after a pause of the looker itself all clocks start
anew.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

SUSPECT_AFTER_S = 2.5
_SUSPECT_LOOKS = 2
_HUNG_LOOKS = 5
"""In a row unanswered, at least: on a machine without time to spare a few looks take as long as many."""
LONGEST_GAP_S = 5.0
"""Between two looks, which come about once a second. More than this, and it was we who stood still."""
_BELIEVED_PROBES = 2
UNKNOWN_FOR_STALLS = 4
"""Requests of which nobody can say whether they get on have so many times ``stall_s``."""


class Level(StrEnum):
    OK = "ok"
    SUSPECT = "suspect"
    HUNG = "hung"


@dataclass(frozen=True)
class Patience:
    """In seconds. 0: never, for the last two."""

    unresponsive_s: float
    stall_s: float
    idle_probe_s: float


@dataclass(frozen=True)
class Reading:
    """From the engine's metrics."""

    busy: int | None
    """Requests running or queued in it; None: not known."""
    progress: float | None
    """A number that changes whenever it gets on; None: not known."""
    exact: bool = True
    """False: a number that stands still proves nothing, it is rounded."""


@dataclass(frozen=True)
class Look:
    now: float
    """When it ended, by a monotonic clock, in seconds."""
    answered: bool
    """Its health check, in time and with success."""
    reading: Reading | None = None
    """None: none has come since the last look. An engine that does not answer gives a reading of unknowns.

    Asked for after ``probe`` had ended, if there is one: what it shows as busy is never our own request.
    """
    probe: bool | None = None
    """Whether the one-token request was answered that has ended since the last look; None: none has ended."""


@dataclass(frozen=True)
class Watch:
    """What is remembered from look to look. Made by ``begin``."""

    seen_at: float
    answered_at: float
    proven_at: float
    """When it last got on with anything."""
    suspect: bool = False
    silent_looks: int = 0
    reading: Reading | None = None
    read_at: float = 0.0
    progress: float | None = None
    """The last that was known."""
    stuck_s: float = 0.0
    unknown_s: float = 0.0
    """How long it has not said whether its requests get on, although it could."""
    doubted: bool = False
    """A probe failed, and the next reading says whether others kept it busy."""
    failed_probes: int = 0


@dataclass(frozen=True)
class Verdict:
    level: Level
    reason: str = ""
    """For people; empty when all is well."""
    send_probe: bool = False
    """It has nothing to do and has not proven itself for long: now is the time for a one-token request."""


def begin(now: float, *, suspect: bool = False) -> Watch:
    """``suspect``: what was thought of it before, which holds until it answers."""
    return Watch(seen_at=now, answered_at=now, proven_at=now, suspect=suspect)


def judge(watch: Watch, look: Look, patience: Patience) -> tuple[Watch, Verdict]:
    if look.now - watch.seen_at > LONGEST_GAP_S:
        watch = begin(look.now, suspect=watch.suspect)
        return watch, _standing(watch)
    watch = _with_answer(replace(watch, seen_at=look.now), look)
    watch = _with_probe(watch, look)
    watch = _with_reading(watch, look)
    if reason := _hung(watch, patience):
        return watch, Verdict(Level.HUNG, reason)
    if look.reading is not None and _wants_probe(watch, patience):
        return watch, replace(_standing(watch), send_probe=True)
    return watch, _standing(watch)


def _with_answer(watch: Watch, look: Look) -> Watch:
    if look.answered:
        return replace(watch, answered_at=look.now, silent_looks=0, suspect=False)
    looks = watch.silent_looks + 1
    silent = look.now - watch.answered_at >= SUSPECT_AFTER_S and looks >= _SUSPECT_LOOKS
    return replace(watch, silent_looks=looks, suspect=watch.suspect or silent)


def _with_probe(watch: Watch, look: Look) -> Watch:
    match look.probe:
        case None:
            return watch
        case True:
            return replace(watch, proven_at=look.now, doubted=False, failed_probes=0)
        case False:
            return replace(watch, doubted=True)


def _with_reading(watch: Watch, look: Look) -> Watch:
    new = look.reading
    if new is None:
        return watch
    moved = new.progress is not None and watch.progress not in (None, new.progress)
    idle = new.busy == 0 and not moved  # else others kept it busy, or nobody knows
    return replace(
        watch,
        reading=new,
        read_at=look.now,
        progress=watch.progress if new.progress is None else new.progress,
        stuck_s=_stuck_s(watch, new, look.now, moved=moved),
        unknown_s=_unknown_s(watch, new, look.now, moved=moved),
        proven_at=look.now if moved else watch.proven_at,
        doubted=False,
        failed_probes=watch.failed_probes + watch.doubted if idle else 0,
    )


def _stuck_s(watch: Watch, new: Reading, now: float, *, moved: bool) -> float:
    """How long its requests have been seen not to get on: only time between two readings that both say so counts."""
    if moved or new.busy == 0:
        return 0.0
    old = watch.reading
    both = old is not None and old.busy and new.busy and _telling(old) and _telling(new)
    return watch.stuck_s + (now - watch.read_at if both else 0.0)


def _unknown_s(watch: Watch, new: Reading, now: float, *, moved: bool) -> float:
    if moved or new.busy == 0 or _telling(new) or watch.progress is None:
        return 0.0
    return watch.unknown_s + now - watch.read_at


def _telling(reading: Reading) -> bool:
    return reading.progress is not None and reading.exact


def _hung(watch: Watch, patience: Patience) -> str:
    silent_s = watch.seen_at - watch.answered_at
    if watch.silent_looks >= _HUNG_LOOKS and silent_s >= patience.unresponsive_s:
        return f"it has not answered its health check for {silent_s:.0f} s"
    if watch.silent_looks:
        return ""  # one thing after the other
    if patience.stall_s and watch.stuck_s >= patience.stall_s:
        return f"its running requests have not got on for {watch.stuck_s:.0f} s"
    if patience.stall_s and watch.unknown_s >= UNKNOWN_FOR_STALLS * patience.stall_s:
        return f"it has not said for {watch.unknown_s:.0f} s whether its requests get on"
    if watch.failed_probes >= _BELIEVED_PROBES:
        return f"it had nothing to do and yet did not answer {watch.failed_probes} one-token requests in a row"
    return ""


def _standing(watch: Watch) -> Verdict:
    if not watch.suspect:
        return Verdict(Level.OK)
    return Verdict(Level.SUSPECT, f"it has not answered its health check for {watch.seen_at - watch.answered_at:.0f} s")


def _wants_probe(watch: Watch, patience: Patience) -> bool:
    if not patience.idle_probe_s or watch.silent_looks or watch.reading is None or watch.reading.busy != 0:
        return False
    return watch.failed_probes > 0 or watch.seen_at - watch.proven_at >= patience.idle_probe_s
