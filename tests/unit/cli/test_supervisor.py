"""Children are kept running, seen to, and stopped. With real, tiny processes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import psutil
import pytest

from fleet.cli.supervisor import (
    LOG_CAP_BYTES,
    BackOff,
    ChildSpec,
    Supervisor,
    describe_exit,
    last_lines,
    rotate,
)
from fleet.errors import Unavailable

DEADLINE_S = 20.0
QUICK = BackOff(first_s=0.01, longest_s=0.05, reset_after_s=10)

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
DIES = "import sys; print('no such luck'); sys.exit(3)"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


def spec(name: str, code: str, **more: object) -> ChildSpec:
    return ChildSpec(name=name, command=[sys.executable, "-S", "-c", code], environment=dict(os.environ), **more)


class Watched:
    """A supervisor, and what it said."""

    def __init__(self, logs: Path) -> None:
        self.said: list[str] = []
        self.pids: list[int | None] = []
        self.supervisor = Supervisor(logs, say=self.said.append, changed=self._changed, back_off=QUICK)

    def _changed(self, supervisor: Supervisor) -> None:
        self.pids += [child.pid for child in supervisor.children.values()]

    async def up(self, child: ChildSpec) -> int:
        """Start it; its pid once it has printed that it runs."""
        started = self.supervisor.start(child)
        await until(lambda: started.log.exists() and "up" in started.log.read_text())
        assert started.pid is not None
        return started.pid


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    one = Watched(tmp_path)
    yield one
    one.supervisor.kill_all()
    await one.supervisor.stop_all()


async def test_a_killed_child_is_started_again(watched: Watched) -> None:
    first = await watched.up(spec("api", SLEEP))
    os.kill(first, signal.SIGKILL)
    child = watched.supervisor.children["api"]
    await until(lambda: child.pid not in (first, None))
    assert watched.said == ["api was ended by SIGKILL; starting it again in 0.01 s"]
    assert watched.pids[:2] == [first, None]


async def test_a_child_that_dies_again_and_again_waits_longer_and_its_log_is_shown(watched: Watched) -> None:
    watched.supervisor.start(spec("api", DIES))
    await until(lambda: len([s for s in watched.said if "starting it again" in s]) >= 5)
    delays = [s.rsplit(" in ", 1)[1] for s in watched.said if "starting it again" in s]
    assert delays[:5] == ["0.01 s", "0.02 s", "0.04 s", "0.05 s", "0.05 s"]
    assert any("no such luck" in s for s in watched.said)
    assert "no such luck" not in watched.said[0] + watched.said[1]


def test_back_off_doubles_to_its_limit_and_never_overflows() -> None:
    assert [BackOff().delay(n) for n in (1, 2, 3, 5, 6, 10_000)] == [0.2, 0.4, 0.8, 3.2, 5.0, 5.0]


async def test_a_child_that_lived_long_enough_starts_with_a_clean_record(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, say=said.append, back_off=BackOff(0.01, 10, reset_after_s=0.0))
    supervisor.start(spec("api", DIES))
    await until(lambda: len(said) >= 5)
    await supervisor.stop_all()
    assert {s.rsplit(" in ", 1)[1] for s in said} == {"0.01 s"}


async def test_children_are_stopped_in_the_reverse_order(watched: Watched, tmp_path: Path) -> None:
    order = tmp_path / "order"
    tell = "import signal, sys, time\ndef end(*_):\n open({order!r}, 'a').write({name!r}); sys.exit(0)\n"
    tell += "signal.signal(signal.SIGTERM, end)\n" + SLEEP
    for name in "abc":
        await watched.up(spec(name, tell.format(order=str(order), name=name)))
    await watched.supervisor.stop_all()
    assert order.read_text() == "cba"
    assert watched.said == []


async def test_a_child_that_will_not_end_is_killed_after_its_deadline(watched: Watched) -> None:
    pid = await watched.up(spec("host", STUBBORN, stop_within_s=0.2))
    await watched.supervisor.stop_all()
    assert not psutil.pid_exists(pid)
    assert watched.said == ["host did not end within 0.2 s; killing it"]


async def test_a_child_whose_environment_cannot_be_had_is_tried_again(watched: Watched) -> None:
    asked = []

    async def token() -> Mapping[str, str]:
        asked.append(1)
        if len(asked) < 3:
            raise Unavailable("the API is away")
        return {"TOKEN": "t"}

    code = "import os; assert os.environ['TOKEN'] == 't'\n" + SLEEP
    await watched.up(spec("host", code, extra_environment=token))
    assert "the API is away" in watched.said[0]


async def test_stopping_a_child_between_two_lives_does_not_wait_for_the_next(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, say=said.append, back_off=BackOff(first_s=600, longest_s=600))
    supervisor.start(spec("api", DIES))
    await until(lambda: said)
    async with asyncio.timeout(DEADLINE_S):
        await supervisor.stop_all()


async def test_a_mistake_in_the_care_for_a_child_does_not_go_unnoticed(watched: Watched) -> None:
    async def mistake() -> Mapping[str, str]:
        raise KeyError("oops")

    child = watched.supervisor.start(spec("host", SLEEP, extra_environment=mistake))
    with pytest.raises(KeyError):
        async with asyncio.timeout(DEADLINE_S):
            await watched.supervisor.broken
    watched.supervisor.children.clear()
    assert child.pid is None


async def test_ctrl_c_in_a_terminal_does_not_reach_children(watched: Watched) -> None:
    assert os.getpgid(await watched.up(spec("api", SLEEP))) != os.getpgid(0)


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, sys
from pathlib import Path
from fleet.cli.supervisor import ChildSpec, Supervisor
async def go():
    tell = lambda s: print(s.children["a"].pid, flush=True)
    supervisor = Supervisor(Path({str(tmp_path)!r}), say=print, changed=tell)
    supervisor.start(ChildSpec("a", [sys.executable, "-S", "-c", {SLEEP!r}], dict(os.environ)))
    await asyncio.sleep(600)
asyncio.run(go())
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    deadline = time.monotonic() + DEADLINE_S
    while "up" not in (tmp_path / "a.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=DEADLINE_S)
    assert not child.is_running()


def test_a_log_that_grew_too_large_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(b"x" * (LOG_CAP_BYTES + 1))
    rotate(log)
    assert not log.exists()
    assert (tmp_path / "api.log.1").stat().st_size == LOG_CAP_BYTES + 1
    log.write_text("small")
    rotate(log)
    assert log.read_text() == "small"


def test_the_last_lines_of_a_log_are_found_even_if_there_is_none(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    assert "no log" in last_lines(log)
    log.write_text("\n".join(str(n) for n in range(100)))
    assert last_lines(log, 2) == "  98\n  99"


@pytest.mark.parametrize(
    ("code", "text"),
    [(3, "ended with code 3"), (-9, "was ended by SIGKILL"), (-250, "was ended by signal 250")],
)
def test_ends_are_described(code: int, text: str) -> None:
    assert describe_exit(code) == text
