"""Responses that clients may come back to: each with the items of its own request and a link to the one before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Insert, Select, Text, delete, literal, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, Session, SQLModel, col, select

from fleet.db.tables import UtcDateTime

MOST_LINKS = 1000
"""Responses that one conversation is made of."""

_LENGTHENED = 30
"""A life is made longer when so much of it, one part in 30, is over."""


class StoredResponseRow(SQLModel, table=True):
    """Written once by the gateway that gave the answer; never changed but for ``expires_at``."""

    __tablename__ = "stored_response"

    id: str = Field(primary_key=True)
    key_id: str
    """Who it belongs to: others do not find it."""
    previous_id: str | None = None
    input: str = Field(sa_column=Column(Text, nullable=False))
    """JSON: the items of its own request, without those of the responses before it."""
    response: str = Field(sa_column=Column(Text, nullable=False))
    """JSON, as the client got it."""
    size: int
    """Characters of both."""
    created_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
    """Later for those that a conversation goes on from."""


@dataclass(frozen=True, slots=True)
class Link:
    """One response of a conversation, without its texts."""

    id: str
    previous_id: str | None
    size: int


def write(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Those whose id is taken are left out. The responses that the others go on from live as long as these."""
    if not rows:
        return
    session.execute(_insert(session), [dict(row) for row in rows])
    for row in rows:
        if row["previous_id"] is not None:
            _keep(session, row["key_id"], row["previous_id"], row["created_at"], row["expires_at"])


def links(session: Session, key_id: str, response_id: str, at: datetime) -> list[Link]:
    """The conversation that ends with this response, newest first; empty: there is none of this key.

    It ends early, with a ``previous_id``, where a response was deleted or has expired, or at ``MOST_LINKS``.
    """
    rows = session.execute(_chain(key_id, response_id, at))
    return [Link(id=row.id, previous_id=row.previous_id, size=row.size) for row in rows]


def texts(session: Session, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(input, response), both JSON, by id."""
    rows = select(StoredResponseRow.id, StoredResponseRow.input, StoredResponseRow.response)
    return {row[0]: (row[1], row[2]) for row in session.exec(rows.where(col(StoredResponseRow.id).in_(ids)))}


def get(session: Session, key_id: str, response_id: str, at: datetime) -> StoredResponseRow | None:
    row = session.get(StoredResponseRow, response_id)
    return row if row is not None and row.key_id == key_id and row.expires_at > at else None


def remove(session: Session, key_id: str, response_id: str, at: datetime) -> bool:
    """Whether it was there."""
    row = get(session, key_id, response_id, at)
    if row is not None:
        session.delete(row)
    return row is not None


def prune(session: Session, at: datetime) -> None:
    """Delete what has expired."""
    session.execute(delete(StoredResponseRow).where(col(StoredResponseRow.expires_at) <= at))


def _chain(key_id: str, response_id: str, at: datetime) -> Select[Any]:
    row = StoredResponseRow
    mine = (col(row.key_id) == key_id) & (col(row.expires_at) > at)
    last = select(row.id, row.previous_id, row.size, literal(1).label("depth")).where(mine, row.id == response_id)
    chain = last.cte("chain", recursive=True)
    before = select(row.id, row.previous_id, row.size, (chain.c.depth + 1).label("depth")).where(
        mine, row.id == chain.c.previous_id, chain.c.depth < MOST_LINKS
    )
    chain = chain.union_all(before)
    return select(chain).order_by(chain.c.depth)  # type: ignore[call-overload,no-any-return]


def _keep(session: Session, key_id: str, response_id: str, at: datetime, until: datetime) -> None:
    ids = [link.id for link in links(session, key_id, response_id, at)]
    rows = update(StoredResponseRow).where(col(StoredResponseRow.id).in_(ids))
    # To set it writes the row's long texts once more, on SQLite: not with every turn of a conversation.
    due = until - (until - at) / _LENGTHENED
    session.execute(rows.where(col(StoredResponseRow.expires_at) < due).values(expires_at=until))


def _insert(session: Session) -> Insert:
    dialect = session.get_bind().dialect.name
    insert = sqlite.insert(StoredResponseRow) if dialect == "sqlite" else postgresql.insert(StoredResponseRow)
    return insert.on_conflict_do_nothing()
