"""Files that clients keep here, in pieces: gateways share nothing but the database.

A file belongs to the key that made it; nobody else learns that it exists. It is there once it is ``ready``.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, Column, Index, LargeBinary, delete, func
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import Insert
from sqlmodel import Field, Session, SQLModel, col, select

from fleet.db.tables import UtcDateTime, now

CHUNK_BYTES = 1 << 20
UNFINISHED_FOR = timedelta(hours=6)
"""An upload that has not come to its end within this was given up."""


class StoredFileRow(SQLModel, table=True):
    __tablename__ = "stored_file"
    __table_args__ = (Index("stored_file_by_key", "key_id", "created_at"), Index("stored_file_by_expiry", "expires_at"))

    id: str = Field(primary_key=True)
    key_id: str
    purpose: str = ""
    filename: str = ""
    bytes: int = Field(default=0, sa_type=BigInteger)
    ready: bool = False
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    """None: kept until it is deleted. While not ready: when it counts as given up."""


class StoredChunkRow(SQLModel, table=True):
    """``CHUNK_BYTES`` of a file; the last one may be shorter."""

    __tablename__ = "stored_chunk"

    file_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


def begin(session: Session, file_id: str, key_id: str, *, purpose: str = "", filename: str = "") -> None:
    """An empty one that nobody sees yet. Begun again, nothing changes."""
    row = StoredFileRow(id=file_id, key_id=key_id, purpose=purpose, filename=filename)
    row.expires_at = row.created_at + UNFINISHED_FOR
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(insert(StoredFileRow).values(**row.model_dump()).on_conflict_do_nothing())


def write_chunk(session: Session, file_id: str, number: int, data: bytes) -> bool:
    """Replaces what was written as the same number. False, and nothing happens: it is ready, or gone."""
    row = session.get(StoredFileRow, file_id, with_for_update=True)
    if row is None or row.ready:
        return False
    insert = _insert(session)
    session.execute(
        insert.on_conflict_do_update(index_elements=["file_id", "number"], set_={"data": insert.excluded.data}).values(
            file_id=file_id, number=number, data=data
        )
    )
    return True


def finish(
    session: Session, file_id: str, *, size: int, purpose: str, filename: str, expires_at: datetime | None
) -> StoredFileRow | None:
    """From now on it can be read. None: it was given up meanwhile. Finished again, nothing changes."""
    row = session.get(StoredFileRow, file_id, with_for_update=True)
    if row is None or row.ready:
        return _apart(session, row)
    row.bytes, row.purpose, row.filename = size, purpose, filename
    row.expires_at, row.ready = expires_at, True
    session.add(row)
    session.flush()
    return _apart(session, row)


def find(session: Session, file_id: str, key_id: str | None, at: datetime) -> StoredFileRow | None:
    """``key_id`` None: whosever it is."""
    row = session.get(StoredFileRow, file_id)
    if row is None or not row.ready or (key_id is not None and row.key_id != key_id):
        return None
    return _apart(session, row) if row.expires_at is None or row.expires_at > at else None


def page(
    session: Session,
    key_id: str,
    at: datetime,
    *,
    after: StoredFileRow | None,
    limit: int,
    ascending: bool,
    purpose: str | None,
) -> Sequence[StoredFileRow]:
    """Up to ``limit`` of them by age, newest first unless ``ascending``."""
    row = StoredFileRow
    query = select(row).where(row.key_id == key_id, col(row.ready).is_(True))
    query = query.where(col(row.expires_at).is_(None) | (col(row.expires_at) > at))
    if purpose is not None:
        query = query.where(row.purpose == purpose)
    when, which = col(row.created_at), col(row.id)
    if after is not None:
        same = when == after.created_at
        older = (when > after.created_at) | (same & (which > after.id))
        newer = (when < after.created_at) | (same & (which < after.id))
        query = query.where(older if ascending else newer)
    order = (when.asc(), which.asc()) if ascending else (when.desc(), which.desc())
    return session.exec(query.order_by(*order).limit(limit)).all()


def bytes_of(session: Session, key_id: str) -> int:
    """Of all files of a key."""
    total = session.exec(select(func.sum(StoredFileRow.bytes)).where(StoredFileRow.key_id == key_id)).one()
    return int(total or 0)


def read_chunk(session: Session, file_id: str, number: int) -> bytes | None:
    """None: there is no such chunk, or the file is gone."""
    return session.exec(
        select(StoredChunkRow.data).where(StoredChunkRow.file_id == file_id, StoredChunkRow.number == number)
    ).first()


def read_range(session: Session, file_id: str, offset: int, length: int) -> bytes | None:
    """None: the file is gone, or shorter."""
    first, last = offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES
    query = select(StoredChunkRow.data).where(
        StoredChunkRow.file_id == file_id, col(StoredChunkRow.number).between(first, last)
    )
    data = b"".join(session.exec(query.order_by(col(StoredChunkRow.number))).all())
    start = offset - first * CHUNK_BYTES
    found = data[start : start + length]
    return found if len(found) == length else None


def remove(session: Session, file_id: str) -> None:
    session.execute(delete(StoredChunkRow).where(col(StoredChunkRow.file_id) == file_id))
    session.execute(delete(StoredFileRow).where(col(StoredFileRow.id) == file_id))


def expired(session: Session, at: datetime, at_most: int) -> Sequence[str]:
    """Ids of files whose time is over, and of uploads that were given up."""
    query = select(StoredFileRow.id).where(col(StoredFileRow.expires_at) <= at)
    return session.exec(query.order_by(col(StoredFileRow.expires_at)).limit(at_most)).all()


def pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def _apart(session: Session, row: StoredFileRow | None) -> StoredFileRow | None:
    """Readable after the transaction."""
    if row is not None:
        session.refresh(row)
        session.expunge(row)
    return row


def _insert(session: Session) -> Insert:
    kind = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    return kind(StoredChunkRow)  # type: ignore[return-value]
