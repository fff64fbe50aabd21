"""Batches, the windows that their input is cut into, and one row for each line that has its answer.

An answer is written once: whoever comes second, however late, changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Index, LargeBinary, delete, func
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, Session, SQLModel, col, select

from fleet.batches import ENDED, Batch, BatchStatus
from fleet.db import stored_files
from fleet.db.stored_files import StoredFileRow
from fleet.db.tables import UtcDateTime, now
from fleet.timings import Timings

_DELETED_AT_ONCE = 2000
_GOES_ON = (str(BatchStatus.VALIDATING), str(BatchStatus.IN_PROGRESS))


class BatchRow(SQLModel, table=True):
    """What was asked for, and the projection of its ``BatchWorkflow``."""

    __tablename__ = "batch"
    __table_args__ = (Index("batch_by_key", "key_id", "created_at"), Index("batch_by_status", "status"))

    id: str = Field(primary_key=True)
    key_id: str
    endpoint: str
    input_file_id: str = Field(index=True)
    completion_window: str
    output_expires_s: int | None = None
    """Seconds after its end for which output and errors are kept; None: until somebody deletes them."""
    notes: dict[str, str] = Field(default_factory=dict, sa_column=Column("metadata", JSON, nullable=False))
    """The client's ``metadata``."""
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    expires_at: datetime = Field(sa_type=UtcDateTime)
    cancel_asked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    """Somebody wants it cancelled, whether or not its workflow has heard of it yet."""
    sealed: bool = False
    """No answer is taken any more."""
    mistakes: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """Of the input file, as OpenAI shows them."""

    status: str = BatchStatus.VALIDATING
    model: str = ""
    durable: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The workflow's whole state; empty until it has begun."""
    projection: int = 0
    """0: it has not begun."""
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class BatchWindowRow(SQLModel, table=True):
    """Neighbouring lines of the input."""

    __tablename__ = "batch_window"

    batch_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    first_line: int
    """Counted from 1, as people do."""
    lines: int
    """Empty ones among them."""
    offset: int = Field(sa_type=BigInteger)
    """In bytes, from the beginning of the file."""
    length: int = Field(sa_type=BigInteger)


class BatchResultRow(SQLModel, table=True):
    __tablename__ = "batch_result"

    batch_id: str = Field(primary_key=True)
    line: int = Field(primary_key=True)
    ok: bool
    text: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """The whole line for the output or the error file, without its end."""


@dataclass(frozen=True)
class Result:
    line: int
    ok: bool
    text: bytes


@dataclass(frozen=True)
class Counts:
    completed: int = 0
    failed: int = 0


def create(session: Session, row: BatchRow) -> StoredFileRow | None:
    """Insert it, unless its input file is gone (None) or no batch can be made of it (see its ``purpose``)."""
    file = session.get(StoredFileRow, row.input_file_id, with_for_update=True)
    known = stored_files.find(session, row.input_file_id, row.key_id, row.created_at) if file else None
    if known is not None and known.purpose == "batch":
        session.add(row)
    return known


def find(session: Session, batch_id: str, key_id: str | None) -> BatchRow | None:
    """``key_id`` None: whosever it is."""
    row = session.get(BatchRow, batch_id)
    return row if row is not None and (key_id is None or row.key_id == key_id) else None


def page(session: Session, key_id: str | None, *, after: BatchRow | None, limit: int) -> Sequence[BatchRow]:
    """Newest first. ``key_id`` None: of everybody."""
    when, which = col(BatchRow.created_at), col(BatchRow.id)
    query = select(BatchRow)
    if key_id is not None:
        query = query.where(BatchRow.key_id == key_id)
    if after is not None:
        query = query.where((when < after.created_at) | ((when == after.created_at) & (which < after.id)))
    return session.exec(query.order_by(when.desc(), which.desc()).limit(limit)).all()


def ask_to_cancel(session: Session, batch_id: str, key_id: str | None) -> BatchRow | None:
    """Its workflow hears of it sooner or later. None: there is no such batch; unchanged when it has ended."""
    row = session.get(BatchRow, batch_id, with_for_update=True)
    if row is None or (key_id is not None and row.key_id != key_id):
        return None
    if row.cancel_asked_at is None and not row.ended:
        row.cancel_asked_at = now()
        session.add(row)
    session.flush()
    session.refresh(row)
    session.expunge(row)
    return row


def in_use(session: Session, file_id: str) -> str | None:
    """Id of a batch that still reads the file."""
    query = select(BatchRow.id).where(BatchRow.input_file_id == file_id, col(BatchRow.sealed).is_(False))
    return session.exec(query.limit(1)).first()


def remove_file(session: Session, file_id: str, key_id: str, at: datetime) -> tuple[bool, str]:
    """(whether it was there, batch that still reads it: then it stays)."""
    session.get(StoredFileRow, file_id, with_for_update=True)
    if stored_files.find(session, file_id, key_id, at) is None:
        return False, ""
    reader = in_use(session, file_id)
    if reader is None:
        stored_files.remove(session, file_id)
    return True, reader or ""


def sweep_files(session: Session, at: datetime, at_most: int = 8) -> int:
    """Delete files whose time is over, except those that batches still read. Returns how many."""
    gone = [f for f in stored_files.expired(session, at, at_most) if in_use(session, f) is None]
    for file_id in gone:
        stored_files.remove(session, file_id)
    return len(gone)


# -- what its workflow is made from ----------------------------------------------------------------------------


def state_of(row: BatchRow, timings: Timings) -> Batch:
    """As it was last recorded, or as it begins."""
    if row.durable:
        return Batch.model_validate(row.durable).with_(under_way=(), again=_to_do(Batch.model_validate(row.durable)))
    return Batch(
        batch_id=row.id, endpoint=row.endpoint, created_at=row.created_at, expires_at=row.expires_at, timings=timings
    )


def _to_do(b: Batch) -> tuple[int, ...]:
    return (*b.under_way, *b.again)


def not_ended(session: Session) -> list[BatchRow]:
    """Those whose workflows should run."""
    query = select(BatchRow).where(col(BatchRow.status).not_in([str(s) for s in ENDED]))
    return list(session.exec(query).all())


def overdue(session: Session, before: datetime, at_most: int = 100) -> list[BatchRow]:
    """Those that were made before ``before`` and have not begun, and those that know of no wish to cancel them."""
    begun = select(BatchRow).where(BatchRow.status == str(BatchStatus.VALIDATING), BatchRow.projection == 0)
    begun = begun.where(BatchRow.created_at < before).order_by(col(BatchRow.created_at)).limit(at_most)
    deaf = select(BatchRow).where(col(BatchRow.status).in_(_GOES_ON), col(BatchRow.cancel_asked_at) < before)
    deaf = deaf.where(BatchRow.projection > 0).limit(at_most)
    return [*session.exec(begun).all(), *session.exec(deaf).all()]


def record(session: Session, b: Batch) -> bool:
    """False when a newer projection is there already: none is newer than the end."""
    row = session.get(BatchRow, b.batch_id, with_for_update=True)
    if row is None or row.ended or row.projection >= b.projection:
        return False
    row.status, row.durable, row.projection = str(b.status), b.model_dump(mode="json"), b.projection
    row.model = b.checked.model if b.checked is not None else ""
    row.ended_at = b.ended_at
    session.add(row)
    return True


# -- lines -----------------------------------------------------------------------------------------------------


def write_plan(
    session: Session, batch_id: str, windows: Sequence[BatchWindowRow], mistakes: Sequence[dict[str, Any]]
) -> None:
    """Replaces an earlier one: the input is the same, and so is what is found in it."""
    session.execute(delete(BatchWindowRow).where(col(BatchWindowRow.batch_id) == batch_id))
    for window in windows:
        session.add(BatchWindowRow(**window.model_dump()))
    row = session.get_one(BatchRow, batch_id)
    row.mistakes = list(mistakes)
    session.add(row)


def windows(session: Session, batch_id: str) -> list[BatchWindowRow]:
    query = select(BatchWindowRow).where(BatchWindowRow.batch_id == batch_id)
    return list(session.exec(query.order_by(col(BatchWindowRow.number))).all())


def answered(session: Session, batch_id: str, first: int, lines: int) -> dict[int, bool]:
    """Line → whether it went well, of those that have their answer."""
    query = select(BatchResultRow.line, BatchResultRow.ok).where(BatchResultRow.batch_id == batch_id)
    query = query.where(col(BatchResultRow.line).between(first, first + lines - 1))
    return dict(session.exec(query).all())


def write_results(session: Session, batch_id: str, results: Sequence[Result]) -> bool:
    """Insert those that are not there yet. False, and nothing happens: no answer is taken any more."""
    row = session.get(BatchRow, batch_id, with_for_update={"read": True})
    if row is None or row.sealed:
        return False
    _insert_missing(session, batch_id, results)
    return True


def seal(session: Session, batch_id: str) -> None:
    """From now on no answer is taken. Twice is once."""
    row = session.get(BatchRow, batch_id, with_for_update=True)
    if row is not None and not row.sealed:
        row.sealed = True
        session.add(row)


def fill(session: Session, batch_id: str, results: Sequence[Result]) -> None:
    """What a sealed batch says of lines without an answer."""
    _insert_missing(session, batch_id, results)


def results(session: Session, batch_id: str, *, ok: bool, after: int, at_most: int) -> list[Result]:
    """In the order of their lines."""
    row = BatchResultRow
    query = select(row.line, row.ok, row.text).where(row.batch_id == batch_id, col(row.ok).is_(ok), row.line > after)
    return [Result(*found) for found in session.exec(query.order_by(col(row.line)).limit(at_most)).all()]


def counts(session: Session, batch_id: str) -> Counts:
    query = select(BatchResultRow.ok, func.count()).where(BatchResultRow.batch_id == batch_id)
    found = dict(session.exec(query.group_by(col(BatchResultRow.ok))).all())
    return Counts(found.get(True, 0), found.get(False, 0))


def forget_lines(session: Session, batch_id: str) -> bool:
    """Delete some of what its files say now. False: there is nothing left."""
    lines = select(BatchResultRow.line).where(BatchResultRow.batch_id == batch_id).limit(_DELETED_AT_ONCE)
    some = list(session.exec(lines).all())
    if not some:
        session.execute(delete(BatchWindowRow).where(col(BatchWindowRow.batch_id) == batch_id))
        return False
    session.execute(
        delete(BatchResultRow).where(col(BatchResultRow.batch_id) == batch_id, col(BatchResultRow.line).in_(some))
    )
    return True


def _insert_missing(session: Session, batch_id: str, some: Sequence[Result]) -> None:
    kind = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    insert = kind(BatchResultRow).on_conflict_do_nothing(index_elements=["batch_id", "line"])
    for part in _parts(some):
        values = [{"batch_id": batch_id, "line": r.line, "ok": r.ok, "text": r.text} for r in part]
        session.execute(insert.values(values))


def _parts(some: Sequence[Result], size: int = 500) -> Iterator[Sequence[Result]]:
    for start in range(0, len(some), size):
        yield some[start : start + size]
