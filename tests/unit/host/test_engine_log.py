"""Log files of engines: kept apart, cut to size, without secrets."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_host.engine_log import EngineLogs, scrub

INSTANCE = "chat/1-a"


def write(logs: EngineLogs, attempt: int, text: str = "x", instance: str = INSTANCE) -> Path:
    path = logs.path(instance, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_newest_attempt_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    logs = EngineLogs(tmp_path)
    assert logs.latest(INSTANCE) is None
    for attempt in (9, 10, 2):
        write(logs, attempt)
    (logs.path(INSTANCE, 1).parent / "notes.log").touch()
    assert logs.latest(INSTANCE) == 10


def test_five_newest_attempts_are_kept(tmp_path: Path) -> None:
    logs = EngineLogs(tmp_path)
    paths = [write(logs, attempt) for attempt in range(1, 12)]
    logs.prune(INSTANCE)
    assert [path.exists() for path in paths] == [False] * 6 + [True] * 5


def test_logs_of_instances_that_ended_long_ago_are_removed(tmp_path: Path) -> None:
    logs = EngineLogs(tmp_path)
    kept = [write(logs, 1, instance="chat/live"), write(logs, 1, instance="chat/recent")]
    old = write(logs, 1, instance="chat/old")
    month_ago = time.time() - 30 * 24 * 3600
    for path in (kept[0], old):
        os.utime(path.parent, (month_ago, month_ago))
    logs.prune_old({"chat/live"})
    assert all(path.exists() for path in kept)
    assert not old.parent.exists()


def test_tail_is_the_end_of_the_log_and_nothing_when_there_is_none(tmp_path: Path) -> None:
    logs = EngineLogs(tmp_path)
    assert logs.tail(INSTANCE, 1) == ""
    write(logs, 1, "begin\n" + "x" * 100_000 + "\nend\n")
    tail = logs.tail(INSTANCE, 1)
    assert tail.endswith("x\nend\n")
    assert "begin" not in tail
    assert len(tail) <= 16 << 10


def test_tail_of_a_log_that_is_not_text_can_be_read(tmp_path: Path) -> None:
    logs = EngineLogs(tmp_path)
    write(logs, 1).write_bytes(b"\xff\xfe\x00end")
    assert logs.tail(INSTANCE, 1).endswith("end")


@pytest.mark.parametrize(
    "token",
    [
        "hf_AbCdEfGhIjKlMnOp",
        "sk-proj-abcdefgh12345678",
        "hf-key-abcdefgh12345678",
        "hf-host-abcdefgh12345678",
        "hf-join-abcdefgh12345678",
        "hf-master-abcdefgh12345678",
        "AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_what_looks_like_a_token_is_not_shown(token: str) -> None:
    assert scrub(f"using {token}, ok") == "using ********, ok"
    assert token not in scrub(f'{{"authorization":"Bearer {token}"}}')


def test_ordinary_words_stay() -> None:
    text = "the bearer of hf_ and sk- asks: is AKIA a risk-free thing? task-list"
    assert scrub(text) == text


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="*"), min_size=6), st.text(), st.text())
def test_values_that_are_secret_here_are_not_shown(secret: str, before: str, after: str) -> None:
    shown = scrub(f"{before}{secret}{after}", [secret])
    assert secret not in shown


def test_values_too_short_to_be_secrets_do_not_eat_the_log() -> None:
    assert scrub("a 1 b", ["1", "", "b"]) == "a 1 b"
