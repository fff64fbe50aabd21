"""Secrets: sealed, hashed, and kept where only their owner reads."""

import multiprocessing
import stat
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fleet.access.sealing import (
    CannotOpen,
    Sealer,
    host_sealer,
    is_sealed,
    master_sealer,
    read_or_create_secret,
)
from fleet.access.secrets import digest, new_id, new_secret, shown_prefix
from fleet.errors import InvalidInput

values = st.text(st.characters(exclude_categories=["Cs"]))
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(values, keys)
def test_what_was_sealed_can_be_opened_with_the_same_key(value: str, key: str) -> None:
    sealed = master_sealer(key).seal(value)
    assert is_sealed(sealed)
    assert master_sealer(key).open(sealed) == value


@given(values, keys, keys)
def test_another_key_cannot_open_it(value: str, key: str, other: str) -> None:
    assume(key != other)
    with pytest.raises(CannotOpen):
        master_sealer(other).open(master_sealer(key).seal(value))


@given(keys)
def test_the_same_secret_for_another_purpose_is_another_key(key: str) -> None:
    with pytest.raises(CannotOpen):
        host_sealer(key).open(master_sealer(key).seal("value"))


@given(st.data())
def test_changed_value_cannot_be_opened(data: st.DataObject) -> None:
    sealer = Sealer("key", "test")
    prefix, body = sealer.seal("a value")[:10], sealer.seal("a value")[10:]
    place = data.draw(st.integers(0, len(body) - 3))
    letter = data.draw(st.sampled_from("ABCDwxyz0189-_"))
    assume(body[place] != letter)
    with pytest.raises(CannotOpen):
        sealer.open(prefix + body[:place] + letter + body[place + 1 :])


@given(st.text())
def test_garbage_cannot_be_opened(garbage: str) -> None:
    for text in (garbage, f"sealed:v1:{garbage}"):
        with pytest.raises(CannotOpen):
            Sealer("key", "test").open(text)


def test_equal_values_look_different_when_sealed_and_do_not_show() -> None:
    sealer = master_sealer("key")
    first, second = sealer.seal("hunter2hunter2"), sealer.seal("hunter2hunter2")
    assert first != second
    assert "hunter2" not in first


@given(values)
def test_plain_values_are_not_taken_for_sealed_ones(value: str) -> None:
    assert is_sealed(value) == value.startswith("sealed:v1:")


def test_secrets_say_what_they_are_and_differ() -> None:
    made = {new_secret("key") for _ in range(100)}
    assert len(made) == 100
    assert all(secret.startswith("hf-key-") and len(secret) >= 50 for secret in made)
    assert len({new_id("host") for _ in range(100)}) == 100


def test_what_is_kept_or_shown_of_a_secret_does_not_give_it_away() -> None:
    secret = new_secret("key")
    assert digest(secret) == digest(secret) != digest(secret + "x")
    assert secret not in digest(secret)
    assert len(shown_prefix(secret)) < len(secret) / 3


def test_secret_is_made_once_and_read_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "new" / "master_key"
    assert read_or_create_secret(path, "first") == "first"
    assert read_or_create_secret(path, "second") == "first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["master_key"]


def test_secret_given_by_a_person_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "master_key"
    path.write_text("  mine \n")
    assert read_or_create_secret(path, "other") == "mine"


@pytest.mark.parametrize("content", ["", "\n"])
def test_empty_secret_is_refused_with_a_remedy(tmp_path: Path, content: str) -> None:
    path = tmp_path / "master_key"
    path.write_text(content)
    with pytest.raises(InvalidInput, match="master_key is empty") as refused:
        read_or_create_secret(path, "other")
    assert "backup" in refused.value.hint
    assert path.read_text() == content


def test_processes_that_make_a_secret_at_once_agree(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(2), spawn.SimpleQueue()
    arguments = [(str(tmp_path), name, barrier, answers) for name in ("a", "b")]
    started = [spawn.Process(target=_make_secrets, args=a) for a in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
    assert answers.get() == answers.get()
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
    assert len(list(tmp_path.iterdir())) == 50


def _make_secrets(folder: str, value: str, barrier: Barrier, answers: "multiprocessing.SimpleQueue[list[str]]") -> None:
    found = []
    for n in range(50):
        barrier.wait(30)
        found.append(read_or_create_secret(Path(folder) / str(n), value))
    answers.put(found)
