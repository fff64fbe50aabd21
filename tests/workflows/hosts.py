"""Hosts that answer for engines by task token, as real ones do, but whose engines are objects."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

from temporalio import activity
from temporalio.client import AsyncActivityCancelledError, Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from activities.contracts import HostContract
from fleet import ids
from fleet.gangs import Acceptance
from fleet.hosts import HostLease
from fleet.instances import EngineExit, EngineLaunch, EnginePhase, EngineReport
from fleet.inventory import EngineRef
from tests.workflows.server import IDENTITY

BEAT_S = 0.1


def exit_error(ended: EngineExit) -> ApplicationError:
    return ApplicationError(ended.summary, ended, type="EngineExited", non_retryable=True)


@dataclass
class FakeEngine:
    """One engine process. It outlives the activity that asked for it."""

    client: Client
    launch: EngineLaunch
    token: bytes
    asked_for: int = 1
    """How many activities have asked for it; all but the first adopted it."""
    running: bool = True
    ended: EngineExit | None = None
    sequence: int = 0
    ready_since: datetime | None = None

    @property
    def ref(self) -> EngineRef:
        return EngineRef(instance_id=self.launch.instance_id, fence=self.launch.fence)

    async def report(self, phase: EnginePhase, **fields: object) -> None:
        """Say how it is. ``sequence`` and ``fence`` may be given to speak of the past."""
        self.sequence += 1
        report = EngineReport(
            instance_id=self.launch.instance_id,
            fence=self.launch.fence,
            sequence=self.sequence,
            phase=phase,
            url=f"http://127.0.0.1:{1000 + self.launch.fence}" if self._is_reached(phase) else None,
            pid=100 + self.launch.fence,
            ready_since=self.ready_since,
            rank=self.launch.rank,
        ).model_copy(update=fields)
        handle = self.client.get_workflow_handle(ids.instance_workflow(self.launch.instance_id))
        await handle.signal(ids.ENGINE_REPORTED_SIGNAL, report)

    def _is_reached(self, phase: EnginePhase) -> bool:
        return phase is EnginePhase.READY and self.launch.rank == 0

    async def become_ready(self) -> None:
        self.ready_since = self.ready_since or datetime.now(UTC)
        await self.report(EnginePhase.READY)

    async def crash(self, ended: EngineExit | None = None) -> None:
        """It ends by itself, and its host says how. A host that nobody listens to keeps that for the next who asks."""
        self.running = False
        self.ended = ended or EngineExit(exit_code=-11, failure_class="crashed")
        try:
            await self.client.get_async_activity_handle(task_token=self.token).fail(exit_error(self.ended))
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise

    async def look(self) -> None:
        """Heartbeat; a cancellation that the workflow asked for stops the engine."""
        handle = self.client.get_async_activity_handle(task_token=self.token)
        try:
            await handle.heartbeat()
        except AsyncActivityCancelledError as error:
            if error.details is not None and error.details.cancel_requested:
                self.running = False
                await handle.report_cancellation()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


class FakeHost(HostContract):
    """A worker on the host's queue. ``die`` and ``revive`` are what a power cut does."""

    def __init__(self, client: Client, host_id: str) -> None:
        self._client = client
        self.host_id = host_id
        self.engines: list[FakeEngine] = []
        """All that ever ran here, oldest first."""
        self.makes_ready = True
        """Engines become ready as soon as they are started."""
        self.looks = True
        """Whether it follows the hint to look; without it a cancellation is noticed at the next heartbeat."""
        self.next_exits: list[EngineExit] = []
        """The next engines end like this instead of starting."""
        self.accepted: list[EngineLaunch] = []
        """Parts of gangs that it was asked whether it can run them."""
        self.next_refusals: list[EngineExit] = []
        """Why it cannot run the next ones."""
        self.answers = asyncio.Event()
        """Cleared: it does not answer whether it can."""
        self.answers.set()
        self.first_sequence = 0
        """Real hosts take the time: what they say after they forgot everything is newer than all that was said."""
        self.hurried: list[EngineRef] = []
        self.leases = 0
        self._beating: asyncio.Task[None] | None = None
        self._serving: tuple[Worker, asyncio.Task[None]] | None = None

    @property
    def live(self) -> list[FakeEngine]:
        return [e for e in self.engines if e.running]

    @property
    def holds_lease(self) -> bool:
        return self._beating is not None and not self._beating.done()

    async def revive(self) -> None:
        worker = Worker(
            self._client,
            task_queue=ids.host_queue(self.host_id),
            activities=[
                self.run_engine,
                self.look_at_engine,
                self.accept_engine,
                self.hurry_engine,
                self.hold_lease,
                self.answer_roll_call,
            ],
            identity=f"{IDENTITY}-host",
            max_concurrent_activity_task_polls=2,
        )
        self._serving = worker, asyncio.create_task(worker.run())

    async def die(self) -> None:
        """Its process is gone, and so are all its engines' supervisors. Engines go on, unwatched."""
        self.stop_lease()
        if self._serving is not None:
            worker, running = self._serving
            self._serving = None
            await worker.shutdown()
            await running

    def stop_lease(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None

    @activity.defn(name="run_engine")
    async def run_engine(self, launch: EngineLaunch) -> EngineExit:
        token = activity.info().task_token
        known = [e for e in self.engines if e.launch.instance_id == launch.instance_id]
        if any(e.launch.fence > launch.fence for e in known):
            raise ApplicationError("a newer engine of this instance is known here", type="Stale", non_retryable=True)
        same = [e for e in known if e.launch.fence == launch.fence]
        if same:
            await self._adopt(same[0], token)
        else:
            await self._start(launch, token)
        activity.raise_complete_async()

    async def _adopt(self, engine: FakeEngine, token: bytes) -> None:
        engine.token = token
        engine.asked_for += 1
        if engine.ended is not None:
            raise exit_error(engine.ended)
        if engine.ready_since is not None:
            await engine.report(EnginePhase.READY)

    async def _start(self, launch: EngineLaunch, token: bytes) -> None:
        engine = FakeEngine(self._client, launch, token, sequence=self.first_sequence)
        self.engines.append(engine)
        if self.next_exits:
            engine.running, engine.ended = False, self.next_exits.pop(0)
            raise exit_error(engine.ended)
        if self.makes_ready:
            await engine.report(EnginePhase.STARTING)
            await engine.become_ready()

    @activity.defn(name="look_at_engine")
    async def look_at_engine(self, engine: EngineRef) -> None:
        if self.looks:
            for known in self.live:
                if known.ref == engine:
                    await known.look()

    @activity.defn(name="accept_engine")
    async def accept_engine(self, launch: EngineLaunch) -> Acceptance:
        self.accepted.append(launch)
        await self.answers.wait()
        return Acceptance(refusal=self.next_refusals.pop(0) if self.next_refusals else None)

    @activity.defn(name="hurry_engine")
    async def hurry_engine(self, engine: EngineRef) -> None:
        self.hurried.append(engine)
        await self.look_at_engine(engine)

    @activity.defn(name="hold_lease")
    async def hold_lease(self, lease: HostLease) -> None:
        self.stop_lease()
        self.leases += 1
        self._beating = asyncio.create_task(self._beat(activity.info().task_token))
        activity.raise_complete_async()

    async def _beat(self, token: bytes) -> None:
        handle = self._client.get_async_activity_handle(task_token=token)
        while True:
            try:
                await handle.heartbeat()
            except AsyncActivityCancelledError:
                await handle.report_cancellation()
                return
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    return
                raise
            await asyncio.sleep(BEAT_S)

    @activity.defn(name="answer_roll_call")
    async def answer_roll_call(self) -> None:
        """That it runs is the answer."""
