"""Keeping a log file short while somebody else writes it: its beginning and its end stay, the middle goes.

The middle is cut out as a hole: the file keeps its length and every byte its place, so whoever appends or follows
notices nothing, and nothing that is being written can be lost. Where the file system has no holes, the file is written
anew in place; lines that come in that moment can be lost then.
"""

import contextlib
import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import NamedTuple

HEAD_BYTES = 1 << 20
TAIL_BYTES = 9 << 20
_SLACK_BYTES = 1 << 20
"""So much more than wanted is kept before it is cut again."""
_BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Gap(NamedTuple):
    """Bytes of a log that are gone: from ``start`` up to ``end``."""

    start: int = 0
    end: int = 0

    @property
    def size(self) -> int:
        return self.end - self.start


def cap(log: Path) -> None:
    """Cut ``log`` if it has grown too long. Nothing happens when there is none. Raises OSError."""
    try:
        descriptor = os.open(log, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        return
    try:
        gap = gap_of(log)
        wanted = Gap(HEAD_BYTES, (os.fstat(descriptor).st_size - TAIL_BYTES) // _BLOCK * _BLOCK)
        if wanted.end - max(gap.end, HEAD_BYTES) < _SLACK_BYTES:
            return
        try:
            _punch(descriptor, wanted)
        except OSError as error:
            if error.errno not in _NO_HOLES:
                raise
            _write_anew(descriptor, log)
        else:  # only now: on a full disk there is room for it now
            _write(_gap_file(log), f"{wanted.start} {wanted.end}\n")
    finally:
        os.close(descriptor)


def gap_of(log: Path) -> Gap:
    """What is missing in the middle."""
    try:
        start, end = _gap_file(log).read_text().split()
        return Gap(int(start), int(end))
    except (OSError, ValueError):
        return Gap()


def forget(log: Path) -> None:
    """Remove ``log`` and what belongs to it."""
    for path in (log, _gap_file(log)):
        path.unlink(missing_ok=True)


def _gap_file(log: Path) -> Path:
    return log.with_suffix(".gap")


def _punch(descriptor: int, gap: Gap) -> None:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "no holes here")
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, gap.start, gap.size) != 0:
        raise OSError(ctypes.get_errno(), "cannot make a hole")


def _write_anew(descriptor: int, log: Path) -> None:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, TAIL_BYTES, size - TAIL_BYTES)
    missing = size - len(tail) - HEAD_BYTES
    os.ftruncate(descriptor, HEAD_BYTES)
    os.write(descriptor, note(missing).encode() + tail.partition(b"\n")[2])
    _gap_file(log).unlink(missing_ok=True)


def note(missing: int) -> str:
    return f"\n[... {missing} bytes are left out here ...]\n"


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".gap.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
