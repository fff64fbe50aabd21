"""Reading logs: last lines, what comes, the next attempts; what was cut out, and what nobody may see."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.access.sealing import host_sealer
from worker_host import log_cap
from worker_host.engine_log import EngineLogs
from worker_host.log_cap import cap, gap_of
from worker_host.log_reader import LogReader, NoLog, last_lines

INSTANCE = "chat/1-a"
SEALER = host_sealer("this host")


@pytest.fixture
def logs(tmp_path: Path) -> EngineLogs:
    return EngineLogs(tmp_path)


@pytest.fixture
def reader(logs: EngineLogs) -> LogReader:
    return LogReader(logs, SEALER)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs are kept much shorter."""
    monkeypatch.setattr(log_cap, "HEAD_BYTES", 4 << 10)
    monkeypatch.setattr(log_cap, "TAIL_BYTES", 12 << 10)
    monkeypatch.setattr(log_cap, "_SLACK_BYTES", 4 << 10)


def write(logs: EngineLogs, attempt: int, text: str, secrets: tuple[str, ...] = ()) -> Path:
    path = logs.path(INSTANCE, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    logs.begin(INSTANCE, attempt, [SEALER.seal(s) for s in secrets])
    with path.open("a") as file:
        file.write(text)
    return path


async def whole(reader: LogReader, tail: int = 1000, attempt: int | None = None) -> str:
    return "".join([text async for text in reader.read(INSTANCE, attempt, tail, follow=False)])


async def until(text: AsyncIterator[str], wanted: str) -> str:
    """What comes until ``wanted`` is there."""
    seen = ""
    async with asyncio.timeout(20):
        while wanted not in seen:
            seen += await anext(text)
    return seen


# -- which log ---------------------------------------------------------------------------------------------------------


async def test_newest_attempt_is_read_unless_another_is_asked_for(reader: LogReader, logs: EngineLogs) -> None:
    write(logs, 1, "first\n")
    write(logs, 2, "second\n")
    assert await whole(reader) == "second\n"
    assert await whole(reader, attempt=1) == "first\n"
    with pytest.raises(NoLog, match="no attempt 3"):
        await whole(reader, attempt=3)


@pytest.mark.parametrize(
    "instance", ["chat/9-z", "../../etc/passwd", "chat/..", "chat/1/2", "chat", "./1", "a b/c", ""]
)
def test_instance_without_a_log_and_path_that_leads_elsewhere_have_none(
    reader: LogReader, logs: EngineLogs, instance: str
) -> None:
    write(logs, 1, "x\n")
    with pytest.raises(NoLog):
        reader.read(instance, None, 10, follow=False)


# -- following ---------------------------------------------------------------------------------------------------------


async def test_follower_gets_whole_lines_as_they_come(reader: LogReader, logs: EngineLogs) -> None:
    path = write(logs, 1, "early\n")
    text = reader.read(INSTANCE, None, 10, follow=True)
    assert await anext(text) == "early\n"
    with path.open("a") as file:
        file.write("late\nunfini")
    assert await until(text, "late") == "late\n"
    with path.open("a") as file:
        file.write("shed\n")
    assert await until(text, "shed") == "unfinished\n"


async def test_follower_goes_on_with_the_next_attempts(reader: LogReader, logs: EngineLogs) -> None:
    path = write(logs, 1, "one\n")
    text = reader.read(INSTANCE, None, 10, follow=True)
    assert await anext(text) == "one\n"
    with path.open("a") as file:
        file.write("last words of one")
    write(logs, 2, "two\n")
    assert await until(text, "two") == "last words of one\n[attempt 2]\ntwo\n"
    for attempt in (3, 4):
        write(logs, attempt, f"{attempt}\n")
    assert await until(text, "[attempt 4]\n4\n") == "[attempt 3]\n3\n[attempt 4]\n4\n"


async def test_follower_of_one_attempt_stays_with_it(reader: LogReader, logs: EngineLogs) -> None:
    path = write(logs, 1, "one\n")
    write(logs, 2, "two\n")
    text = reader.read(INSTANCE, 1, 10, follow=True)
    assert await anext(text) == "one\n"
    with path.open("a") as file:
        file.write("more\n")
    assert await until(text, "more") == "more\n"


async def test_line_without_an_end_is_shown_in_pieces(
    reader: LogReader, logs: EngineLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker_host import log_reader

    monkeypatch.setattr(log_reader, "_LONGEST_LINE", 1000)
    path = write(logs, 1, "")
    text = reader.read(INSTANCE, None, 10, follow=True)
    await anext(text)
    with path.open("a") as file:
        file.write("x" * 5000)
    assert await until(text, "x" * 5000) == "x" * 5000


# -- secrets -----------------------------------------------------------------------------------------------------------


async def test_values_of_the_deployment_are_never_shown_even_after_it_is_gone(
    reader: LogReader, logs: EngineLogs
) -> None:
    secrets = ("a-very-secret-value", "-----BEGIN KEY-----\nline-of-the-key\n-----END KEY-----", 'with "quotes" & more')
    write(logs, 1, "", secrets)
    path = logs.path(INSTANCE, 1)
    path.write_text(
        "got a-very-secret-value\nline-of-the-key\n"
        '{"v": "with \\"quotes\\" & more"}\n?v=with%20%22quotes%22%20%26%20more\n'
    )
    assert await whole(reader) == 'got ********\n********\n{"v": "********"}\n?v=********\n'
    assert "secret-value" not in (path.with_suffix(".sealed")).read_text()
    text = reader.read(INSTANCE, None, 0, follow=True)
    await anext(text)
    with path.open("a") as file:
        file.write("again a-very-secret-value\n")
    assert await until(text, "again") == "again ********\n"


async def test_log_whose_secrets_cannot_be_told_any_more_is_not_shown(logs: EngineLogs) -> None:
    write(logs, 1, "got a-very-secret-value\n", ("a-very-secret-value",))
    text = await whole(LogReader(logs, host_sealer("another host")))
    assert "secret-value" not in text
    assert "not shown" in text


async def test_secrets_of_the_next_attempt_are_hidden_too(reader: LogReader, logs: EngineLogs) -> None:
    write(logs, 1, "one\n", ("old-secret",))
    text = reader.read(INSTANCE, None, 10, follow=True)
    await anext(text)
    write(logs, 2, "new-secret\n", ("new-secret",))
    assert "new-secret" not in await until(text, "********")


# -- what was cut out --------------------------------------------------------------------------------------------------


def lines(count: int, start: int = 0) -> str:
    return "".join(f"line {number}\n" for number in range(start, start + count))


async def test_long_log_keeps_beginning_and_end_and_says_what_is_missing(
    reader: LogReader, logs: EngineLogs, short: None
) -> None:
    path = write(logs, 1, lines(20_000))
    size = path.stat().st_size
    cap(path)
    assert path.stat().st_blocks * 512 <= 24 << 10
    assert path.stat().st_size == size, "every byte keeps its place"
    shown = (await whole(reader, 100_000)).splitlines()
    assert shown[0] == "line 0"
    assert shown[-1] == "line 19999"
    [at] = [n for n, line in enumerate(shown) if "left out" in line]
    assert f"{gap_of(path).size} bytes" in shown[at]
    numbers = [int(line.split()[1]) for line in shown[at + 1 :] if line.startswith("line ")]
    assert numbers == list(range(numbers[0], 20_000))


async def test_last_lines_of_a_cut_log_are_exact(reader: LogReader, logs: EngineLogs, short: None) -> None:
    path = write(logs, 1, lines(20_000))
    cap(path)
    for tail in (0, 1, 2, 500):
        assert await whole(reader, tail) == lines(tail, 20_000 - tail)


async def test_who_writes_loses_nothing_while_the_log_is_cut(logs: EngineLogs, short: None) -> None:
    path = write(logs, 1, "")
    with counting(path) as process:
        for _ in range(60):
            cap(path)
            await asyncio.sleep(0.002)
        process.terminate()
        process.wait()
    cap(path)
    text = path.read_bytes()
    tail = [int(line) for line in text[gap_of(path).end :].split(b"\n")[1:-1] if line.strip(b"\0")]
    assert tail == list(range(tail[0], tail[0] + len(tail)))
    assert len(tail) > 100


async def test_follower_that_is_overtaken_is_told_what_it_missed(
    reader: LogReader, logs: EngineLogs, short: None
) -> None:
    path = write(logs, 1, "begin\n")
    text = reader.read(INSTANCE, None, 10, follow=True)
    assert await anext(text) == "begin\n"
    with path.open("a") as file:
        file.write(lines(20_000))
    cap(path)
    seen = await until(text, "line 19999\n")
    assert "left out" in seen
    assert "\0" not in seen


async def test_where_files_can_have_no_holes_the_log_is_written_anew(
    reader: LogReader, logs: EngineLogs, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(log_cap, "_punch", cannot)
    path = write(logs, 1, lines(20_000))
    for _ in range(2):
        cap(path)
    assert path.stat().st_size <= 24 << 10
    with path.open("a") as file:
        file.write("after\n")
    shown = (await whole(reader, 100_000)).splitlines()
    assert (shown[0], shown[-2], shown[-1]) == ("line 0", "line 19999", "after")
    assert sum("left out" in line for line in shown) == 1


def test_short_log_is_left_alone_and_none_is_no_error(logs: EngineLogs, short: None, tmp_path: Path) -> None:
    path = write(logs, 1, lines(100))
    cap(path)
    assert path.read_text() == lines(100)
    assert gap_of(path).size == 0
    cap(tmp_path / "none.log")


@given(
    st.lists(st.text(st.characters(codec="ascii", exclude_characters="\r\n\0\x0b\x0c\x1c\x1d\x1e\x1f"), max_size=30))
)
def test_last_lines_are_those_of_the_file(tmp_path_factory: pytest.TempPathFactory, content: list[str]) -> None:
    path = tmp_path_factory.mktemp("lines") / "1.log"
    path.write_text("".join(f"{line}\n" for line in content))
    for count in (0, 1, 3, 100):
        text, end = last_lines(path, count)
        assert text == "".join(f"{line}\n" for line in (content[-count:] if count else []))
        assert end == path.stat().st_size


@contextmanager
def counting(path: Path) -> Iterator[Popen[bytes]]:
    """A process that writes numbers to ``path`` as fast as it can, as an engine does."""
    with path.open("ab") as output:
        process = Popen(["seq", "1", "100000000"], stdout=output, stdin=DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_all_of_an_attempt_goes_with_it(logs: EngineLogs, short: None) -> None:
    path = write(logs, 1, lines(20_000))
    cap(path)
    for attempt in range(2, 8):
        write(logs, attempt, "x\n")
    logs.prune(INSTANCE)
    assert list(path.parent.glob("1.*")) == []
    assert logs.attempts(INSTANCE) == [3, 4, 5, 6, 7]
