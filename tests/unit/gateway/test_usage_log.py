"""What requests used reaches the database: each exactly once, whatever dies."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, select

from api.gateway.usage_log import UsageLog
from api.gateway.usage_spool import UsageSpool
from fleet.db.session import Database
from fleet.db.usage import UsageRow
from fleet.usage import Usage, UsageRecord

AT = datetime(2026, 11, 30, 4, 30, tzinfo=UTC)


def record(number: int, **changes: Any) -> UsageRecord:
    made = UsageRecord(
        request_id=f"r-{number}",
        at=AT,
        key_id="key-1",
        route="chat",
        deployment="chat",
        operation="chat.completions",
        status=200,
        usage=Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=number, estimated=number % 2 == 1),
        duration_s=1.5,
        ttft_s=0.25,
    )
    return replace(made, **changes)


def ids(database: Database) -> list[str]:
    return sorted(database.read(lambda s: list(s.exec(select(UsageRow.request_id)).all())))


class Moody(Database):
    """Fails when it is told to, before or after what it was given is committed."""

    before = after = 0
    hang: asyncio.Event | None = None

    async def awrite(self, transaction: Callable[[Session], Any]) -> Any:
        if self.hang is not None:
            await self.hang.wait()
        return await super().awrite(transaction)

    def write(self, transaction: Callable[[Session], Any]) -> Any:
        if self.before:
            self.before -= 1
            raise OperationalError("insert", {}, Exception("server closed the connection"))
        result = super().write(transaction)
        if self.after:
            self.after -= 1
            raise OperationalError("commit", {}, Exception("the answer was lost"))
        return result


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "usage-spool"
    folder.mkdir()
    return folder


@pytest.fixture
def moody(database_url: str, database: Database) -> Any:
    opened = Moody(database_url)
    yield opened
    opened.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.01)


async def test_a_record_is_kept_as_it_was_noted(database: Database, spool: Path) -> None:
    log = UsageLog(database, spool)
    log.note(record(1))
    assert await log.flush()
    row = database.read(lambda s: s.exec(select(UsageRow)).one())
    assert (row.request_id, row.at, row.key_id, row.operation) == ("r-1", AT, "key-1", "chat.completions")
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.estimated) == (10, 4, 1, True)
    assert (row.status, row.duration_s, row.ttft_s) == (200, 1.5, 0.25)


async def test_what_is_noted_is_written_soon(database: Database, spool: Path) -> None:
    log = UsageLog(database, spool, interval=0.02)
    task = asyncio.create_task(log.run())
    for number in range(3):
        log.note(record(number))
    await until(lambda: len(ids(database)) == 3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await log.stop()


async def test_many_at_once_do_not_wait_for_the_next_turn(database: Database, spool: Path) -> None:
    log = UsageLog(database, spool, interval=3600, most_waiting=10)
    task = asyncio.create_task(log.run())
    await asyncio.sleep(0)
    for number in range(10):
        log.note(record(number))
    await until(lambda: len(ids(database)) == 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not list(spool.iterdir())


async def test_a_commit_whose_answer_was_lost_counts_once(moody: Moody, spool: Path) -> None:
    log = UsageLog(moody, spool)
    for number in range(5):
        log.note(record(number))
    moody.after = 1
    assert not await log.flush()
    log.note(record(5))
    assert await log.flush()
    assert ids(moody) == [f"r-{n}" for n in range(6)]
    assert log.waiting == 0


async def test_the_same_request_noted_twice_counts_once(database: Database, spool: Path) -> None:
    log = UsageLog(database, spool)
    log.note(record(1))
    log.note(record(1, status=499))
    await log.flush()
    assert database.read(lambda s: s.exec(select(UsageRow.status)).all()) == [200]


async def test_what_memory_cannot_hold_goes_to_disk_and_back(moody: Moody, spool: Path) -> None:
    log = UsageLog(moody, spool, most_waiting=10)
    moody.before = 1
    for number in range(12):
        log.note(record(number))
    assert not await log.flush()
    assert log.waiting == 0
    await until(lambda: [f.stat().st_size > 0 for f in spool.iterdir()] == [True])
    log.note(record(12))
    assert await log.flush()
    assert ids(moody) == sorted(f"r-{n}" for n in range(13))
    assert not list(spool.iterdir())


async def test_while_the_database_hangs_memory_stays_bounded(moody: Moody, spool: Path) -> None:
    log = UsageLog(moody, spool, most_waiting=10)
    moody.hang = asyncio.Event()
    log.note(record(0))
    hanging = asyncio.create_task(log.flush())
    await asyncio.sleep(0)
    for number in range(1, 36):
        log.note(record(number))
        assert log.waiting < 10
    await until(lambda: bool(list(spool.iterdir())))
    moody.hang.set()
    await hanging
    await log.flush()
    assert ids(moody) == sorted(f"r-{n}" for n in range(36))


async def test_stopping_without_a_database_leaves_all_to_the_next(moody: Moody, spool: Path) -> None:
    log = UsageLog(moody, spool)
    log.note(record(1))
    moody.before = 1
    await log.stop()
    after = UsageLog(moody, spool)
    assert await after.flush()
    assert ids(moody) == ["r-1"]
    assert not list(spool.iterdir())


async def test_the_file_of_a_killed_process_is_taken_over(database: Database, spool: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from api.gateway.usage_spool import UsageSpool;"
        "from tests.unit.gateway.test_usage_log import record;"
        "UsageSpool(Path(sys.argv[1]), 'gateway-x').append([record(n) for n in range(3)]);"
        "print('ready', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(spool)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        log = UsageLog(database, spool)
        await log.flush()
        assert ids(database) == []  # it lives: the file is its own
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with (spool / "gateway-x.jsonl").open("ab") as file:
            file.write(b'{"request_id":"r-9","at"')  # it was killed in the middle of a line
        await UsageLog(database, spool).flush()
    finally:
        other.kill()
        other.wait()
    assert ids(database) == ["r-0", "r-1", "r-2"]
    assert not list(spool.iterdir())


def test_a_full_disk_is_not_filled_further(spool: Path) -> None:
    files = UsageSpool(spool, "gateway-1", most_bytes=1000)
    assert files.append([record(1)])
    assert not files.append([record(n) for n in range(10)])
    written: list[str] = []
    files.replay(lambda records: written.extend(r.request_id for r in records))
    assert written == ["r-1"]


def test_a_file_that_cannot_be_written_back_stays(spool: Path) -> None:
    files = UsageSpool(spool, "gateway-1")
    files.append([record(1), record(2)])

    def fail(_records: object) -> None:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        files.replay(fail)
    files.append([record(3)])
    written: list[str] = []
    files.replay(lambda records: written.extend(r.request_id for r in records))
    assert written == ["r-1", "r-2", "r-3"]


def test_a_record_survives_its_file(spool: Path) -> None:
    files = UsageSpool(spool, "gateway-1")
    odd = record(1, route='ü"\n', ttft_s=None, usage=Usage(1, 2, 3, 4, 5.5, 6, True))
    files.append([odd])
    written: list[UsageRecord] = []
    files.replay(written.extend)
    assert written == [odd]
