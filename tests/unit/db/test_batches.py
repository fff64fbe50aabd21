"""An answer is written once, nothing is taken after the seal, and files are the same whoever writes them."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import Session, select

from activities.batch_files import file_id_of, fill, write_file
from fleet.batches import Batch, BatchStatus
from fleet.db import batches, stored_files
from fleet.db.batches import BatchRow, BatchWindowRow, Counts, Result
from fleet.db.session import Database
from fleet.db.stored_files import CHUNK_BYTES, StoredChunkRow
from fleet.timings import Timings

NOW = datetime.now(UTC)


@pytest.fixture
def row(database: Database) -> BatchRow:
    made = BatchRow(
        id="b",
        key_id="k",
        endpoint="/v1/embeddings",
        input_file_id="f",
        completion_window="24h",
        expires_at=NOW + timedelta(hours=24),
    )
    database.write(lambda s: s.add(BatchRow(**made.model_dump())))
    return made


def write(database: Database, *results: Result) -> bool:
    return database.write(lambda s: batches.write_results(s, "b", results))


def texts(database: Database, *, ok: bool = True) -> list[bytes]:
    return [r.text for r in database.read(lambda s: batches.results(s, "b", ok=ok, after=0, at_most=99))]


def test_the_first_answer_stays(database: Database, row: BatchRow) -> None:
    assert write(database, Result(2, True, b"first"))
    assert write(database, Result(2, False, b"second"), Result(1, True, b"other"))
    assert texts(database) == [b"other", b"first"]
    assert database.read(lambda s: batches.counts(s, "b")) == Counts(2, 0)
    assert database.read(lambda s: batches.answered(s, "b", 2, 5)) == {2: True}


def test_after_the_seal_no_answer_is_taken(database: Database, row: BatchRow) -> None:
    for _ in range(2):
        database.write(lambda s: batches.seal(s, "b"))
    assert not write(database, Result(1, True, b"late"))
    assert texts(database) == []
    assert not database.write(lambda s: batches.write_results(s, "nobody", [Result(1, True, b"")]))


def test_of_many_who_answer_the_same_lines_at_once_one_wins(database: Database, row: BatchRow) -> None:
    def writer(who: int) -> None:
        for line in range(20):
            write(database, Result(line + 1, True, b"%d" % who))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(writer, range(6)))
    assert len(texts(database)) == 20


def test_an_older_state_never_replaces_a_newer_one_and_the_end_stays(database: Database, row: BatchRow) -> None:
    state = batches.state_of(row, Timings())

    def record(projection: int, status: BatchStatus) -> bool:
        changed = state.with_(projection=projection, status=status)
        return database.write(lambda s: batches.record(s, changed))

    assert record(5, BatchStatus.IN_PROGRESS)
    assert not record(5, BatchStatus.FINALIZING)
    assert record(6, BatchStatus.COMPLETED)
    assert not record(99, BatchStatus.IN_PROGRESS)
    kept = database.read(lambda s: s.get_one(BatchRow, "b"))
    assert (kept.status, Batch.model_validate(kept.durable).projection) == ("completed", 6)
    assert database.read(batches.not_ended) == []


def test_those_who_have_not_heard_are_found(database: Database, row: BatchRow) -> None:
    def overdue(after: timedelta) -> list[str]:
        return [r.id for r in database.read(lambda s: batches.overdue(s, datetime.now(UTC) + after))]

    assert overdue(timedelta(minutes=-1)) == []
    assert overdue(timedelta(minutes=1)) == ["b"]
    state = batches.state_of(row, Timings()).with_(projection=1, status=BatchStatus.IN_PROGRESS)
    database.write(lambda s: batches.record(s, state))
    assert overdue(timedelta(minutes=1)) == []
    database.write(lambda s: batches.ask_to_cancel(s, "b", None))
    assert overdue(timedelta(minutes=1)) == ["b"]
    database.write(lambda s: batches.record(s, state.with_(projection=2, status=BatchStatus.CANCELLING)))
    assert overdue(timedelta(minutes=1)) == []


def nothing() -> None:
    return None


async def test_a_file_has_every_line_in_order_and_twice_is_once(database: Database, row: BatchRow) -> None:
    lines = [Result(n, n % 3 != 0, b"%07d" % n * 3000) for n in range(1, 301)]
    write(database, *lines)
    ids = await asyncio.gather(*(write_file(database, row, ok=True, at=NOW, beat=nothing) for _ in range(3)))
    assert set(ids) == {file_id_of("b", ok=True)}
    file = database.read(lambda s: stored_files.find(s, ids[0], "k", NOW))
    assert file is not None
    expected = b"".join(r.text + b"\n" for r in lines if r.ok)
    assert file.bytes == len(expected) > 4 * CHUNK_BYTES
    assert database.read(lambda s: stored_files.read_range(s, ids[0], 0, file.bytes)) == expected
    while database.write(lambda s: batches.forget_lines(s, "b")):
        pass
    assert await write_file(database, row, ok=True, at=NOW, beat=nothing) == ids[0], "it is there"
    assert await write_file(database, row, ok=False, at=NOW, beat=nothing) == "", "there is nothing for it"
    assert database.read(lambda s: stored_files.read_range(s, ids[0], 0, file.bytes)) == expected


async def test_lines_without_an_answer_get_one_that_says_why(database: Database, row: BatchRow) -> None:
    data = b"".join(b'{"custom_id": "c%d"}\n' % n for n in range(1, 5))

    def keep(session: Session) -> None:
        stored_files.begin(session, "f", "k")
        stored_files.write_chunk(session, "f", 0, data)
        session.add(BatchWindowRow(batch_id="b", number=0, first_line=1, lines=2, offset=0, length=len(data) // 2))
        half = len(data) // 2
        session.add(BatchWindowRow(batch_id="b", number=1, first_line=3, lines=2, offset=half, length=half))

    database.write(keep)
    write(database, Result(1, True, b"one"), Result(2, True, b"two"), Result(4, False, b"four"))
    database.write(lambda s: batches.seal(s, "b"))
    for _ in range(2):
        await fill(database, row, "batch_expired", "late", nothing)
    assert texts(database) == [b"one", b"two"]
    [three, four] = texts(database, ok=False)
    assert b'"custom_id":"c3"' in three
    assert b"batch_expired" in three
    assert four == b"four"


def test_any_range_of_a_file_can_be_read(database: Database) -> None:
    data = bytes(range(256)) * (CHUNK_BYTES // 256) + b"tail" * 1000

    def keep(session: Session) -> None:
        stored_files.begin(session, "f", "k")
        for number, piece in enumerate(stored_files.pieces(data)):
            stored_files.write_chunk(session, "f", number, piece)

    database.write(keep)
    for start, length in ((0, 1), (CHUNK_BYTES - 2, 5), (CHUNK_BYTES, 10), (len(data) - 3, 3), (0, len(data))):
        found = database.read(lambda s, a=start, n=length: stored_files.read_range(s, "f", a, n))  # type: ignore[misc]
        assert found == data[start : start + length]
    assert database.read(lambda s: stored_files.read_range(s, "f", len(data) - 3, 4)) is None
    assert database.read(lambda s: stored_files.read_range(s, "gone", 0, 1)) is None


def test_a_file_that_is_ready_does_not_change_any_more(database: Database) -> None:
    database.write(lambda s: stored_files.begin(s, "f", "k"))
    assert database.write(lambda s: stored_files.write_chunk(s, "f", 0, b"a"))
    assert database.write(lambda s: stored_files.write_chunk(s, "f", 0, b"b"))

    def finish(size: int) -> int:
        made = database.write(
            lambda s: stored_files.finish(s, "f", size=size, purpose="vision", filename="n", expires_at=None)
        )
        assert made is not None
        return made.bytes

    assert (finish(1), finish(2)) == (1, 1)
    assert not database.write(lambda s: stored_files.write_chunk(s, "f", 0, b"c"))
    assert database.read(lambda s: s.exec(select(StoredChunkRow.data)).all()) == [b"b"]


def test_an_upload_that_never_came_to_its_end_is_swept_away(database: Database) -> None:
    database.write(lambda s: stored_files.begin(s, "f", "k"))
    assert database.write(lambda s: batches.sweep_files(s, NOW)) == 0
    late = datetime.now(UTC) + stored_files.UNFINISHED_FOR
    assert database.write(lambda s: batches.sweep_files(s, late)) == 1
    finished = database.write(
        lambda s: stored_files.finish(s, "f", size=0, purpose="vision", filename="n", expires_at=None)
    )
    assert finished is None
