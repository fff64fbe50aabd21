"""What engines said of their memory when they started, and where they did not fit: better than any prediction."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete
from sqlmodel import Session, select

from fleet.db.alone import alone_on
from fleet.db.tables import DidNotFitRow, MeasuredSizingRow
from fleet.inventory import EngineRef
from fleet.sizing.known import DidNotFit, Known, MeasuredSizing, SizingKey
from fleet.sizing.measured import Measured

REMEMBERED = 5000
"""Of each kind; of more the oldest are forgotten."""

Row = MeasuredSizingRow | DidNotFitRow


def note_measured(session: Session, key: SizingKey, measured: Measured, by: EngineRef, at: datetime) -> None:
    """In place of what was measured under ``key`` before. Noting it again by the same engine changes nothing, nor does
    one that said nothing."""
    if not measured:
        return
    known = _latest(session, MeasuredSizingRow, key)
    if not _is_of(known, by):
        told = measured.model_dump(mode="json", exclude_none=True)
        _write(session, MeasuredSizingRow(**_columns(key, by), measured=told, at=at), new=known is None)


def note_did_not_fit(session: Session, key: SizingKey, booked_bytes: int, by: EngineRef, at: datetime) -> None:
    """An engine ran out of memory when it started, with ``booked_bytes`` on each card. The most that was not enough is
    kept. Noting it again by the same engine changes nothing."""
    known = _latest(session, DidNotFitRow, key)
    if not _is_of(known, by):
        most = max(booked_bytes, known.booked_bytes if known is not None else 0)
        _write(session, DidNotFitRow(**_columns(key, by), booked_bytes=most, at=at), new=known is None)


def known(session: Session, fingerprint: str) -> dict[tuple[str, str], Known]:
    """Of one model, by engine and version; those that are not among them have said nothing yet."""
    measured: dict[tuple[str, str], list[MeasuredSizing]] = defaultdict(list)
    did_not_fit: dict[tuple[str, str], list[DidNotFit]] = defaultdict(list)
    for row in _of_model(session, MeasuredSizingRow, fingerprint):
        found = MeasuredSizing(_key_of(row), Measured.model_validate(row.measured), row.at, row.instance_id)
        measured[row.engine, row.engine_version].append(found)
    for row in _of_model(session, DidNotFitRow, fingerprint):
        failed = DidNotFit(_key_of(row), row.booked_bytes, row.at, row.instance_id)
        did_not_fit[row.engine, row.engine_version].append(failed)
    return {name: Known(tuple(measured[name]), tuple(did_not_fit[name])) for name in {*measured, *did_not_fit}}


def _latest(session: Session, table: type[Any], key: SizingKey) -> Any:
    """The row under ``key``, which nobody else writes until the transaction ends."""
    alone_on(session, f"{table.__tablename__} {key.model_dump_json()}")
    return session.get(table, key.model_dump(), populate_existing=True)


def _is_of(row: Row | None, by: EngineRef) -> bool:
    return row is not None and (row.instance_id, row.fence) == (by.instance_id, by.fence)


def _columns(key: SizingKey, by: EngineRef) -> dict[str, Any]:
    return key.model_dump() | by.model_dump(include={"instance_id", "fence"})


def _write(session: Session, row: Row, *, new: bool) -> None:
    session.merge(row)
    session.flush()
    if new:
        _forget_oldest(session, type(row))


def _forget_oldest(session: Session, table: type[Any]) -> None:
    newest = select(table.at).order_by(table.at.desc()).offset(REMEMBERED - 1).limit(1)
    oldest_kept = session.exec(newest).first()
    if oldest_kept is not None:
        session.execute(delete(table).where(table.at < oldest_kept))


def _key_of(row: Row) -> SizingKey:
    return SizingKey.model_validate(row.model_dump(include=set(SizingKey.model_fields)))


def _of_model(session: Session, table: type[Any], fingerprint: str) -> Sequence[Any]:
    return session.exec(select(table).where(table.fingerprint == fingerprint).order_by(table.at.desc())).all()
