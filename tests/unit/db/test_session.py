"""Transactions are functions: they commit whole, roll back whole, and run again when they lost a race."""

import asyncio
import sqlite3
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import psycopg.errors
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import Session

from fleet.db import registry
from fleet.db.session import Database
from fleet.db.tables import JoinTokenRow, RegistryRow


class Oops(Exception):
    pass


def test_write_commits_and_answers_with_the_result(database: Database) -> None:
    def bump(session: Session) -> int:
        registry.bump(session)
        return registry.version(session)

    assert database.write(bump) == 1
    assert database.read(registry.version) == 1


def test_failed_transaction_leaves_nothing_and_runs_once(database: Database) -> None:
    runs: list[int] = []

    def fails(session: Session) -> None:
        runs.append(1)
        registry.bump(session)
        raise Oops

    with pytest.raises(Oops):
        database.write(fails)
    assert runs == [1]
    assert database.read(registry.version) == 0


def test_nested_transaction_can_be_undone_alone(database: Database) -> None:
    def outer(session: Session) -> None:
        registry.bump(session)
        savepoint = session.begin_nested()
        registry.bump(session)
        savepoint.rollback()
        with session.begin_nested():
            registry.bump(session)

    database.write(outer)
    assert database.read(registry.version) == 2


def test_reading_does_not_keep_what_it_changed(database: Database) -> None:
    database.read(registry.bump)
    assert database.read(registry.version) == 0


def test_mistake_in_the_data_is_not_tried_again(database: Database) -> None:
    runs: list[int] = []

    def second_row_of_one_key(session: Session) -> None:
        runs.append(1)
        session.add(RegistryRow(id=1))

    with pytest.raises(IntegrityError):
        database.write(second_row_of_one_key)
    assert runs == [1]


@pytest.mark.parametrize(
    "cause",
    [
        sqlite3.OperationalError("database is locked"),
        psycopg.errors.SerializationFailure(),
        psycopg.errors.DeadlockDetected(),
    ],
    ids=["locked", "serialization", "deadlock"],
)
def test_lost_race_runs_the_transaction_again_from_the_start(database: Database, cause: Exception) -> None:
    runs: list[int] = []

    def loses_twice(session: Session) -> int:
        runs.append(1)
        registry.bump(session)
        if len(runs) < 3:
            raise OperationalError("UPDATE", {}, cause)
        return registry.version(session)

    assert database.write(loses_twice) == 1
    assert len(runs) == 3


def test_race_that_is_always_lost_ends_with_the_error(database: Database) -> None:
    runs: list[int] = []

    def always_loses(session: Session) -> None:
        runs.append(1)
        raise OperationalError("UPDATE", {}, psycopg.errors.DeadlockDetected())

    with pytest.raises(OperationalError):
        database.write(always_loses)
    assert 3 <= len(runs) <= 20


def test_writers_that_read_first_do_not_lose_updates(database: Database) -> None:
    def read_then_write(session: Session) -> None:
        row = session.get_one(RegistryRow, 1, with_for_update=True)
        row.version += 1
        session.add(row)

    def many() -> None:
        for _ in range(20):
            database.write(read_then_write)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert database.read(registry.version) == 80


async def test_writing_in_a_thread_leaves_the_event_loop_free(database: Database) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def waits(session: Session) -> int:
        registry.bump(session)
        entered.set()
        assert go_on.wait(30)
        return registry.version(session)

    writing = asyncio.create_task(database.awrite(waits))
    while not entered.is_set():
        await asyncio.sleep(0)
    go_on.set()
    assert await writing == 1
    assert await database.aread(registry.version) == 1


def test_times_come_back_in_utc(database: Database) -> None:
    noon = datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    row = JoinTokenRow(id="t", token_hash="h", expires_at=noon)
    database.write(lambda s: s.add(row))
    found = database.read(lambda s: s.get_one(JoinTokenRow, "t"))
    assert found.expires_at == noon
    assert found.expires_at.tzinfo == UTC
    assert found.created_at.tzinfo == UTC


def test_every_sqlite_connection_has_its_settings(sqlite: Database) -> None:
    with sqlite.engine.connect() as first, sqlite.engine.connect() as second:
        for connection in (first, second):
            pragmas = {
                name: connection.execute(text(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
            assert pragmas == {
                "journal_mode": "wal",
                "synchronous": 1,
                "foreign_keys": 1,
                "busy_timeout": 10_000,
            }


def test_sqlite_write_takes_the_write_lock_before_it_reads(sqlite: Database) -> None:
    def nobody_else_can_write(session: Session) -> None:
        registry.version(session)
        other = sqlite3.connect(sqlite.url.database or "", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()

    sqlite.write(nobody_else_can_write)


def test_sqlite_readers_do_not_wait_for_a_writer(sqlite: Database) -> None:
    def while_writing(session: Session) -> int:
        registry.bump(session)
        return sqlite.read(registry.version)

    assert sqlite.write(while_writing) == 0
    assert sqlite.read(registry.version) == 1


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_all_spellings_of_a_postgresql_url_use_the_same_driver(scheme: str) -> None:
    database = Database(f"{scheme}://user:secret@db.example/holdfast")
    assert database.url.drivername == "postgresql+psycopg"
    assert not database.is_sqlite


@pytest.fixture
def sqlite(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'holdfast.db'}")

    def make(session: Session) -> None:
        connection = session.connection()
        RegistryRow.metadata.tables["registry"].create(connection)
        session.add(RegistryRow(id=1))

    database.write(make)
    return database
