"""The life of one engine that this host answers for, from its start (or adoption) to its end."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import httpx
from temporalio.client import Client

from fleet.access.sealing import CannotOpen, Sealer
from fleet.engines.adapter import EngineAdapter, Probe
from fleet.engines.catalog import adapter_for
from fleet.instances import EngineExit, EnginePhase
from fleet.inventory import EngineRef
from fleet.policy.hang import Level
from fleet.sizing.measured import Measured
from worker_host.control_plane import ControlPlane
from worker_host.endings import Endings
from worker_host.engine_load import LastLook
from worker_host.engine_log import EngineLogs
from worker_host.install import InstallFailed
from worker_host.probes import EngineProbe, Refused, StartTimeout
from worker_host.records import EngineRecord, Records
from worker_host.runtime.choice import Runtimes
from worker_host.runtime.protocol import LOOPBACK, CannotStart, Handle, Runtime, RuntimeAway
from worker_host.starting import Starter
from worker_host.telling import Listeners, Telling
from worker_host.watch import EngineWatch, Hung

log = logging.getLogger("holdfast.host")

_BUSY_POLL_S = 0.2
_HEALTH_S = 2.0
_LAST_WORDS_S = 5.0
"""For what an engine that has ended said last to be in its log."""
_SUSPEND_DRAIN_S = 10.0
"""A person waits for the host to end."""


@dataclass(frozen=True)
class HostParts:
    """What every engine of this host needs."""

    client: Client
    control_plane: ControlPlane
    records: Records
    runtimes: Runtimes
    starter: Starter
    logs: EngineLogs
    sealer: Sealer
    http: httpx.AsyncClient
    door: Callable[[], str]
    """URL of this host's own port."""
    in_flight: Callable[[EngineRef], int]
    """Requests on their way through this host to an engine and back."""


class SupervisedEngine:
    """Starts or adopts, watches, drains and stops it. Every change is on disk before it is acted upon."""

    def __init__(self, parts: HostParts, record: EngineRecord, on_gone: Callable[["SupervisedEngine"], None]) -> None:
        self._parts = parts
        self._on_gone = on_gone
        self._adapter: EngineAdapter = adapter_for(record.launch.spec)
        self._stop = asyncio.Event()
        self._drain_s = record.launch.drain.total_seconds()
        self.last_look = LastLook()
        listeners = Listeners(parts.client, parts.control_plane, parts.records, parts.door)
        self._telling = Telling(listeners, record, self._stop)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def record(self) -> EngineRecord:
        return self._telling.record

    @property
    def leaving(self) -> bool:
        """It finishes what it has, and takes nothing new."""
        return self._stop.is_set()

    def begin(self) -> None:
        self._tasks = [
            asyncio.create_task(self._live(), name=f"engine {self.record.ref}"),
            asyncio.create_task(self._telling.send_heartbeats(), name=f"heartbeat {self.record.ref}"),
            asyncio.create_task(self._telling.send_reports(), name=f"reports {self.record.ref}"),
        ]
        self._tasks[0].add_done_callback(self._ended)

    async def take_token(self, token: str, heartbeat: timedelta | None) -> None:
        """A new attempt of the activity: answer by the new token, and say again how the engine is."""
        self._telling.take_token(token, heartbeat)

    def look(self) -> None:
        self._telling.look()

    def hurry(self) -> None:
        """Its requests cannot finish: when it is stopped, it is stopped at once."""
        self._drain_s = 0.0
        self._telling.look()

    def stop(self, *, drain: bool) -> None:
        """End the engine; ``drain``: let requests finish first."""
        if not drain:
            self._drain_s = 0.0
        self._stop.set()

    async def let_go(self) -> None:
        """Stop answering for the engine and leave it running: another process will adopt it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def suspend(self) -> None:
        """Stop the process but stay responsible: the next host process starts it again under the same fence."""
        await self.let_go()
        process = self.record.process
        served = self.record.ready_since is not None
        if self.record.ended is None:
            self._telling.save(suspended=True, ready_since=None)
        if process is None or not await self._runtime(process).alive(process):
            return
        if served:
            await self._telling.withdraw()
            await self._drain(min(self._drain_s, _SUSPEND_DRAIN_S))
        await self._stop_process(process)

    async def metrics(self) -> str | None:
        return await self._probe().metrics() if self.record.port is not None else None

    async def gone(self) -> None:
        """Until nothing is left of it."""
        await asyncio.wait(self._tasks[:1])

    # -- its life -----------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        stopping = asyncio.create_task(self._stop.wait())
        running = asyncio.create_task(self._run())
        try:
            await asyncio.wait({stopping, running}, return_when=asyncio.FIRST_COMPLETED)
            if running.done() and not self._stop.is_set():
                await self._settle(running.result())
            else:
                running.cancel()
                await asyncio.wait({running})
                await self._stop_engine()
                await self._settle(None)
        finally:
            stopping.cancel()
            running.cancel()
        for other in self._tasks[1:]:
            other.cancel()  # they would write the record again
        self._telling.forget()
        self._on_gone(self)  # at once: a token that comes now is for the next one

    async def _run(self) -> EngineExit:
        """Start or adopt, wait until ready, and on to the end."""
        if self.record.ended is not None:
            return self.record.ended
        if self.record.suspended:
            await self._telling.until_wanted()  # it may not be wanted any more
        try:
            process = await self._process()
        except (CannotStart, InstallFailed, RuntimeAway, CannotOpen, OSError) as error:
            return self._endings().never_started(str(error))
        runtime = self._runtime(process)
        talking = asyncio.create_task(runtime.keep_log(process, self._log_path()))
        ending = asyncio.create_task(runtime.wait(process))
        serving = asyncio.create_task(self._serve())
        try:
            await asyncio.wait({ending, serving}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                try:
                    serving.result()
                except (StartTimeout, Refused, Hung) as why:
                    log.warning("killing %s, %s: %s", self.record.ref, process, why)
                    await runtime.kill(process)
                    await ending
                    await asyncio.wait({talking}, timeout=_LAST_WORDS_S)
                    return self._endings().given_up(why)
            await asyncio.wait({talking}, timeout=_LAST_WORDS_S)
            return self._endings().ended(await ending)
        finally:
            for task in (talking, ending, serving):
                task.cancel()

    async def _process(self) -> Handle:
        """The running engine, adopted or started; or one that ended while nobody watched."""
        known = self.record.process
        if known is None and self.record.attempt > 0 and not self.record.suspended:
            known = await asyncio.to_thread(self._parts.runtimes.find, self.record.ref)
        if known is not None and not self.record.suspended:
            log.info("adopted %s, %s", self.record.ref, known)
            self._telling.save(process=known)
            return known
        if known is not None and await self._runtime(known).alive(known):  # whoever suspended it died before it did
            self._telling.save(process=known, suspended=False)
            return known
        return await self._start()

    async def _start(self) -> Handle:
        job, image = await self._parts.starter.job(self._adapter, self.record, self._say)
        self._telling.save(
            process=None,
            port=job.port,
            attempt=job.attempt,
            image=image,
            suspended=False,
            ready_since=None,
            measured=None,
            suspect=False,
        )
        self._parts.logs.begin(*self._attempt, self.record.launch.placement.env_for_host.values())
        await self._until_followers_accept()
        process = await self._parts.runtimes.start(job)
        self._telling.save(process=process)
        self._parts.logs.prune(job.engine.instance_id)
        log.info("started %s, %s, attempt %d", self.record.ref, process, job.attempt)
        self._telling.report(EnginePhase.STARTING, message="loading the model")
        return process

    async def _until_followers_accept(self) -> None:
        """Where followers are a program that lends its cards, a leader to whom one does not answer at once goes on
        without it. Elsewhere they wait for their leader. Raises CannotStart."""
        launch = self.record.launch
        if launch.rank or not self._adapter.follower_programs:
            return
        for follower in launch.placement.followers:
            self._telling.report(EnginePhase.STARTING, f"waiting for {follower.host_id}")
            try:
                port = follower.ports[0] if follower.ports else 0
                await self._probe().until_accepts(follower.address, port, launch.spec.start_timeout_s)
            except StartTimeout as error:
                raise CannotStart(f"{follower.host_id}: {error}") from error

    def _say(self, share: float | None, message: str) -> None:
        self._telling.report(EnginePhase.DOWNLOADING, message, share)

    async def _serve(self) -> NoReturn:
        """Raises StartTimeout, Refused, and Hung once it has been ready."""
        launch, spec = self.record.launch, self.record.launch.spec
        one_token = self._adapter.readiness(spec, launch.placement.card)
        if self.record.ready_since is None:  # else it was ready before we adopted it, and may be busy now
            await self._until_ready(one_token)
            self._telling.save(ready_since=datetime.now(UTC), measured=await asyncio.to_thread(self._measured))
        while True:
            if launch.rank:  # a follower answers to its leader alone; only its end can be seen
                self._telling.report(EnginePhase.READY)
                await asyncio.Event().wait()
            try:
                watch = EngineWatch(self._probe(), one_token, spec, self._seen, self.last_look)
                await watch.run(suspect=self.record.suspect)
            except Hung:
                process = self.record.process
                if process is None or not await self._runtime(process).until_back():
                    raise

    async def _until_ready(self, one_token: Probe) -> None:
        """Raises StartTimeout and Refused."""
        launch, probe = self.record.launch, self._probe()
        if not launch.rank:
            await probe.until_ready(one_token, launch.spec.start_timeout_s)
        elif self._adapter.followers_accept and self.record.port is not None:
            await probe.until_accepts(launch.here.address, self.record.port, launch.spec.start_timeout_s)

    def _seen(self, level: Level, reason: str) -> None:
        suspect = level is Level.SUSPECT
        if suspect:
            log.warning("%s: %s", self.record.ref, reason)
        self._telling.save(suspect=suspect)
        self._telling.report(EnginePhase.SUSPECT if suspect else EnginePhase.READY, reason)

    async def _stop_engine(self) -> None:
        process = self.record.process or await asyncio.to_thread(self._parts.runtimes.find, self.record.ref)
        if process is None:
            return
        if not await self._runtime(process).alive(process):
            await self._runtime(process).discard(process)
            return
        await self._drain(self._drain_s)
        await self._stop_process(process)

    async def _drain(self, longest_s: float) -> None:
        """Until it has no request left. Not for one that hangs: its requests will not finish."""
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(longest_s):
                while self._drain_s and await self._working():  # ``stop`` may cut it short
                    await asyncio.sleep(_BUSY_POLL_S)

    async def _working(self) -> bool:
        """Late metrics may come of much work; then its health check answers all the same."""
        if self.record.launch.rank:
            return False
        text = await self._probe().metrics()
        if text is not None or not self._adapter.metrics_path:
            # What has just come, or waits to be read by a client, the engine does not count.
            return self._parts.in_flight(self.record.ref) > 0 or bool(self._adapter.busy(text or ""))
        return not self.record.suspect and await self._probe().healthy(_HEALTH_S)

    async def _stop_process(self, process: Handle) -> None:
        log.info("stopping %s, %s", self.record.ref, process)
        runtime = self._runtime(process)
        talking = asyncio.create_task(runtime.keep_log(process, self._log_path()))
        ending = asyncio.create_task(runtime.wait(process))
        try:
            if not self.record.suspect:  # else it would not hear us
                await runtime.terminate(process)
                await asyncio.wait({ending}, timeout=self._adapter.stop_grace_s)
            if not ending.done():
                await runtime.kill(process)
                await ending
            await asyncio.wait({talking}, timeout=_LAST_WORDS_S)
        finally:
            talking.cancel()
            ending.cancel()
        await runtime.discard(process)

    async def _settle(self, ended: EngineExit | None) -> None:
        """Tell how it ended; None: stopped as asked."""
        if ended is not None:
            process = self.record.process
            self._telling.save(ended=ended, process=None)
            if process is not None:
                await self._runtime(process).discard(process)
        await self._telling.settle(ended, lambda: self._endings().stopped_unasked())

    # -- small things -------------------------------------------------------------------------------------------------

    def _runtime(self, process: Handle) -> Runtime:
        return self._parts.runtimes.of(process)

    def _measured(self) -> Measured | None:
        """From the lines of its start. Of a gang the leader's alone are told. Blocks."""
        return self._adapter.measures(self._parts.logs.beginning(*self._attempt)) or None

    def _log_path(self) -> Path:
        return self._parts.logs.path(*self._attempt)

    @property
    def _attempt(self) -> tuple[str, int]:
        return self.record.launch.instance_id, self.record.attempt

    def _probe(self) -> EngineProbe:
        return EngineProbe(self._parts.http, f"http://{LOOPBACK}:{self.record.port}", self._adapter)

    def _endings(self) -> Endings:
        return Endings(self._parts.logs, self._adapter, self.record, self._env_values())

    def _env_values(self) -> tuple[str, ...]:
        with contextlib.suppress(CannotOpen):
            return tuple(self._parts.sealer.open(v) for v in self.record.launch.placement.env_for_host.values())
        return ()

    def _ended(self, task: asyncio.Task[None]) -> None:
        for other in self._tasks[1:]:
            other.cancel()
        if not task.cancelled():
            if error := task.exception():
                log.error("supervision of %s broke", self.record.ref, exc_info=error)
            self._on_gone(self)
