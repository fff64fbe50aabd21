"""One engine that this host answers for, from its start (or adoption) to its end."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import httpx
from temporalio.client import Client
from temporalio.exceptions import ApplicationError

from fleet.access.sealing import CannotOpen, Sealer
from fleet.engines.adapter import EngineAdapter, Probe
from fleet.engines.catalog import adapter_for
from fleet.instances import EngineExit, EnginePhase, EngineReport
from fleet.inventory import EngineRef
from fleet.policy.hang import Level
from fleet.sizing.measured import Measured
from worker_host.control_plane import ControlPlane, Gone
from worker_host.endings import Endings
from worker_host.engine_log import EngineLogs
from worker_host.install import InstallFailed
from worker_host.probes import EngineProbe, Refused, StartTimeout
from worker_host.records import EngineRecord, Records, unpack
from worker_host.reports import Reports
from worker_host.runtime.choice import Runtimes
from worker_host.runtime.protocol import LOOPBACK, CannotStart, Handle, Runtime, RuntimeAway
from worker_host.starting import Starter
from worker_host.task_token import Beat, TaskToken
from worker_host.watch import EngineWatch, Hung

log = logging.getLogger("holdfast.host")

BEAT_S = 20.0
"""A third of ``Timings.engine_heartbeat``."""
_RETRY_S = 2.0
_BUSY_POLL_S = 0.2
_HEALTH_S = 2.0
_WITHDRAW_S = 3.0
_GATEWAYS_REFRESH_S = 0.6
_LAST_WORDS_S = 5.0
"""For what an engine that has ended said last to be in its log."""
_SERVING = (EnginePhase.READY, EnginePhase.SUSPECT)
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
    """Owns one ``EngineRecord``. Every change is on disk before it is acted upon."""

    def __init__(self, parts: HostParts, record: EngineRecord, on_gone: Callable[["SupervisedEngine"], None]) -> None:
        self._parts = parts
        self._record = record
        self._on_gone = on_gone
        self._adapter: EngineAdapter = adapter_for(record.launch.spec)
        self._stop = asyncio.Event()
        self._drain_s = record.launch.drain.total_seconds()
        self._look = asyncio.Event()
        self._confirmed = asyncio.Event()
        self._new_token = asyncio.Event()
        self._reports = Reports(parts.control_plane)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def record(self) -> EngineRecord:
        return self._record

    @property
    def leaving(self) -> bool:
        """It finishes what it has, and takes nothing new."""
        return self._stop.is_set()

    def begin(self) -> None:
        self._tasks = [
            asyncio.create_task(self._live(), name=f"engine {self._record.ref}"),
            asyncio.create_task(self._heartbeat(), name=f"heartbeat {self._record.ref}"),
            asyncio.create_task(self._reports.run(), name=f"reports {self._record.ref}"),
        ]
        self._tasks[0].add_done_callback(self._ended)

    async def take_token(self, token: str) -> None:
        """A new attempt of the activity: answer by the new token, and say again how the engine is."""
        self._save(token=token)
        self._confirmed.set()
        self._new_token.set()
        self._look.set()
        if self._record.ready_since is not None and self._record.ended is None:
            self._report(EnginePhase.SUSPECT if self._record.suspect else EnginePhase.READY)

    def look(self) -> None:
        self._look.set()

    def hurry(self) -> None:
        """Its requests cannot finish: when it is stopped, it is stopped at once."""
        self._drain_s = 0.0
        self._look.set()

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
        process = self._record.process
        served = self._record.ready_since is not None
        if self._record.ended is None:
            self._save(suspended=True, ready_since=None)
        if process is None or not await self._runtime(process).alive(process):
            return
        if served:
            await self._withdraw()
            await self._drain(min(self._drain_s, _SUSPEND_DRAIN_S))
        await self._stop_process(process)

    async def _withdraw(self) -> None:
        """Let no more requests come. If nobody listens now (all is being stopped), so be it."""
        report = self._next_report(EnginePhase.STARTING, "its host is being stopped")
        with contextlib.suppress(asyncio.TimeoutError, Gone):
            async with asyncio.timeout(_WITHDRAW_S):
                await self._parts.control_plane.report(report)
                await asyncio.sleep(_GATEWAYS_REFRESH_S)

    async def metrics(self) -> str | None:
        return await self._probe().metrics() if self._record.port is not None else None

    async def gone(self) -> None:
        """Until nothing is left of it."""
        await asyncio.wait(self._tasks[:1])

    # -- the engine's life ------------------------------------------------------------------------------------

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
        self._parts.records.forget(self._record.launch.instance_id)
        self._on_gone(self)  # at once: a token that comes now is for the next one

    async def _run(self) -> EngineExit:
        """Start or adopt, wait until ready, and on to the end."""
        if self._record.ended is not None:
            return self._record.ended
        if self._record.suspended:
            await self._confirmed.wait()  # it may not be wanted any more
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
                    log.warning("killing %s, %s: %s", self._record.ref, process, why)
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
        known = self._record.process
        if known is None and self._record.attempt > 0 and not self._record.suspended:
            known = await asyncio.to_thread(self._parts.runtimes.find, self._record.ref)
        if known is not None and not self._record.suspended:
            log.info("adopted %s, %s", self._record.ref, known)
            self._save(process=known)
            return known
        if known is not None and await self._runtime(known).alive(known):  # whoever suspended it died before it did
            self._save(process=known, suspended=False)
            return known
        return await self._start()

    async def _start(self) -> Handle:
        job, image = await self._parts.starter.job(self._adapter, self._record, self._say)
        self._save(
            process=None,
            port=job.port,
            attempt=job.attempt,
            image=image,
            suspended=False,
            ready_since=None,
            measured=None,
            suspect=False,
        )
        self._parts.logs.begin(*self._attempt, self._record.launch.placement.env_for_host.values())
        await self._until_followers_accept()
        process = await self._parts.runtimes.start(job)
        self._save(process=process)
        self._parts.logs.prune(job.engine.instance_id)
        log.info("started %s, %s, attempt %d", self._record.ref, process, job.attempt)
        self._report(EnginePhase.STARTING, message="loading the model")
        return process

    async def _until_followers_accept(self) -> None:
        """Where followers are a program that lends its cards, a leader to whom one does not answer at once goes on
        without it. Elsewhere they wait for their leader. Raises CannotStart."""
        launch = self._record.launch
        if launch.rank or not self._adapter.follower_programs:
            return
        for follower in launch.placement.followers:
            self._report(EnginePhase.STARTING, f"waiting for {follower.host_id}")
            try:
                port = follower.ports[0] if follower.ports else 0
                await self._probe().until_accepts(follower.address, port, launch.spec.start_timeout_s)
            except StartTimeout as error:
                raise CannotStart(f"{follower.host_id}: {error}") from error

    def _say(self, share: float | None, message: str) -> None:
        self._report(EnginePhase.DOWNLOADING, message, share)

    async def _serve(self) -> NoReturn:
        """Raises StartTimeout, Refused, and Hung once it has been ready."""
        launch, spec = self._record.launch, self._record.launch.spec
        one_token = self._adapter.readiness(spec, launch.placement.card)
        if self._record.ready_since is None:  # else it was ready before we adopted it, and may be busy now
            await self._until_ready(one_token)
            self._save(ready_since=datetime.now(UTC), measured=await asyncio.to_thread(self._measured))
        while True:
            if launch.rank:  # a follower answers to its leader alone; only its end can be seen
                self._report(EnginePhase.READY)
                await asyncio.Event().wait()
            try:
                await EngineWatch(self._probe(), one_token, spec, self._seen).run(suspect=self._record.suspect)
            except Hung:
                process = self._record.process
                if process is None or not await self._runtime(process).until_back():
                    raise

    async def _until_ready(self, one_token: Probe) -> None:
        """Raises StartTimeout and Refused."""
        launch, probe = self._record.launch, self._probe()
        if not launch.rank:
            await probe.until_ready(one_token, launch.spec.start_timeout_s)
        elif self._adapter.followers_accept and self._record.port is not None:
            await probe.until_accepts(launch.here.address, self._record.port, launch.spec.start_timeout_s)

    def _seen(self, level: Level, reason: str) -> None:
        suspect = level is Level.SUSPECT
        if suspect:
            log.warning("%s: %s", self._record.ref, reason)
        self._save(suspect=suspect)
        self._report(EnginePhase.SUSPECT if suspect else EnginePhase.READY, reason)

    async def _stop_engine(self) -> None:
        process = self._record.process or await asyncio.to_thread(self._parts.runtimes.find, self._record.ref)
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
        if self._record.launch.rank:
            return False
        text = await self._probe().metrics()
        if text is not None or not self._adapter.metrics_path:
            # What has just come, or waits to be read by a client, the engine does not count.
            return self._parts.in_flight(self._record.ref) > 0 or bool(self._adapter.busy(text or ""))
        return not self._record.suspect and await self._probe().healthy(_HEALTH_S)

    async def _stop_process(self, process: Handle) -> None:
        log.info("stopping %s, %s", self._record.ref, process)
        runtime = self._runtime(process)
        talking = asyncio.create_task(runtime.keep_log(process, self._log_path()))
        ending = asyncio.create_task(runtime.wait(process))
        try:
            if not self._record.suspect:  # else it would not hear us
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

    # -- what others hear of it -------------------------------------------------------------------------------

    async def _settle(self, ended: EngineExit | None) -> None:
        """Tell Temporal how it ended (None: stopped as asked), for as long as somebody wants to know."""
        if ended is not None:
            process = self._record.process
            self._save(ended=ended, process=None)
            if process is not None:
                await self._runtime(process).discard(process)
        while True:
            self._new_token.clear()
            if self._record.token is not None:
                beat = await self._tell(TaskToken(self._parts.client, unpack(self._record.token)), ended)
                if beat is Beat.ALIVE or (beat is Beat.VOID and ended is None):
                    return
                if beat is Beat.UNREACHABLE:
                    await asyncio.sleep(_RETRY_S)
                    continue
                if not self._new_token.is_set():
                    self._save(token=None)
            elif ended is None:
                return
            # The workflow went on as new and will ask for this engine again, or it ended and the janitor clears up.
            await self._wait_for_any(self._new_token, self._stop)
            if self._stop.is_set():
                ended = None

    async def _tell(self, token: TaskToken, ended: EngineExit | None) -> Beat:
        if ended is None:
            beat = await token.report_cancellation()
            if beat is not Beat.UNASKED:
                return beat
            ended = self._endings().stopped_unasked()
        log.warning("%s: %s", self._record.ref, ended.summary)
        return await token.fail(ApplicationError(ended.summary, ended, type="EngineExited", non_retryable=True))

    async def _heartbeat(self) -> None:
        while True:
            self._look.clear()
            if self._record.token is not None:
                await self._beat(self._record.token)
            # Not ``wait_for``, which forgets a cancellation that comes together with the event (Python 3.11).
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._look.wait()

    async def _beat(self, token: str) -> None:
        process = self._record.process
        details = {"pid": process.pid if process else None, "ready": self._record.ready_since is not None}
        match await TaskToken(self._parts.client, unpack(token)).heartbeat(details):
            case Beat.ALIVE:
                self._confirmed.set()
            case Beat.STOP:
                self._stop.set()
            case Beat.VOID:
                if self._record.token == token:
                    self._save(token=None)
            case Beat.UNREACHABLE:
                pass

    def _report(self, phase: EnginePhase, message: str = "", progress: float | None = None) -> None:
        self._reports.send(self._next_report(phase, message).model_copy(update={"progress": progress}))

    def _next_report(self, phase: EnginePhase, message: str) -> EngineReport:
        self._save(sequence=self._record.sequence + 1)
        process = self._record.process
        return EngineReport(
            instance_id=self._record.launch.instance_id,
            fence=self._record.launch.fence,
            sequence=self._record.sequence,
            phase=phase,
            url=self._url if phase in _SERVING and not self._record.launch.rank else None,
            pid=process.pid if process else None,
            message=message,
            ready_since=self._record.ready_since,
            image=self._record.image,
            rank=self._record.launch.rank,
            measured=self._record.measured if phase in _SERVING else None,
        )

    @property
    def _url(self) -> str:
        return f"{self._parts.door()}/engines/{self._record.launch.instance_id}"

    # -- small things -----------------------------------------------------------------------------------------

    def _runtime(self, process: Handle) -> Runtime:
        return self._parts.runtimes.of(process)

    def _measured(self) -> Measured | None:
        """From the lines of its start. Of a gang the leader's alone are told. Blocks."""
        return self._adapter.measures(self._parts.logs.beginning(*self._attempt)) or None

    def _log_path(self) -> Path:
        return self._parts.logs.path(*self._attempt)

    @property
    def _attempt(self) -> tuple[str, int]:
        return self._record.launch.instance_id, self._record.attempt

    def _probe(self) -> EngineProbe:
        return EngineProbe(self._parts.http, f"http://{LOOPBACK}:{self._record.port}", self._adapter)

    def _endings(self) -> Endings:
        return Endings(self._parts.logs, self._adapter, self._record, self._env_values())

    def _env_values(self) -> tuple[str, ...]:
        with contextlib.suppress(CannotOpen):
            return tuple(self._parts.sealer.open(v) for v in self._record.launch.placement.env_for_host.values())
        return ()

    def _save(self, **changes: object) -> None:
        self._record = self._record.with_(**changes)
        self._parts.records.save(self._record)

    def _ended(self, task: asyncio.Task[None]) -> None:
        for other in self._tasks[1:]:
            other.cancel()
        if not task.cancelled():
            if error := task.exception():
                log.error("supervision of %s broke", self._record.ref, exc_info=error)
            self._on_gone(self)

    @staticmethod
    async def _wait_for_any(*events: asyncio.Event) -> None:
        waiting = [asyncio.create_task(e.wait()) for e in events]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
