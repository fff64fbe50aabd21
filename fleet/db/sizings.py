"""What engines said of their memory when they started, and where they did not fit: better than any prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete
from sqlmodel import Session, select

from fleet.db.alone import alone_on
from fleet.db.tables import DidNotFitRow, MeasuredSizingRow
from fleet.inventory import EngineRef
from fleet.model import Record
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import GpuClass

REMEMBERED = 5000
"""Of each kind; of more the oldest are forgotten."""

Row = MeasuredSizingRow | DidNotFitRow


class SizingKey(Record):
    """All that an engine's memory depends on, as far as it is known."""

    fingerprint: str
    """``ModelFacts.fingerprint``"""
    engine: str
    engine_version: str
    gpu_class: str
    """``class_text``"""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    batched_tokens: int
    sequences: int
    kv_dtype: str = "auto"


@dataclass(frozen=True)
class MeasuredSizing:
    key: SizingKey
    measured: Measured
    at: datetime
    instance_id: str


@dataclass(frozen=True)
class DidNotFit:
    key: SizingKey
    booked_bytes: int
    """Of each card (of RAM, on CPUs): the most with which its engine ran out of memory at its start."""
    at: datetime
    instance_id: str


@dataclass(frozen=True)
class Known:
    """Of one model with one version of one engine; latest first."""

    measured: tuple[MeasuredSizing, ...] = ()
    did_not_fit: tuple[DidNotFit, ...] = ()


def class_text(card: GpuClass) -> str:
    """The same for cards that are the same to sizing."""
    parts = (card.kind.value, card.name, str(card.memory_bytes), card.compute_capability)
    return "/".join((*parts, "unified") if card.unified else parts)


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


def known(session: Session, fingerprint: str, engine: str, version: str) -> Known:
    measured = [
        MeasuredSizing(_key_of(row), Measured.model_validate(row.measured), row.at, row.instance_id)
        for row in _of_model(session, MeasuredSizingRow, fingerprint, engine, version)
    ]
    did_not_fit = [
        DidNotFit(_key_of(row), row.booked_bytes, row.at, row.instance_id)
        for row in _of_model(session, DidNotFitRow, fingerprint, engine, version)
    ]
    return Known(tuple(measured), tuple(did_not_fit))


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


def _of_model(session: Session, table: type[Any], fingerprint: str, engine: str, version: str) -> Sequence[Any]:
    query = select(table).where(
        table.fingerprint == fingerprint, table.engine == engine, table.engine_version == version
    )
    return session.exec(query.order_by(table.at.desc())).all()
