"""One workflow per instance: place it, keep its engine running, recover it, stop it."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, is_cancelled_exception
from temporalio.workflow import ActivityCancellationType, ActivityHandle

with workflow.unsafe.imports_passed_through():
    from activities.contracts import (
        GpuContract,
        GpuFault,
        HostContract,
        InstanceId,
        PlacementContract,
        ProjectionContract,
        ReleaseRequest,
    )
    from fleet import ids
    from fleet.deployments import Accepted
    from fleet.instances import (
        EngineExit,
        EngineLaunch,
        EngineReport,
        Instance,
        StopRequest,
        accepts,
        apply_report,
        describe,
        news_of,
        placement_request,
    )
    from fleet.inventory import EngineRef
    from fleet.placement.request import Placement
    from fleet.recovery import after_failure, approved, lapsed
    from fleet.states import InstanceState
    from fleet.temporal import DEPLOYMENT, HOST, KIND, MODEL, REVISION, STATE
    from workflows.handles import let_go
    from workflows.projection import Numbers

FOREVER = timedelta(days=3650)
_RECORD = workflow.LocalActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
)


@workflow.defn(name=ids.INSTANCE_WORKFLOW)
class InstanceWorkflow:
    """Level-triggered: handlers set levels, one loop acts on them."""

    @workflow.init
    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._numbers = Numbers(instance.projection)
        self._last_sequence = -1
        self._lost_hosts: set[str] = set()
        self._capacity_changed = False
        self._recorded: Instance | None = None
        self._told: Instance | None = None
        self._claim_lost = False
        self._engine_unknown = False
        self._attributes: tuple[str, str] | None = None

    @workflow.run
    async def run(self, instance: Instance) -> None:
        try:
            await self._live()
        except (asyncio.CancelledError, ActivityError) as error:
            if not is_cancelled_exception(error):
                raise
            workflow.logger.info("cancelled by a person in the middle of something; the host clears up what ran")
        await self._end()

    async def _live(self) -> None:
        while not self._must_end():
            self._continue_as_new_if_due()
            if self._instance.placement is not None:
                await self._serve(self._instance.placement)
            elif self._instance.state is InstanceState.FAILED:
                await self._wait(self._may_go_on, None, "failed: waits for approval, or to be replaced")
            elif (left := self._back_off_left()) > timedelta(0):
                await self._wait(lambda: False, left, f"back off after: {self._instance.message}"[:200])
            else:
                await self._place()

    @workflow.signal(name=ids.STOP_SIGNAL, description="Drain, stop the engine, end")
    def stop(self, request: StopRequest) -> None:
        if not self._instance.stopping:
            self._instance = self._instance.with_(stopping=True, drain=request.drain, message=request.reason)

    @workflow.signal(name=ids.ENGINE_REPORTED_SIGNAL)
    def engine_reported(self, report: EngineReport) -> None:
        if accepts(self._instance, report, self._last_sequence):
            self._last_sequence = report.sequence
            self._instance = apply_report(self._instance, report)

    @workflow.signal(name=ids.HOST_LOST_SIGNAL)
    def host_lost(self, host_id: str) -> None:
        # Remembered even without a placement: the answer to our claim may be on its way.
        self._lost_hosts.add(host_id)

    @workflow.signal(name=ids.ENGINE_UNKNOWN_SIGNAL, description="The host knows nothing of the engine: ask again")
    def engine_unknown(self, engine: EngineRef) -> None:
        if engine.fence == self._instance.fence:
            self._engine_unknown = True

    @workflow.signal(name=ids.CAPACITY_SIGNAL)
    def capacity_changed(self) -> None:
        self._capacity_changed = True

    @workflow.update(name=ids.APPROVE_RETRY_UPDATE, description="The cause is gone: try again, with a clean record")
    def approve_retry(self) -> Accepted:
        self._instance = approved(self._instance)
        return Accepted(generation=self._instance.restarts)

    @approve_retry.validator
    def _is_failed(self) -> None:
        if self._must_end() or self._instance.state is not InstanceState.FAILED:
            state = "being stopped" if self._must_end() else self._instance.state
            raise ApplicationError(f"{self._instance.instance_id} is {state}, not failed", type="NotFailed")

    @workflow.query(description="The whole durable state")
    def state(self) -> Instance:
        return self._instance

    async def _place(self) -> None:
        fence = self._instance.fence + 1
        instance = lapsed(self._instance, workflow.now())
        self._instance = instance.with_(state=InstanceState.PLACING, fence=fence, retry_at=None)
        self._capacity_changed = False
        self._lost_hosts.clear()
        answer = await workflow.execute_activity_method(
            PlacementContract.place_instance,
            placement_request(self._instance),
            **_ledger(f"find room for {self._instance.instance_id}"),
        )
        if answer.newer_fence is not None:  # our state was reset by a person: go on above what exists
            self._instance = self._instance.with_(fence=answer.newer_fence)
        elif answer.placement is not None:
            self._instance = self._instance.with_(
                state=InstanceState.STARTING,
                placement=answer.placement,
                message="",
                hint=self._instance.notice,
                unplaceable=False,
            )
            self._last_sequence = -1
        elif answer.unplaceable is not None:
            self._instance = self._instance.with_(
                state=InstanceState.PENDING, message=answer.unplaceable.message, unplaceable=True
            )
            await self._wait(lambda: self._capacity_changed, self._instance.timings.place_retry, "no room: ask again")

    async def _serve(self, placement: Placement) -> None:
        """Run the engine until it ends, its host is lost, or we are told to stop."""
        await self._project()  # binds the claim: no engine runs on room that may be somebody else's
        if self._claim_lost:
            self._instance = self._instance.with_(placement=None, state=InstanceState.PLACING)
            return
        engine = self._run_engine(placement)
        while not (engine.done() or self._is_lost(placement) or self._must_end()):
            await self._record()
            await self._until_news(engine, placement)
            if self._engine_unknown and not engine.done():
                engine.cancel()
                let_go(engine)
                engine = self._run_engine(placement)
            if self._due_for_continue_as_new():
                return
        if engine.done():
            await self._after_end(engine)
        elif self._is_lost(placement):
            await self._abandon(engine, placement.host_id)
        else:
            await self._stop_engine(engine, placement)

    async def _until_news(self, engine: ActivityHandle[EngineExit], placement: Placement) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # then we must end, which the caller sees
            await workflow.wait_condition(
                lambda: (
                    engine.done()
                    or self._instance is not self._recorded
                    or self._engine_unknown
                    or self._is_lost(placement)
                    or self._must_end()
                )
            )

    def _run_engine(self, placement: Placement) -> ActivityHandle[EngineExit]:
        self._engine_unknown = False
        timings = self._instance.timings
        launch = EngineLaunch(
            instance_id=self._instance.instance_id,
            deployment=self._instance.deployment,
            fence=self._instance.fence,
            spec=self._instance.spec,
            placement=placement,
            drain=timings.drain,
            image=self._instance.image,
        )
        return workflow.start_activity_method(
            HostContract.run_engine,
            launch,
            task_queue=ids.host_queue(placement.host_id),
            start_to_close_timeout=FOREVER,
            # No schedule-to-start timeout: whether the host is gone is for its lease to say.
            heartbeat_timeout=timings.engine_heartbeat,
            retry_policy=RetryPolicy(backoff_coefficient=1.0),  # a retry adopts the running engine
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"serve {launch.spec.served_name} on {placement.host_id}, fence {launch.fence}",
        )

    async def _after_end(self, engine: ActivityHandle[EngineExit]) -> None:
        """The engine ended by itself: release its room and decide how to go on."""
        ended, gone = await self._exit_of(engine)
        fence, placement = self._instance.fence, self._instance.placement
        self._instance = after_failure(self._instance, ended, workflow.now())
        await self._record()
        if placement is not None:  # before anybody can claim it again
            await self._note_gpu_fault(ended, fence, placement)
        await self._release(fence, engine_gone=gone)

    async def _note_gpu_fault(self, ended: EngineExit, fence: int, placement: Placement) -> None:
        if not ended.gpu_fault or not placement.gpu_uuids:
            return
        fault = GpuFault(
            instance_id=self._instance.instance_id,
            fence=fence,
            gpu_uuids=placement.gpu_uuids,
            reason=ended.hint,
            certain=ended.gpu_fault == "certain",
        )
        await workflow.execute_activity_method(GpuContract.note_gpu_fault, fault, **_ledger("an engine blames its GPU"))

    async def _abandon(self, engine: ActivityHandle[EngineExit], host_id: str) -> None:
        """The host is lost. Its engine may still run: cancel it for the day the host returns, and go elsewhere."""
        engine.cancel()
        let_go(engine)
        fence = self._instance.fence
        self._instance = self._instance.with_(
            state=InstanceState.RECOVERING,
            message=f"host {host_id} was lost",
            hint="",
            placement=None,
            endpoint=None,
            pid=None,
            ready_since=None,
            restarts=self._instance.restarts + 1,
            retry_at=None,
        )
        await self._record()
        await self._release(fence, engine_gone=False)

    async def _stop_engine(self, engine: ActivityHandle[EngineExit], placement: Placement) -> None:
        was_routed = self._instance.endpoint is not None
        self._instance = self._instance.with_(state=InstanceState.DRAINING)
        await self._record()
        if was_routed:
            await workflow.sleep(self._instance.timings.withdraw_pause, summary="gateways stop sending requests")
        engine.cancel()
        nudge = workflow.start_activity_method(
            HostContract.look_at_engine,
            EngineRef(instance_id=self._instance.instance_id, fence=self._instance.fence),
            task_queue=ids.host_queue(placement.host_id),
            schedule_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(maximum_attempts=1),
            summary="tell the host to look",
        )
        gone = await self._gone_or_host_lost(engine, placement)
        nudge.cancel()
        let_go(nudge)
        self._instance = self._instance.with_(placement=None, endpoint=None, pid=None)
        await self._release(self._instance.fence, engine_gone=gone)

    async def _gone_or_host_lost(self, engine: ActivityHandle[EngineExit], placement: Placement) -> bool:
        """Wait for the end of the engine; False when its host is lost meanwhile, or cannot say that it is gone."""
        await workflow.wait_condition(lambda: engine.done() or self._engine_unknown or self._is_lost(placement))
        if not engine.done():
            let_go(engine)
            return self._engine_unknown  # its host has just said that it never got it
        _, gone = await self._exit_of(engine)
        return gone

    async def _exit_of(self, engine: ActivityHandle[EngineExit]) -> tuple[EngineExit, bool]:
        """How it ended, and whether its host has said so: only then is its memory free."""
        try:
            return await engine, True
        except ActivityError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError) and cause.type == "EngineExited" and cause.details:
                return EngineExit.model_validate(cause.details[0]), True
            if isinstance(cause, CancelledError):
                # Not started: no host held it when the server cancelled it, but an earlier attempt may have run it.
                return EngineExit(exit_code=None, failure_class="cancelled"), error.started_event_id > 0
            return EngineExit(exit_code=None, hint=str(cause or error)), False

    async def _release(self, fence: int, *, engine_gone: bool) -> None:
        await workflow.execute_activity_method(
            PlacementContract.release_claim,
            ReleaseRequest(instance_id=self._instance.instance_id, fence=fence, engine_gone=engine_gone),
            **_ledger("give back the memory"),
        )

    async def _end(self) -> None:
        if self._instance.placement is not None:
            # Told to stop before we asked for the engine in this run: its host says when the memory is free.
            await self._release(self._instance.fence, engine_gone=False)
        self._instance = self._instance.with_(state=InstanceState.STOPPED, placement=None, endpoint=None)
        workflow.set_current_details(describe(self._instance))
        self._set_search_attributes()
        await workflow.execute_local_activity_method(
            ProjectionContract.forget_instance, InstanceId(instance_id=self._instance.instance_id), **_RECORD
        )
        await self._tell_deployment(gone=True)

    async def _wait(self, woken: Callable[[], bool], longest: timedelta | None, why: str) -> None:
        """Until told to stop, ``woken``, or ``longest`` has passed."""
        await self._record()
        with contextlib.suppress(asyncio.TimeoutError, asyncio.CancelledError):
            await workflow.wait_condition(lambda: self._must_end() or woken(), timeout=longest, timeout_summary=why)

    def _must_end(self) -> bool:
        """Not wanted any more; or cancelled by a person in Temporal's UI, and then the deployment replaces us."""
        return self._instance.stopping or workflow.cancellation_reason() is not None

    def _may_go_on(self) -> bool:
        return self._instance.state is not InstanceState.FAILED

    def _is_lost(self, placement: Placement) -> bool:
        return placement.host_id in self._lost_hosts

    def _back_off_left(self) -> timedelta:
        return self._instance.retry_at - workflow.now() if self._instance.retry_at else timedelta(0)

    async def _record(self) -> None:
        """Project the state and tell the deployment, once per change."""
        await self._project()
        if self._told is not self._recorded:
            self._told = self._recorded
            await self._tell_deployment(gone=False)

    async def _project(self) -> None:
        workflow.set_current_details(describe(self._instance))
        if self._recorded is self._instance:
            return
        self._instance = self._instance.with_(projection=self._numbers.after(self._instance.projection))
        self._recorded = recorded = self._instance
        self._set_search_attributes()
        answer = await workflow.execute_local_activity_method(ProjectionContract.record_instance, recorded, **_RECORD)
        self._claim_lost = answer.claim_lost

    def _set_search_attributes(self) -> None:
        placement = self._instance.placement
        attributes = (str(self._instance.state), placement.host_id if placement else "")
        if attributes == self._attributes:
            return
        self._attributes = attributes
        workflow.upsert_search_attributes(
            [
                KIND.value_set("instance"),
                DEPLOYMENT.value_set(self._instance.deployment),
                MODEL.value_set(self._instance.spec.model_path.rsplit("/", 1)[-1]),
                REVISION.value_set(self._instance.revision),
                STATE.value_set(attributes[0]),
                HOST.value_set(attributes[1]) if attributes[1] else HOST.value_unset(),
            ]
        )

    async def _tell_deployment(self, *, gone: bool) -> None:
        news = news_of(self._instance).model_copy(update={"gone": gone})
        deployment = workflow.get_external_workflow_handle(ids.deployment_workflow(self._instance.deployment))
        try:
            await deployment.signal(ids.INSTANCE_NEWS_SIGNAL, news)
        except ApplicationError:
            # The deployment's workflow was terminated by a person; serving goes on until somebody decides.
            workflow.logger.warning("deployment %s does not exist any more", self._instance.deployment)

    def _due_for_continue_as_new(self) -> bool:
        # What was said about our host is not carried over: first act upon it.
        placement = self._instance.placement
        held_up = self._must_end() or (placement is not None and self._is_lost(placement))
        return workflow.info().is_continue_as_new_suggested() and not held_up

    def _continue_as_new_if_due(self) -> None:
        # A running engine is not disturbed: the next run asks for it under the same fence and adopts it.
        if self._due_for_continue_as_new():
            workflow.continue_as_new(self._instance)


def _ledger(summary: str) -> workflow.ActivityConfig:
    return workflow.ActivityConfig(
        start_to_close_timeout=timedelta(seconds=10),
        retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
        summary=summary,
    )
