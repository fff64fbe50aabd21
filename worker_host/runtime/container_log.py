"""Copying what a container says into a file, once and completely, however often whoever copies is killed.

Docker keeps the output with a time for each entry. Beside the log stands how far it is: an anchor in time, how many
entries since then are in the log, and how long the log is. Whoever goes on cuts off what came after that, asks for
everything since the anchor and passes over as many entries. (Times alone do not do: several entries may have the same,
and those of the two outputs may stand in the wrong order.)
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from fleet.model import Record
from worker_host.log_cap import cap

_SAVE_S = 0.5
_CAP_BYTES = 1 << 20
_WINDOW_NS = 10**9
"""Entries that stand in the wrong order are no further apart."""
_NS = 10**9


class Position(Record):
    anchor_ns: int = 0
    count: int = 0
    """Entries in the log with a time not before the anchor."""
    size: int = 0
    """Bytes of the log."""


class LogCopy:
    """Appends entries to ``log``; ``since`` says from when on they are wanted. Waits while somebody else does."""

    def __init__(self, log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file = log.open("ab", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        known = _load(log)
        size = os.fstat(self._file.fileno()).st_size
        self._position = known or Position(size=size)
        if size > self._position.size:
            self._file.truncate(self._position.size)
        self._recent: list[int] = []
        """Times of the entries that ``count`` counts, as far as they were seen in this life."""
        self._to_skip = self._position.count
        self._saved_at = time.monotonic()
        self._uncapped = 0
        if known is None:
            self._save()

    @property
    def since(self) -> float | None:
        """In seconds, rounded down; None: from the beginning."""
        return max(1.0, self._position.anchor_ns // _NS - 1.0) if self._position.anchor_ns else None

    def take(self, entry: bytes) -> None:
        """One entry as Docker gives it: a time, a blank, and the text, mostly with its end of line."""
        stamp, _, text = entry.partition(b" ")
        at = nanoseconds(stamp.decode("ascii", "replace"))
        if at < self._position.anchor_ns:
            return
        self._recent.append(at)
        if self._to_skip > 0:
            self._to_skip -= 1
            return
        self._file.write(text)
        size = self._position.size + len(text)
        self._position = self._position.model_copy(update={"count": len(self._recent), "size": size})
        self._uncapped += len(text)
        if time.monotonic() - self._saved_at >= _SAVE_S:
            self._move_on()

    def close(self) -> None:
        """What was taken is certain then."""
        if not self._file.closed:
            self._move_on()
            self._file.close()

    def _move_on(self) -> None:
        if self._to_skip == 0 and self._recent and max(self._recent) - self._position.anchor_ns > 2 * _WINDOW_NS:
            anchor = max(self._recent) - _WINDOW_NS
            self._recent = [at for at in self._recent if at >= anchor]
            self._position = self._position.model_copy(update={"anchor_ns": anchor, "count": len(self._recent)})
        if self._uncapped >= _CAP_BYTES:
            self._uncapped = 0
            self._save()
            cap(self._log)
            size = os.fstat(self._file.fileno()).st_size
            self._position = self._position.model_copy(update={"size": size})
        self._save()

    def _save(self) -> None:
        path = position_file(self._log)
        temporary = path.with_suffix(".pos.tmp")
        temporary.write_text(self._position.model_dump_json())
        temporary.replace(path)
        self._saved_at = time.monotonic()


def copy(entries: Iterator[bytes], into: LogCopy, stop: threading.Event) -> None:
    """Until ``entries`` end or ``stop`` is set."""
    try:
        for entry in entries:
            if stop.is_set():
                break
            into.take(entry)
    finally:
        into.close()


def position_file(log: Path) -> Path:
    return log.with_suffix(".pos")


def nanoseconds(stamp: str) -> int:
    """Since 1970, of a time like ``2026-01-31T12:00:00.123456789Z``; 0 for anything else."""
    whole, _, rest = stamp.partition(".")
    digits = rest.rstrip("Z")
    try:
        seconds = int(datetime.fromisoformat(whole.rstrip("Z") + "+00:00").timestamp())
        return seconds * _NS + int((digits or "0").ljust(9, "0")[:9])
    except ValueError:
        return 0


def _load(log: Path) -> Position | None:
    try:
        return Position.model_validate_json(position_file(log).read_text())
    except (OSError, ValueError):
        return None
