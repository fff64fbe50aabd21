"""What requests used: one row each, and sums over them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson
from sqlalchemy import BigInteger, ColumnElement, Index, TextClause, delete, func, literal, text, tuple_
from sqlalchemy import select as sa_select
from sqlmodel import Field, Session, SQLModel, col

from fleet.db.tables import UtcDateTime
from fleet.usage import UsageRecord

Dimension = Literal["key", "route", "deployment", "operation", "day", "hour"]

_PRUNED_AT_ONCE = 10_000
_DATE_AND_TIME = len("2026-11-30 04:30:00.000000")


class UsageRow(SQLModel, table=True):
    """One request that was sent to an engine or a provider."""

    __tablename__ = "usage"
    __table_args__ = (Index("usage_by_time", "at"), Index("usage_by_key", "key_id", "at"))

    request_id: str = Field(primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime)
    key_id: str
    route: str
    deployment: str
    operation: str
    status: int
    prompt_tokens: int = Field(sa_type=BigInteger)
    cached_tokens: int = Field(sa_type=BigInteger)
    completion_tokens: int = Field(sa_type=BigInteger)
    reasoning_tokens: int = Field(sa_type=BigInteger)
    audio_seconds: float
    images: int
    estimated: bool
    duration_s: float
    ttft_s: float | None = None


_KINDS = {
    "request_id": "text",
    "at": "timestamp",
    "key_id": "text",
    "route": "text",
    "deployment": "text",
    "operation": "text",
    "status": "integer",
    "prompt_tokens": "bigint",
    "cached_tokens": "bigint",
    "completion_tokens": "bigint",
    "reasoning_tokens": "bigint",
    "audio_seconds": "double precision",
    "images": "integer",
    "estimated": "boolean",
    "duration_s": "double precision",
    "ttft_s": "double precision",
}


def _insert(values: Iterable[str], rows: str) -> TextClause:
    """All rows travel as one JSON text, which the database takes apart: a tenth of what binding every value costs."""
    return text(
        f"INSERT INTO usage ({', '.join(_KINDS)}) SELECT {', '.join(values)} FROM {rows}"  # noqa: S608 (names are ours)
        " WHERE true ON CONFLICT (request_id) DO NOTHING"
    )


def _postgresql_value(index: int, kind: str) -> str:
    value = f"CAST(value ->> {index} AS {kind})"
    return f"{value} AT TIME ZONE 'UTC'" if kind == "timestamp" else value


_INSERT_SQLITE = _insert((f"json_extract(value, '$[{index}]')" for index in range(len(_KINDS))), "json_each(:rows)")
_INSERT_POSTGRESQL = _insert(
    (_postgresql_value(index, kind) for index, kind in enumerate(_KINDS.values())),
    "json_array_elements(CAST(:rows AS json))",
)


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Of the requests that have these values in common."""

    group: tuple[str, ...]
    """In the order that was asked for. Days as ``2026-11-30``, hours as ``2026-11-30T04:00Z``."""
    requests: int
    failed: int
    """Answered with 400 or more; those whose client left are among them."""
    estimated: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    audio_seconds: float
    images: int


def write(session: Session, records: Sequence[UsageRecord]) -> None:
    """Writing the same request again changes nothing."""
    if records:
        rows = orjson.dumps([_values(record) for record in records]).decode()
        session.execute(_INSERT_SQLITE if _is_sqlite(session) else _INSERT_POSTGRESQL, {"rows": rows})


def sums(
    session: Session,
    by: Sequence[Dimension],
    *,
    begin: datetime | None = None,
    end: datetime | None = None,
    after: Sequence[str] | None = None,
    limit: int,
    only: Iterable[tuple[Dimension, str]] = (),
) -> list[UsageSum]:
    """In the order of their groups; ``after``: the last group of the page before. ``begin`` is in, ``end`` is not.

    ``only``: requests with that key, route, deployment or operation.
    """
    groups = [_group(session, dimension) for dimension in by]
    query = sa_select(*groups, *_totals())
    if begin is not None:
        query = query.where(col(UsageRow.at) >= begin)
    if end is not None:
        query = query.where(col(UsageRow.at) < end)
    for dimension, value in only:
        query = query.where(_group(session, dimension) == value)
    if after is not None and groups:
        query = query.where(tuple_(*groups) > tuple_(*map(literal, after)))
    if groups:
        query = query.group_by(*groups).order_by(*groups)
    rows = session.execute(query.limit(limit)).all()
    return [UsageSum(tuple(map(str, row[: len(by)])), *_numbers(row[len(by) :])) for row in rows]


def prune(session: Session, before: datetime) -> int:
    """Delete some of the rows older than that; returns how many: when 0, none is left."""
    old = sa_select(col(UsageRow.request_id)).where(col(UsageRow.at) < before).limit(_PRUNED_AT_ONCE)
    return int(session.execute(delete(UsageRow).where(col(UsageRow.request_id).in_(old))).rowcount)  # type: ignore[attr-defined]


def _values(record: UsageRecord) -> tuple[Any, ...]:
    """In the order of ``_KINDS``."""
    usage = record.usage
    return (
        record.request_id,
        record.at.astimezone(UTC).isoformat(" ", "microseconds")[:_DATE_AND_TIME],
        record.key_id,
        record.route,
        record.deployment,
        record.operation,
        record.status,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        usage.reasoning_tokens,
        usage.audio_seconds,
        usage.images,
        usage.estimated,
        record.duration_s,
        record.ttft_s,
    )


def _group(session: Session, dimension: Dimension) -> Any:
    match dimension:
        case "day":
            return _instant(session, "%Y-%m-%d", "YYYY-MM-DD")
        case "hour":
            return _instant(session, "%Y-%m-%dT%H:00Z", 'YYYY-MM-DD"T"HH24":00Z"')
        case "key":
            return col(UsageRow.key_id)
        case _:
            return col(getattr(UsageRow, dimension))


def _instant(session: Session, sqlite_format: str, postgresql_format: str) -> ColumnElement[str]:
    if _is_sqlite(session):
        return func.strftime(literal(sqlite_format, literal_execute=True), UsageRow.at)
    at = func.timezone(literal("UTC", literal_execute=True), UsageRow.at)
    return func.to_char(at, literal(postgresql_format, literal_execute=True))


def _totals() -> list[ColumnElement[Any]]:
    totals: list[ColumnElement[Any]] = [func.count()]
    totals += [func.count().filter(condition) for condition in (col(UsageRow.status) >= 400, col(UsageRow.estimated))]
    summed = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "audio_seconds", "images")
    return totals + [func.coalesce(func.sum(getattr(UsageRow, name)), 0) for name in summed]


def _numbers(totals: Sequence[Any]) -> list[Any]:
    """PostgreSQL sums integers up to decimals."""
    return [float(total) if isinstance(total, float) else int(total) for total in totals]


def _is_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"


def oldest_kept(keep: timedelta) -> datetime:
    return datetime.now(UTC) - keep
