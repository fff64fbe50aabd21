"""Keeps child processes running: started in order, restarted when they die, stopped in the reverse order.

Each child has its own log file and its own process group, so that Ctrl-C reaches only us. On Linux it gets
SIGTERM when we die, in whatever way.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleet.errors import HoldfastError

LOG_CAP_BYTES = 10 << 20
"""A log larger than this when its process starts becomes ``<name>.log.1``."""
SHOWN_LOG_LINES = 15
SHOW_LOG_AFTER = 3
"""Deaths in a row; one or two may be somebody's `kill`."""

ATTACHED = Path(__file__).with_name("attached.py")


@dataclass(frozen=True)
class BackOff:
    """Seconds to wait before starting a dead child again."""

    first_s: float = 0.2
    longest_s: float = 5.0
    reset_after_s: float = 10.0
    """A child that lived for so long starts with a clean record."""

    def delay(self, deaths: int) -> float:
        """Before the start that follows ``deaths`` (1 or more) quick deaths in a row."""
        return min(self.longest_s, self.first_s * 2.0 ** min(deaths - 1, 16))


async def _no_extra() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class ChildSpec:
    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    extra_environment: Callable[[], Awaitable[Mapping[str, str]]] = field(default=_no_extra)
    """Asked before each start; may raise ``HoldfastError``, which counts as a death."""
    stop_within_s: float = 10.0
    """From SIGTERM to SIGKILL."""


class Child:
    """One child process over all its restarts."""

    def __init__(
        self,
        spec: ChildSpec,
        logs: Path,
        *,
        say: Callable[[str], None],
        changed: Callable[[], None],
        back_off: BackOff,
    ) -> None:
        self.spec = spec
        self.log = logs / f"{spec.name}.log"
        self.process: Process | None = None
        self.started_at = 0.0
        """Wall-clock time of the newest start."""
        self._say = say
        self._changed = changed
        self._back_off = back_off
        self._stopping = asyncio.Event()
        self.task = asyncio.create_task(self._keep_running(), name=f"child {spec.name}")

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.returncode is None else None

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL for its whole group when it takes too long. Again is harmless."""
        self._stopping.set()
        if self.pid is not None:
            _signal(self.pid, signal.SIGTERM)
        # Not `wait_for`: a task that `kill` cancelled between two lives would cancel us, too.
        ended, _ = await asyncio.wait({self.task}, timeout=self.spec.stop_within_s)
        if not ended:
            self._say(f"{self.spec.name} did not end within {self.spec.stop_within_s:g} s; killing it")
            self.kill()
            await asyncio.wait({self.task})

    def kill(self) -> None:
        self._stopping.set()
        if self.pid is None:
            self.task.cancel()  # between two lives
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _keep_running(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            how = await self._run_once()
            if self._stopping.is_set():
                return
            deaths = 1 if time.monotonic() - began >= self._back_off.reset_after_s else deaths + 1
            delay = self._back_off.delay(deaths)
            self._say(f"{self.spec.name} {how}; starting it again in {delay:g} s")
            if deaths >= SHOW_LOG_AFTER:
                self._say(f"last lines of {self.log}:\n{last_lines(self.log)}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _run_once(self) -> str:
        """One life; answers how it ended."""
        try:
            process = await self._spawn()
        except HoldfastError as error:
            return f"cannot be started ({error.title}: {error.detail})"
        except OSError as error:
            return f"cannot be started ({error})"
        self.process, self.started_at = process, time.time()
        self._changed()
        if self._stopping.is_set():  # told to stop while it was being started
            _signal(process.pid, signal.SIGTERM)
        code = await process.wait()
        self._changed()
        return describe_exit(code)

    async def _spawn(self) -> Process:
        environment = {**self.spec.environment, **await self.spec.extra_environment()}
        rotate(self.log)
        # -I -S: the small launcher needs neither site-packages nor the user's settings.
        launcher = [sys.executable, "-I", "-S", str(ATTACHED), str(os.getpid())]
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *launcher,
                *self.spec.command,
                env=environment,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )


class Supervisor:
    """All children. ``changed`` is called whenever a pid changes; ``say`` with each line for people."""

    def __init__(
        self,
        logs: Path,
        *,
        say: Callable[[str], None],
        changed: Callable[["Supervisor"], None] = lambda _: None,
        back_off: BackOff | None = None,
    ) -> None:
        self.children: dict[str, Child] = {}
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails when the care for a child ended by a mistake of ours, which must not go unnoticed."""
        self._logs = logs
        self._say = say
        self._changed = changed
        self._back_off = back_off or BackOff()

    def start(self, spec: ChildSpec) -> Child:
        """From now on it is kept running."""
        child = Child(spec, self._logs, say=self._say, changed=lambda: self._changed(self), back_off=self._back_off)
        child.task.add_done_callback(self._ended)
        self.children[spec.name] = child
        return child

    async def stop_all(self) -> None:
        """One after the other, the last started first."""
        for child in reversed(self.children.values()):
            await child.stop()

    def kill_all(self) -> None:
        for child in reversed(self.children.values()):
            child.kill()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.broken.done():
            self.broken.set_exception(error)


def describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_CAP_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def last_lines(log: Path, count: int = SHOWN_LOG_LINES) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return "  (no log)"
    return "\n".join(f"  {line}" for line in text.splitlines()[-count:]) or "  (the log is empty)"


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
