"""What others hear of one engine: its record on disk, heartbeats, reports, and how it ended."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from temporalio.client import Client
from temporalio.exceptions import ApplicationError

from fleet.instances import EngineExit, EnginePhase, EngineReport
from worker_host.control_plane import ControlPlane, Gone
from worker_host.records import EngineRecord, Records, unpack
from worker_host.reports import Reports
from worker_host.task_token import Beat, TaskToken

log = logging.getLogger("holdfast.host")

BEAT_S = 20.0
"""Where Temporal does not say how long it waits."""
_BEATS = 3
"""So many while Temporal waits: one may be lost, and one late."""
_RETRY_S = 2.0
_WITHDRAW_S = 3.0
_GATEWAYS_REFRESH_S = 0.6
_SERVING = (EnginePhase.READY, EnginePhase.SUSPECT)


@dataclass(frozen=True)
class Listeners:
    """Who hears of engines, and from where requests reach them."""

    client: Client
    control_plane: ControlPlane
    records: Records
    door: Callable[[], str]
    """URL of this host's own port."""


class Telling:
    """Owns one ``EngineRecord``. Every change is on disk before anybody hears of it."""

    def __init__(self, listeners: Listeners, record: EngineRecord, stop: asyncio.Event) -> None:
        """``stop``: set as soon as Temporal says that the engine is wanted no more."""
        self._listeners = listeners
        self._record = record
        self._stop = stop
        self._look = asyncio.Event()
        self._confirmed = asyncio.Event()
        self._new_token = asyncio.Event()
        self._reports = Reports(listeners.control_plane)

    @property
    def record(self) -> EngineRecord:
        return self._record

    def save(self, **changes: object) -> None:
        self._record = self._record.with_(**changes)
        self._listeners.records.save(self._record)

    def forget(self) -> None:
        """Nothing may be saved after it."""
        self._listeners.records.forget(self._record.launch.instance_id)

    def take_token(self, token: str, heartbeat: timedelta | None) -> None:
        """A new attempt of the activity: answer by the new token, and say again how the engine is."""
        self.save(token=token, heartbeat=heartbeat)
        self._confirmed.set()
        self._new_token.set()
        self._look.set()
        if self._record.ready_since is not None and self._record.ended is None:
            self.report(EnginePhase.SUSPECT if self._record.suspect else EnginePhase.READY)

    def look(self) -> None:
        """Ask at once whether the engine is still wanted."""
        self._look.set()

    async def until_wanted(self) -> None:
        """Until Temporal has confirmed that the engine is."""
        await self._confirmed.wait()

    # -- the control plane --------------------------------------------------------------------------------------------

    async def send_reports(self) -> None:
        """Until cancelled."""
        await self._reports.run()

    def report(self, phase: EnginePhase, message: str = "", progress: float | None = None) -> None:
        self._reports.send(self._next_report(phase, message).model_copy(update={"progress": progress}))

    async def withdraw(self) -> None:
        """Let no more requests come. If nobody listens now (all is being stopped), so be it."""
        report = self._next_report(EnginePhase.STARTING, "its host is being stopped")
        with contextlib.suppress(asyncio.TimeoutError, Gone):
            async with asyncio.timeout(_WITHDRAW_S):
                await self._listeners.control_plane.report(report)
                await asyncio.sleep(_GATEWAYS_REFRESH_S)

    def _next_report(self, phase: EnginePhase, message: str) -> EngineReport:
        self.save(sequence=self._record.sequence + 1)
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
        return f"{self._listeners.door()}/engines/{self._record.launch.instance_id}"

    # -- Temporal -----------------------------------------------------------------------------------------------------

    async def send_heartbeats(self) -> None:
        """Until cancelled."""
        while True:
            self._look.clear()
            if self._record.token is not None:
                await self._beat(self._record.token)
            # Not ``wait_for``, which forgets a cancellation that comes together with the event (Python 3.11).
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(self._beat_s):
                    await self._look.wait()

    @property
    def _beat_s(self) -> float:
        heartbeat = self._record.heartbeat
        return heartbeat.total_seconds() / _BEATS if heartbeat else BEAT_S

    async def _beat(self, token: str) -> None:
        process = self._record.process
        details = {"pid": process.pid if process else None, "ready": self._record.ready_since is not None}
        match await self._task(token).heartbeat(details):
            case Beat.ALIVE:
                self._confirmed.set()
            case Beat.STOP:
                self._stop.set()
            case Beat.VOID:
                if self._record.token == token:
                    self.save(token=None)
            case Beat.UNREACHABLE:
                pass

    async def settle(self, ended: EngineExit | None, unasked: Callable[[], EngineExit]) -> None:
        """Tell Temporal how it ended (None: stopped as asked), for as long as somebody wants to know. ``unasked``: what
        to say where it was stopped and Temporal did not ask for that."""
        while True:
            self._new_token.clear()
            if self._record.token is not None:
                beat = await self._tell(self._task(self._record.token), ended, unasked)
                if beat is Beat.ALIVE or (beat is Beat.VOID and ended is None):
                    return
                if beat is Beat.UNREACHABLE:
                    await asyncio.sleep(_RETRY_S)
                    continue
                if not self._new_token.is_set():
                    self.save(token=None)
            elif ended is None:
                return
            # The workflow went on as new and will ask for this engine again, or it ended and the janitor clears up.
            await _until_any(self._new_token, self._stop)
            if self._stop.is_set():
                ended = None

    async def _tell(self, task: TaskToken, ended: EngineExit | None, unasked: Callable[[], EngineExit]) -> Beat:
        if ended is None:
            beat = await task.report_cancellation()
            if beat is not Beat.UNASKED:
                return beat
            ended = unasked()
        log.warning("%s: %s", self._record.ref, ended.summary)
        return await task.fail(ApplicationError(ended.summary, ended, type="EngineExited", non_retryable=True))

    def _task(self, token: str) -> TaskToken:
        return TaskToken(self._listeners.client, unpack(token))


async def _until_any(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(e.wait()) for e in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
