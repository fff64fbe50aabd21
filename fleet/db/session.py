"""The database: transactions as plain functions of a session.

A transaction is a function, so nothing can be awaited (no network, no Temporal) while one is open, and it can be
run again when the database says that it lost a race.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool
from sqlmodel import Session, create_engine

T = TypeVar("T")

_ATTEMPTS = 8
_PG_RACES = {"40001", "40P01"}
"""serialization_failure and deadlock_detected."""


@dataclass(frozen=True)
class Json:
    """Text that is JSON already, for a JSON column: written as it is."""

    text: str


class Database:
    """One per process. ``read`` and ``write`` block; ``aread`` and ``awrite`` run them in a thread."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.url = parsed
        self.engine: Engine = _sqlite(parsed) if self.is_sqlite else _postgresql(parsed)

    def read(self, query: Callable[[Session], T]) -> T:
        with Session(self.engine) as session:
            return query(session)

    def write(self, transaction: Callable[[Session], T]) -> T:
        """Run ``transaction`` and commit. It must not keep state between calls: a lost race runs it again."""
        for attempt in range(_ATTEMPTS):
            try:
                with Session(self.engine) as session:
                    if self.is_sqlite:
                        session.connection(execution_options={"holdfast_begin": "IMMEDIATE"})
                    result = transaction(session)
                    session.commit()
                    return result
            except DBAPIError as error:
                if attempt == _ATTEMPTS - 1 or not _lost_a_race(error):
                    raise
                time.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311 (jitter, not a secret)
        raise AssertionError("unreachable")

    async def aread(self, query: Callable[[Session], T]) -> T:
        return await asyncio.to_thread(self.read, query)

    async def awrite(self, transaction: Callable[[Session], T]) -> T:
        return await asyncio.to_thread(self.write, transaction)

    def close(self) -> None:
        self.engine.dispose()


def _lost_a_race(error: DBAPIError) -> bool:
    if isinstance(error, OperationalError) and "database is locked" in str(error.orig):
        return True
    return getattr(error.orig, "sqlstate", None) in _PG_RACES


def _dump(value: Any) -> str:
    return value.text if isinstance(value, Json) else json.dumps(value)


def _sqlite(url: Any) -> Engine:
    options = {"check_same_thread": False, "timeout": 10}
    engine = create_engine(url, poolclass=QueuePool, connect_args=options, json_serializer=_dump)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # sqlite3's own transaction handling would begin too late to read and write one snapshot.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=10000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        mode = connection.get_execution_options().get("holdfast_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def _postgresql(url: Any) -> Engine:
    return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 5}, json_serializer=_dump)
