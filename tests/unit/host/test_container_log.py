"""Copying a container's output: nothing lost and nothing twice, whenever the copier is killed."""

import itertools
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_host.runtime import container_log
from worker_host.runtime.container_log import LogCopy, nanoseconds, position_file

SECOND = 10**9
START = 1_767_225_600 * SECOND


def stamp(at: int) -> bytes:
    from datetime import UTC, datetime

    whole = datetime.fromtimestamp(at // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{at % SECOND:09d}Z".encode()


def entries(times: list[int]) -> list[bytes]:
    return [stamp(START + at) + b" line %d\n" % number for number, at in enumerate(times)]


class Killed(Exception):
    """The copier's process has just been killed."""


def copy_some(log: Path, kept: list[bytes], until: int | None, *, save_s: float) -> None:
    """As Docker serves them: those since a moment, in the order of its file. ``until``: the copier is killed then."""
    with patch.object(container_log, "_SAVE_S", save_s):
        copier = LogCopy(log)
        try:
            since = (copier.since or 0) * SECOND
            wanted = [e for e in kept if nanoseconds(e.split()[0].decode()) >= since]
            for entry in wanted[:until]:
                copier.take(entry)
            if until is None:
                copier.close()
        finally:
            copier._file.close()  # whatever it had not saved is lost


STEPS = st.lists(st.sampled_from([0, 1, 1000, SECOND // 2, SECOND, 3 * SECOND]), min_size=1, max_size=60)
JITTER = st.lists(st.integers(-SECOND // 4, 0), min_size=60, max_size=60)


@given(STEPS, JITTER, st.lists(st.tuples(st.integers(0, 60), st.sampled_from([0.0, 1e9])), max_size=4))
def test_each_entry_is_there_once_however_often_the_copier_is_killed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], jitter: list[int], kills: list[tuple[int, float]]
) -> None:
    log = tmp_path_factory.mktemp("copy") / "1.log"
    times = [max(0, at + j) for at, j in zip(itertools.accumulate(steps), jitter, strict=False)]
    kept = entries(times)
    log.write_text("[note]\n")
    for count, save_s in kills:
        copy_some(log, kept, count, save_s=save_s)
    copy_some(log, kept, None, save_s=0.0)
    copy_some(log, kept, None, save_s=0.0)
    assert log.read_bytes() == b"[note]\n" + b"".join(b"line %d\n" % number for number in range(len(kept)))


def test_entries_of_the_same_moment_are_told_apart(tmp_path: Path) -> None:
    kept = entries([5 * SECOND] * 10)
    copy_some(tmp_path / "1.log", kept, 4, save_s=0.0)
    copy_some(tmp_path / "1.log", kept, None, save_s=0.0)
    assert (tmp_path / "1.log").read_text().splitlines() == [f"line {n}" for n in range(10)]


def test_what_is_not_complete_is_pieced_together(tmp_path: Path) -> None:
    """Docker keeps long lines in pieces, each with a time."""
    copier = LogCopy(tmp_path / "1.log")
    for piece in (b"x" * 10, b"y" * 10, b"z\n"):
        copier.take(stamp(START) + b" " + piece)
    copier.close()
    assert (tmp_path / "1.log").read_text() == "x" * 10 + "y" * 10 + "z\n"


def test_long_log_is_cut_in_the_middle_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker_host import log_cap

    monkeypatch.setattr(log_cap, "HEAD_BYTES", 4 << 10)
    monkeypatch.setattr(log_cap, "TAIL_BYTES", 8 << 10)
    monkeypatch.setattr(log_cap, "_SLACK_BYTES", 4 << 10)
    monkeypatch.setattr(container_log, "_CAP_BYTES", 4 << 10)
    kept = entries([n * SECOND // 100 for n in range(3000)])
    log = tmp_path / "1.log"
    for count in (800, 1500):
        copy_some(log, kept, count, save_s=0.0)
    copy_some(log, kept, None, save_s=0.0)
    lines = log.read_bytes().replace(b"\0", b"").decode().splitlines()
    assert lines[0] == "line 0"
    assert lines[-100:] == [f"line {n}" for n in range(2900, 3000)]
    assert len(lines) < 2500
    assert position_file(log).exists()


def test_time_that_is_none_is_the_beginning() -> None:
    assert nanoseconds("2026-01-01T00:00:00.000000001Z") == START + 1
    assert nanoseconds("2026-01-01T00:00:00.5Z") == START + SECOND // 2
    assert nanoseconds("nonsense") == 0
