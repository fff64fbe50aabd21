"""A batch of requests that is worked off on spare capacity: its durable state, and what changes it. Pure.

Requests and answers stay in the database; here are only counts, positions and ids.
"""

from datetime import datetime, timedelta
from enum import StrEnum

from fleet.model import Record
from fleet.timings import Timings

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations")
COMPLETION_WINDOW = timedelta(hours=24)
MOST_LINES = 50_000
MOST_LINE_BYTES = 1 << 20
MOST_ERRORS = 100
"""So many mistakes of an input file are told at once."""
WINDOW_LINES = 200
WINDOW_BYTES = 8 << 20
"""What is worked off, and held in memory, at once: so many lines, or so many bytes."""
WINDOWS_AT_ONCE = 2
"""While the last slow lines of one are waited for, the next one is under way."""


class BatchStatus(StrEnum):
    """As OpenAI names them."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED = frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


class EndReason(StrEnum):
    """Why a batch ends before all of its lines were answered."""

    NONE = ""
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    INVALID = "invalid"
    """The input file has mistakes: nothing of it was asked."""
    INPUT_GONE = "input_gone"


class CheckedBatch(Record):
    """What a look at the input file found."""

    total: int = 0
    windows: int = 0
    errors: int = 0
    model: str = ""
    """Empty: several."""


class WindowDone(Record):
    """How a window was left. The counts are those of its lines, whoever answered them."""

    window: int
    completed: int = 0
    failed: int = 0
    left: int = 0
    """Lines without an answer: it was called back, or its time was up."""
    cancel: bool = False
    """Somebody wants the batch cancelled."""
    last_error: str = ""
    """Status and code of the last answer that was none."""


class AssembledBatch(Record):
    completed: int = 0
    failed: int = 0
    output_file_id: str = ""
    error_file_id: str = ""


class CancelBatch(Record):
    """Input of the ``cancel`` update."""

    reason: str = ""


class PauseBatch(Record):
    """Input of the ``pause`` update: a level."""

    paused: bool = True


class Batch(Record):
    """State of a ``BatchWorkflow``, carried over continue-as-new."""

    schema_version: int = 1
    batch_id: str
    endpoint: str
    created_at: datetime
    expires_at: datetime
    status: BatchStatus = BatchStatus.VALIDATING
    checked: CheckedBatch | None = None
    next_window: int = 0
    """The first that was never begun."""
    under_way: tuple[int, ...] = ()
    again: tuple[int, ...] = ()
    """Windows that were left before all of their lines were answered."""
    completed: int = 0
    failed: int = 0
    """Lines of windows that are through."""
    paused: bool = False
    end_reason: EndReason = EndReason.NONE
    end_message: str = ""
    last_error: str = ""
    output_file_id: str = ""
    error_file_id: str = ""
    in_progress_at: datetime | None = None
    cancelling_at: datetime | None = None
    finalizing_at: datetime | None = None
    ended_at: datetime | None = None
    projection: int = 0
    timings: Timings = Timings()

    def with_(self, **changes: object) -> "Batch":
        return self.model_copy(update=changes)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def total(self) -> int:
        return self.checked.total if self.checked is not None else 0

    @property
    def through(self) -> bool:
        """Every line has its answer."""
        known = self.checked is not None and self.next_window >= self.checked.windows
        return known and not self.under_way and not self.again


class Step(StrEnum):
    """What is to be done next."""

    VALIDATE = "validate"
    BEGIN = "begin"
    """The next windows."""
    CALL_BACK = "call_back"
    """The windows that are under way: their requests finish, and no new one is sent."""
    FINALIZE = "finalize"
    WAIT = "wait"


def next_step(b: Batch, now: datetime) -> Step:
    if b.end_reason or now >= b.expires_at:
        return Step.CALL_BACK if b.under_way else Step.FINALIZE
    if b.checked is None:
        return Step.WAIT if b.paused else Step.VALIDATE
    if b.through:
        return Step.FINALIZE
    if b.paused:
        return Step.CALL_BACK if b.under_way else Step.WAIT
    return Step.BEGIN if next_windows(b) else Step.WAIT


def next_windows(b: Batch) -> tuple[int, ...]:
    """Those that may begin beside those under way: new ones first, so that one that cannot go on holds nobody up."""
    windows = b.checked.windows if b.checked is not None else 0
    waiting = (*range(b.next_window, min(windows, b.next_window + WINDOWS_AT_ONCE)), *b.again)
    return waiting[: max(0, WINDOWS_AT_ONCE - len(b.under_way))]


def checked(b: Batch, found: CheckedBatch, now: datetime) -> Batch:
    """After a look at the input file."""
    seen = b.with_(checked=found)
    if found.errors:
        message = f"the input file has {found.errors} mistakes" if found.errors > 1 else "the input file has a mistake"
        return ending(seen, EndReason.INVALID, now, message)
    if b.end_reason:
        return seen
    return seen.with_(status=BatchStatus.IN_PROGRESS, in_progress_at=now)


def begun(b: Batch, window: int) -> Batch:
    return b.with_(
        under_way=(*b.under_way, window),
        again=tuple(w for w in b.again if w != window),
        next_window=max(b.next_window, window + 1),
    )


def left(b: Batch, done: WindowDone, now: datetime) -> Batch:
    """A window that was under way came back."""
    back = b.with_(
        under_way=tuple(w for w in b.under_way if w != done.window), last_error=done.last_error or b.last_error
    )
    if done.left:
        back = back.with_(again=(*b.again, done.window))
    else:
        back = back.with_(completed=b.completed + done.completed, failed=b.failed + done.failed)
    return ending(back, EndReason.CANCELLED, now, "cancelled") if done.cancel else back


def ending(b: Batch, reason: EndReason, now: datetime, message: str = "") -> Batch:
    """The first reason counts; twice is once."""
    if b.end_reason or b.status in (BatchStatus.FINALIZING, *ENDED):
        return b
    changed = b.with_(end_reason=reason, end_message=message or reason.value)
    if reason is EndReason.CANCELLED:
        return changed.with_(status=BatchStatus.CANCELLING, cancelling_at=now)
    return changed


def paused(b: Batch, level: bool) -> Batch:
    return b if b.paused is level or b.ended else b.with_(paused=level)


def finalizing(b: Batch, now: datetime) -> Batch:
    """Why it ends is settled now: out of time, unless something else came first or all is answered."""
    if not b.end_reason and not b.through:
        b = ending(b, EndReason.EXPIRED, now, "not all of it could be answered in time")
    keeps = b.status in (BatchStatus.CANCELLING, BatchStatus.FINALIZING)
    return b if keeps else b.with_(status=BatchStatus.FINALIZING, finalizing_at=now)


_HOW_IT_ENDS = {
    EndReason.NONE: BatchStatus.COMPLETED,
    EndReason.CANCELLED: BatchStatus.CANCELLED,
    EndReason.EXPIRED: BatchStatus.EXPIRED,
    EndReason.INVALID: BatchStatus.FAILED,
    EndReason.INPUT_GONE: BatchStatus.FAILED,
}


def assembled(b: Batch, files: AssembledBatch, now: datetime) -> Batch:
    """Its files are there: it has ended."""
    return b.with_(
        status=_HOW_IT_ENDS[b.end_reason],
        completed=files.completed,
        failed=files.failed,
        output_file_id=files.output_file_id,
        error_file_id=files.error_file_id,
        ended_at=now,
    )


def patience(b: Batch, now: datetime) -> timedelta:
    """How long to wait for something to happen: until it is out of time."""
    return max(timedelta(0), b.expires_at - now)


def rate(b: Batch, now: datetime) -> float:
    """Lines a second since it began."""
    if b.in_progress_at is None:
        return 0.0
    seconds = ((b.ended_at or now) - b.in_progress_at).total_seconds()
    return (b.completed + b.failed) / seconds if seconds > 0 else 0.0


def describe(b: Batch, now: datetime) -> str:
    """Markdown for an operator who has only the Temporal UI."""
    state = f"{b.status.value}, paused" if b.paused and not b.ended else b.status.value
    lines = [f"**{state}**" + (f": {b.end_message}" if b.end_message else "")]
    if b.checked is not None:
        of = f"{b.completed + b.failed:,} of {b.total:,} lines answered, {b.failed:,} of them with errors"
        lines.append(f"{of}; {rate(b, now):.1f} lines/s" if b.in_progress_at is not None else of)
    if b.under_way:
        windows = ", ".join(str(w + 1) for w in b.under_way)
        total = b.checked.windows if b.checked is not None else 0
        lines.append(f"Under way: window {windows} of {total} (the pending activities say how far)")
    if b.again:
        lines.append(f"To be gone on with: window {', '.join(str(w + 1) for w in b.again)}")
    if b.last_error:
        lines.append(f"Last error: {b.last_error}")
    if not b.ended:
        lines.append(f"`{b.endpoint}`, on spare capacity until {b.expires_at:%Y-%m-%d %H:%M:%S} UTC")
        lines.append('Updates: `cancel`; `pause` with `{"paused": true}` or `false`')
    return "\n\n".join(lines)
