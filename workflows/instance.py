"""One workflow per instance: place it, keep its engine running, recover it, stop it."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.contracts import (
        GpuContract,
        InstanceId,
        PlacementContract,
        ProjectionContract,
    )
    from fleet import ids
    from fleet.deployments import Accepted
    from fleet.gangs import Acceptance, as_exit, breaking_up, heard, restarted, resumed, root_cause
    from fleet.instances import (
        EngineExit,
        EngineReport,
        Instance,
        StopRequest,
        accepts,
        describe,
        news_of,
        placement_request,
    )
    from fleet.inventory import UnknownEngine
    from fleet.placement.request import Placement
    from fleet.recovery import after_failure, approved, lapsed, moved
    from fleet.states import InstanceState
    from fleet.temporal import DEPLOYMENT, HOST, KIND, MODEL, REVISION, STATE
    from workflows.gang import Engines, acceptances, fault_of, release_of
    from workflows.projection import Numbers

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
        self._last_sequences: dict[int, int] = {}
        self._lost_hosts: set[str] = set()
        self._capacity_changed = False
        self._recorded: Instance | None = None
        self._told: Instance | None = None
        self._claim_lost = False
        self._unknown_on: set[str] = set()
        self._broken_by: int | None = None
        """The member of a gang that started anew."""
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
        if accepts(self._instance, report, self._last_sequences.get(report.rank, -1)):
            self._last_sequences[report.rank] = report.sequence
            if restarted(self._instance, report):
                self._broken_by = report.rank
            self._instance = heard(self._instance, report)

    @workflow.signal(name=ids.HOST_LOST_SIGNAL)
    def host_lost(self, host_id: str) -> None:
        # Remembered even without a placement: the answer to our claim may be on its way.
        self._lost_hosts.add(host_id)

    @workflow.signal(name=ids.ENGINE_UNKNOWN_SIGNAL, description="The host knows nothing of the engine: ask again")
    def engine_unknown(self, engine: UnknownEngine) -> None:
        placement = self._instance.placement
        if engine.fence == self._instance.fence and placement is not None:
            self._unknown_on.update([engine.host_id] if engine.host_id else placement.hosts)

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
                members={},
                measured=None,
            )
            self._last_sequences.clear()
            self._broken_by = None
        elif answer.unplaceable is not None:
            self._instance = self._instance.with_(
                state=InstanceState.PENDING, message=answer.unplaceable.message, unplaceable=True
            )
            await self._wait(lambda: self._capacity_changed, self._instance.timings.place_retry, "no room: ask again")

    async def _serve(self, placement: Placement) -> None:
        """Run the engines until one ends, a host is lost, or we are told to stop."""
        await self._project()  # binds the claim: no engine runs on room that may be somebody else's
        if self._claim_lost:
            self._instance = self._instance.with_(placement=None, state=InstanceState.PLACING)
            return
        if placement.followers and not await self._all_accept(placement):
            return
        self._instance = resumed(self._instance)
        engines = Engines(self._instance, placement, self._lost_hosts, self._unknown_on)
        for rank in engines.ranks:
            self._ask(engines, rank, placement)
        while not (engines.ended or self._broken_by is not None or self._lost(placement) or self._must_end()):
            await self._record()
            await self._until_news(engines, placement)
            for rank, host_id in enumerate(placement.hosts):
                if host_id in self._unknown_on and not engines.done(rank):
                    self._ask(engines, rank, placement)
            if self._due_for_continue_as_new():
                return
        if placement.followers and not self._must_end():
            await self._break_up(engines, placement)
        elif not placement.followers and engines.ended:
            await self._after_end(engines, placement)
        elif not placement.followers and self._lost(placement):
            await self._abandon(engines, placement)
        else:
            await self._stop_engines(engines, placement)

    def _ask(self, engines: Engines, rank: int, placement: Placement) -> None:
        self._unknown_on.discard(placement.hosts[rank])
        engines.ask(self._instance, rank)

    async def _until_news(self, engines: Engines, placement: Placement) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # then we must end, which the caller sees
            await workflow.wait_condition(
                lambda: bool(
                    engines.ended
                    or self._instance is not self._recorded
                    or self._unknown_on.intersection(placement.hosts)
                    or self._broken_by is not None
                    or self._lost(placement)
                    or self._must_end()
                )
            )

    async def _all_accept(self, placement: Placement) -> bool:
        """Whether all hosts of a gang will run their parts; else its claims are given back, and nothing has begun."""
        fence = self._instance.fence
        if self._instance.accepted_fence == fence:
            return True
        self._instance = self._instance.with_(message="asks all hosts of the gang whether they can run their parts")
        await self._record()
        answers: dict[int, Acceptance] = {}
        with contextlib.suppress(asyncio.CancelledError):  # then we must end
            answers = await acceptances(
                self._instance, placement, lambda: bool(self._lost(placement)) or self._must_end()
            )
        refusals = {rank: a.refusal for rank, a in answers.items() if a.refusal is not None}
        if self._must_end():
            self._instance = self._instance.with_(placement=None)
        elif refusals:
            rank = min(refusals)
            self._instance = after_failure(self._instance, refusals[rank], workflow.now(), rank)
        elif lost := self._lost(placement):
            self._instance = moved(self._instance, f"host {lost} was lost")
        else:
            self._instance = self._instance.with_(accepted_fence=fence)
            return True
        await self._record()
        await self._release(fence, placement, [placement.hosts[rank] for rank, a in answers.items() if not a.runs])
        return False

    async def _break_up(self, engines: Engines, placement: Placement) -> None:
        """One member of a gang is gone: stop the others, and go on as after the end of a single engine."""
        fence, ended, broken_by = self._instance.fence, engines.ended, self._broken_by
        first = min(ended, default=broken_by or 0)
        whose = self._lost(placement) or placement.hosts[first]
        self._instance = breaking_up(self._instance, f"{whose} has failed: stops the other members")
        await self._record()
        await engines.end([rank for rank in engines.ranks if rank not in ended], drain=False)
        gone = await engines.gone()
        if lost := self._lost(placement):  # which explains what the others died of
            self._instance = moved(self._instance, f"host {lost} was lost")
            await self._record()
        else:
            exits = {rank: (await engines.exit_of(rank))[0] for rank in engines.ended}
            rank = root_cause(exits, first) if ended else first
            why = exits[rank] if ended else as_exit(placement.hosts[first])
            self._instance = after_failure(self._instance, why, workflow.now(), rank)
            await self._record()
            await self._note_gpu_fault(why, fence, placement.members[rank].gpu_uuids)
        self._broken_by = None
        await self._release(fence, placement, gone)

    async def _after_end(self, engines: Engines, placement: Placement) -> None:
        """The engine ended by itself: release its room and decide how to go on."""
        ended, _ = await engines.exit_of(0)
        fence = self._instance.fence
        self._instance = after_failure(self._instance, ended, workflow.now())
        await self._record()
        await self._note_gpu_fault(ended, fence, placement.gpu_uuids)  # before anybody can claim it again
        await self._release(fence, placement, await engines.gone())

    async def _note_gpu_fault(self, ended: EngineExit, fence: int, gpu_uuids: tuple[str, ...]) -> None:
        if ended.gpu_fault and gpu_uuids:
            fault = fault_of(ended, self._instance.instance_id, fence, gpu_uuids)
            await workflow.execute_activity_method(
                GpuContract.note_gpu_fault, fault, **_ledger("an engine blames its GPU")
            )

    async def _abandon(self, engines: Engines, placement: Placement) -> None:
        """The host is lost. Its engine may still run: cancel it for the day the host returns, and go elsewhere."""
        engines.cancel()
        fence = self._instance.fence
        self._instance = moved(self._instance, f"host {placement.host_id} was lost")
        await self._record()
        await self._release(fence, placement, [])

    async def _stop_engines(self, engines: Engines, placement: Placement) -> None:
        was_routed = self._instance.endpoint is not None
        self._instance = self._instance.with_(state=InstanceState.DRAINING)
        await self._record()
        if was_routed:
            await workflow.sleep(self._instance.timings.withdraw_pause, summary="gateways stop sending requests")
        followers = engines.ranks[1:]
        # As long as the leader drains it needs the others; without one of them it has nothing to wait for.
        broken: Callable[[], bool] = lambda: any(engines.done(rank) for rank in followers)  # noqa: E731
        await engines.end(engines.ranks[:1], drain=True, interrupted=broken)
        if followers:
            left = [rank for rank in engines.ranks if not engines.done(rank)]
            await engines.end(left, drain=False)
        gone = await engines.gone()
        self._instance = self._instance.with_(placement=None, endpoint=None, pid=None)
        await self._release(self._instance.fence, placement, gone)

    async def _release(self, fence: int, placement: Placement, gone: Sequence[str]) -> None:
        await workflow.execute_activity_method(
            PlacementContract.release_claim,
            release_of(self._instance.instance_id, fence, placement, gone),
            **_ledger("give back the memory"),
        )

    async def _end(self) -> None:
        if self._instance.placement is not None:
            # Told to stop before we asked for the engine in this run: its host says when the memory is free.
            await self._release(self._instance.fence, self._instance.placement, [])
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

    def _lost(self, placement: Placement) -> str:
        """The first of its hosts that is lost; empty: none is."""
        return next((host_id for host_id in placement.hosts if host_id in self._lost_hosts), "")

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
            # Shielded: cancelling a signal in the moment in which it arrives would break the workflow.
            await asyncio.shield(deployment.signal(ids.INSTANCE_NEWS_SIGNAL, news))
        except ApplicationError:
            # The deployment's workflow was terminated by a person; serving goes on until somebody decides.
            workflow.logger.warning("deployment %s does not exist any more", self._instance.deployment)

    def _due_for_continue_as_new(self) -> bool:
        # What was said about our hosts is not carried over: first act upon it.
        placement = self._instance.placement
        unheard = self._broken_by is not None or (placement is not None and bool(self._lost(placement)))
        return workflow.info().is_continue_as_new_suggested() and not (unheard or self._must_end())

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
