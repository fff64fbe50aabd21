"""Files for what requests used while the database does not answer."""

import fcntl
import logging
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

import orjson

from fleet.usage import Usage, UsageRecord

_log = logging.getLogger(__name__)

Write = Callable[[Sequence[UsageRecord]], None]
"""Into the database; raises when it does not answer."""

_AT_ONCE = 2000
_FLAGS = os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC


class UsageSpool:
    """The file of one gateway process, ``<folder>/<gateway>.jsonl``, and those that killed ones left behind.

    Blocks: call it from threads. A file belongs to whoever holds its lock, which goes with the process.
    """

    def __init__(self, folder: Path, gateway: str, *, most_bytes: int = 1 << 30) -> None:
        """``most_bytes``: what comes beyond is lost, rather than that the disk fills."""
        self._folder = folder
        self._path = folder / f"{gateway}.jsonl"
        self._most_bytes = most_bytes
        self._guard = Lock()
        self._file: int | None = None

    def append(self, records: Sequence[UsageRecord]) -> bool:
        """Whether they are on disk: not when there is no room for more. Raises ``OSError``."""
        data = b"".join(orjson.dumps(record) + b"\n" for record in records)
        with self._guard:
            file = self._open()
            size = os.fstat(file).st_size
            if size + len(data) > self._most_bytes:
                return False
            try:
                _write_all(file, data)
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)  # they will be written again, behind what is whole
                raise
            return True

    def replay(self, write: Write) -> None:
        """Write what is in our file, and in those of processes that are gone. What ``write`` raises goes through, and
        the file stays; written again, what was written already changes nothing."""
        with self._guard:
            if self._file is not None:
                _replay(self._path, write)
                self._path.unlink()
                os.close(self._file)
                self._file = None
        for path in sorted(self._folder.glob("*.jsonl")):
            _adopt(path, write)

    def close(self) -> None:
        """Give up the lock; the file, if there is one, is for the next process."""
        with self._guard:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _open(self) -> int:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            while not _is_at(self._path, file := os.open(self._path, _FLAGS, 0o600)):
                os.close(file)  # others took it for one that was left behind, before it was locked
            self._file = file
        return self._file


def _is_at(path: Path, file: int) -> bool:
    """Lock it; whether it is still the one of that name."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        return path.stat().st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _adopt(path: Path, write: Write) -> None:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _replay(path, write)
            path.unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        return  # its process lives, or another one is at it, or has been


def _replay(path: Path, write: Write) -> None:
    batch: list[UsageRecord] = []
    with path.open("rb") as file:
        for line in file:
            if (record := _record(line)) is None:
                _log.warning("%s: a line is not whole, its request is not counted", path)
                continue
            batch.append(record)
            if len(batch) >= _AT_ONCE:
                write(batch)
                batch = []
    if batch:
        write(batch)


def _record(line: bytes) -> UsageRecord | None:
    try:
        fields: dict[str, Any] = orjson.loads(line)
        usage = Usage(**fields.pop("usage"))
        return UsageRecord(at=datetime.fromisoformat(fields.pop("at")), usage=usage, **fields)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
