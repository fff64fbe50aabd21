"""``holdfast gateway``: a small parent that holds the port, and the workers that serve it.

Each worker has a listening socket of its own on the one port, and the system spreads connections evenly over them. The
parent keeps all of these sockets open, so that whatever was not accepted by one worker is by the next in its place: a
reload, or a worker that dies, refuses nobody.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError
from pydantic_settings import SettingsError

from api.gateway.shared_metrics import ENVIRONMENT
from fleet.logs import configure_logging
from fleet.serving import CannotListen, listen
from fleet.settings import Settings

log = logging.getLogger("holdfast.gateway")

_READY_WITHIN_S = 60.0
"""A new worker that takes longer is given up, and the old ones stay."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
"""Before a worker that died is replaced; what waits at its socket waits for so long."""
_PROVEN_S = 10.0
"""A worker that lived so long is replaced at once."""
_LOOK_EVERY_S = 0.02
_LATE_S = 10.0
"""Beyond its time to finish; then a worker is killed."""
_SHARES = sys.platform == "linux"
"""Elsewhere the system does not spread connections over several sockets: there, workers share one."""


class Worker:
    """One process."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self._writer = writer
        self.ready = asyncio.create_task(reader.readline())
        """Not empty: it accepts connections."""

    @property
    def serves(self) -> bool:
        return self.ready.done() and bool(self.ready.result())

    def tell(self, order: str) -> None:
        if not self._writer.is_closing():
            self._writer.write(f"{order}\n".encode())

    async def gone(self) -> int:
        code = await self.process.wait()
        self._writer.close()
        return code


async def start_worker(listening: Sequence[socket.socket], env: Mapping[str, str], *, wait: bool) -> Worker:
    """``wait``: it accepts nothing before it has its table of models."""
    ours, theirs = socket.socketpair()
    with theirs:
        numbers = [one.fileno() for one in listening]
        command = [sys.executable, "-P", "-m", "api.gateway_worker", "--control", str(theirs.fileno())]
        process = await asyncio.create_subprocess_exec(
            *command,
            *(["--wait"] if wait else []),
            *map(str, numbers),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), *numbers),
            env=dict(env),
            start_new_session=True,  # Ctrl-C is for the parent, which tells them
        )
    return Worker(process, *await asyncio.open_connection(sock=ours))


@dataclass(eq=False)
class Generation:
    """Workers of the same code and settings: one in each place, again when it dies."""

    places: Sequence[Sequence[socket.socket]]
    """The sockets of each."""
    env: Mapping[str, str]
    drain_s: float
    replaces: bool
    """Others serve until it is ready: none of it accepts anything before it can answer, or is tried twice."""
    _workers: dict[int, Worker] = field(default_factory=dict)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    _leaving: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(place)) for place in range(len(self.places))]

    async def ready(self) -> bool:
        """Whether all of its workers accept connections; False as soon as one has ended before it did."""
        while not any(task.done() for task in self._tasks):
            if sum(worker.serves for worker in self._workers.values()) == len(self.places):
                return True
            await asyncio.sleep(_LOOK_EVERY_S)
        return False

    def promote(self) -> None:
        """It serves alone from now on."""
        self.replaces = False
        for place, task in enumerate(self._tasks):
            if task.done():  # its worker died just now
                self._tasks[place] = asyncio.create_task(self._keep(place))

    def tell(self, order: str) -> None:
        """``retire``, ``stop`` or ``end``: none is started again, and each ends by and by."""
        self._leaving.set()
        for worker in self._workers.values():
            worker.tell(order)

    async def gone(self) -> None:
        """After ``tell``. Kills what takes much longer than its time to finish."""
        _, late = await asyncio.wait(self._tasks, timeout=self.drain_s + _LATE_S)
        if late:
            await self.kill()

    async def kill(self) -> None:
        for worker in self._workers.values():
            if worker.process.returncode is None:
                worker.process.kill()
        await asyncio.wait(self._tasks)

    async def _keep(self, place: int) -> None:
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE_S
        while not self._leaving.is_set():
            others = any(worker.serves for worker in self._workers.values())
            worker = await start_worker(self.places[place], self.env, wait=self.replaces or others)
            self._workers[place] = worker
            if self._leaving.is_set():
                worker.tell("stop")
            began = loop.time()
            code = await worker.gone()
            del self._workers[place]
            if self._leaving.is_set() or self.replaces:
                return
            log.error("worker %d ended with %d, starting another one", worker.process.pid, code)
            pause = _FIRST_PAUSE_S if loop.time() - began > _PROVEN_S else min(2 * pause, _LONGEST_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), pause)


class GatewayWorkers:
    """The parent."""

    def __init__(self, settings: Settings, metrics_folder: str) -> None:
        """Binds the port. Raises CannotListen."""
        listen(settings.bind, settings.port).close()  # else we would share it with another gateway of ours
        self._metrics_folder = metrics_folder
        self._settings = settings
        self._address = settings.bind, settings.port
        self._sockets: list[socket.socket] = []
        self._serving = self._generation(replaces=False)
        self._leaving: dict[Generation, asyncio.Task[None]] = {}
        self._stop, self._hurry, self._reload = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Until told to stop, by a signal; then everything has ended."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        self._serving.start()
        log.info("gateway on http://%s:%d, workers: %d", *self._address, self._settings.gateway_workers)
        while await _first(self._stop, self._reload) is not self._stop:
            self._reload.clear()
            await self._replace()
        await self._end()

    def _on_stop(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def _replace(self) -> None:
        """New workers in place of those that serve; if they do not get ready, nothing changes."""
        try:
            self._settings = Settings()
            fresh = self._generation(replaces=True)
        except (ValidationError, SettingsError, ValueError, CannotListen) as error:
            log.error("not reloaded, the settings are wrong: %s", error)
            return
        log.info("reloading: starting %d new workers", len(fresh.places))
        fresh.start()
        if not await self._gets_ready(fresh):
            log.error("not reloaded, new workers did not get ready; the old ones go on")
            fresh.tell("stop")
            self._let_go(fresh)
            return
        old, self._serving = self._serving, fresh
        fresh.promote()
        old.tell("retire")
        self._let_go(old)
        log.info("reloaded")

    async def _gets_ready(self, fresh: Generation) -> bool:
        ready = asyncio.create_task(fresh.ready())
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({ready, stop}, timeout=_READY_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if ready.done():
            return ready.result()
        ready.cancel()
        return False

    def _let_go(self, generation: Generation) -> None:
        task = self._leaving[generation] = asyncio.create_task(generation.gone())
        task.add_done_callback(lambda _: self._leaving.pop(generation))

    async def _end(self) -> None:
        generations = [self._serving, *self._leaving]
        for generation in generations:
            generation.tell("stop")
        for one in self._sockets:
            one.close()  # once the workers have closed theirs, too, connections are refused
        gone = [asyncio.create_task(generation.gone()) for generation in generations]
        if not await self._all(gone):
            for generation in generations:
                generation.tell("end")
            _, late = await asyncio.wait(gone, timeout=_LATE_S)
            if late:
                await asyncio.gather(*(generation.kill() for generation in generations))

    async def _all(self, gone: Sequence["asyncio.Task[None]"]) -> bool:
        """Wait for them; False when told to hurry before."""
        hurry = asyncio.create_task(self._hurry.wait())
        left = set(gone)
        while left and not hurry.done():
            done, _ = await asyncio.wait({*left, hurry}, return_when=asyncio.FIRST_COMPLETED)
            left -= done
        hurry.cancel()
        return not left

    def _generation(self, *, replaces: bool) -> Generation:
        """Raises CannotListen."""
        count = self._settings.gateway_workers
        while len(self._sockets) < (count if _SHARES else 1):
            self._sockets.append(listen(*self._address, shared=_SHARES))
        # None is ever closed, as people may be waiting there: of fewer workers each gets more.
        places = [self._sockets[place::count] for place in range(count)] if _SHARES else [self._sockets] * count
        env = {ENVIRONMENT: self._metrics_folder, **os.environ}
        return Generation(places, env, self._settings.drain_s, replaces)


async def _first(*events: asyncio.Event) -> asyncio.Event:
    """The first of ``events`` that is set."""
    waits = {asyncio.create_task(event.wait()): event for event in events}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in waits:
        task.cancel()
    return next(event for event in events if event.is_set())


async def _run(settings: Settings) -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-gateway-", ignore_cleanup_errors=True) as folder:
        await GatewayWorkers(settings, folder).run()


def main(settings: Settings) -> int:
    configure_logging()
    try:
        asyncio.run(_run(settings))
    except CannotListen as error:
        log.error("%s: set HOLDFAST_PORT or HOLDFAST_BIND", error)
        return 1
    return 0
