"""From a batch's input file to its windows, and from its answers to its output and error files."""

import hashlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial

from sqlmodel import Session

from fleet.batch_lines import Check, Mistake, custom_ids_of, error_line
from fleet.batches import MOST_LINE_BYTES
from fleet.db import batches, stored_files
from fleet.db.batches import BatchRow, BatchWindowRow, Result
from fleet.db.session import Database
from fleet.db.stored_files import CHUNK_BYTES

Beat = Callable[[], None]
OUTPUT_PURPOSE = "batch_output"
_RESULTS_AT_ONCE = 100


async def check_input(database: Database, row: BatchRow, beat: Beat) -> Check:
    """Read it all, in pieces, and keep what was found."""
    check = Check(row.endpoint)
    rest, number = b"", 0
    while not check.too_wrong:
        read = partial(stored_files.read_chunk, file_id=row.input_file_id, number=number)
        chunk = await database.aread(read)
        if chunk is None:
            break
        rest = _feed(check, rest + chunk)
        if len(rest) > MOST_LINE_BYTES + 2:
            check.too_long()
            rest = b""
            break
        number += 1
        beat()
    if rest:
        check.line(rest)
    check.end()
    file = await database.aread(lambda s: s.get(stored_files.StoredFileRow, row.input_file_id))
    if file is None:
        check.mistakes = [Mistake("input_file_gone", "the input file was deleted")]
    await database.awrite(lambda s: batches.write_plan(s, row.id, _rows(row.id, check), _told(check)))
    return check


def _feed(check: Check, data: bytes) -> bytes:
    """Returns what comes after the last end of a line."""
    *lines, rest = data.split(b"\n")
    for line in lines:
        check.line(line + b"\n")
    return rest


def _rows(batch_id: str, check: Check) -> list[BatchWindowRow]:
    return [
        BatchWindowRow(
            batch_id=batch_id,
            number=w.number,
            first_line=w.first_line,
            lines=w.lines,
            offset=w.offset,
            length=w.length,
        )
        for w in check.windows
    ]


def _told(check: Check) -> list[dict[str, object]]:
    return [m.as_json() for m in check.mistakes]


async def fill(database: Database, row: BatchRow, code: str, message: str, beat: Beat) -> None:
    """Lines without an answer get one that says why. The batch must be sealed."""
    for window in await database.aread(lambda s: batches.windows(s, row.id)):
        await database.awrite(partial(_fill, row=row, window=window, code=code, message=message))
        beat()


def _fill(session: Session, row: BatchRow, window: BatchWindowRow, code: str, message: str) -> None:
    known = batches.answered(session, row.id, window.first_line, window.lines)
    if len(known) >= window.lines:
        return
    data = stored_files.read_range(session, row.input_file_id, window.offset, window.length)
    left = custom_ids_of(data, window.first_line, set(known)) if data is not None else []
    lines = [Result(n, False, error_line(row.id, n, name, code, message)) for n, name in left]
    if lines:
        batches.fill(session, row.id, lines)


async def write_file(database: Database, row: BatchRow, *, ok: bool, at: datetime, beat: Beat) -> str:
    """Id of the file with these answers, in the order of their lines; empty where there are none. Twice is once."""
    file_id = file_id_of(row.id, ok=ok)
    first = await database.aread(lambda s: batches.results(s, row.id, ok=ok, after=0, at_most=1))
    known = await database.aread(lambda s: stored_files.find(s, file_id, None, at))
    if known is not None or not first:
        return file_id if known is not None else ""
    name = f"{row.id}_{'output' if ok else 'error'}.jsonl"
    await database.awrite(lambda s: stored_files.begin(s, file_id, row.key_id, purpose=OUTPUT_PURPOSE, filename=name))
    size = await _copy(database, row.id, file_id, ok=ok, beat=beat)
    kept = timedelta(seconds=row.output_expires_s) if row.output_expires_s is not None else None
    await database.awrite(
        lambda s: stored_files.finish(
            s,
            file_id,
            size=size,
            purpose=OUTPUT_PURPOSE,
            filename=name,
            expires_at=at + kept if kept is not None else None,
        )
    )
    return file_id


async def _copy(database: Database, batch_id: str, file_id: str, *, ok: bool, beat: Beat) -> int:
    """Bytes written. What another one that did the same has written is the same."""
    buffer, number, after, size = bytearray(), 0, 0, 0
    while True:
        read = partial(batches.results, batch_id=batch_id, ok=ok, after=after, at_most=_RESULTS_AT_ONCE)
        found = await database.aread(read)
        for result in found:
            buffer += result.text + b"\n"
            after = result.line
        for piece in _full(buffer, last=not found):
            write = partial(stored_files.write_chunk, file_id=file_id, number=number, data=piece)
            await database.awrite(write)
            number, size = number + 1, size + len(piece)
        beat()
        if not found:
            return size


def _full(buffer: bytearray, *, last: bool) -> Iterator[bytes]:
    """Takes whole chunks off its beginning, and with ``last`` what is left."""
    while len(buffer) >= CHUNK_BYTES or (last and buffer):
        yield bytes(buffer[:CHUNK_BYTES])
        del buffer[:CHUNK_BYTES]


def file_id_of(batch_id: str, *, ok: bool) -> str:
    """Always the same, so that a file that was begun is gone on with."""
    kind = "output" if ok else "error"
    return f"file-{hashlib.sha256(f'{batch_id}/{kind}'.encode()).hexdigest()[:24]}"
