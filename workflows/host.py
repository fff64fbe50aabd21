"""One workflow per host: is it alive, and who must know when it is not."""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.workflow import ActivityCancellationType, ActivityHandle

with workflow.unsafe.imports_passed_through():
    from activities.contracts import FleetContract, HostContract, HostId, ProjectionContract
    from fleet import ids
    from fleet.deployments import Accepted
    from fleet.hosts import Host, HostLease, HostRegistered, describe
    from fleet.states import HostState
    from fleet.temporal import HOST, KIND, STATE
    from workflows.handles import let_go
    from workflows.projection import Numbers

FOREVER = timedelta(days=3650)
_ONCE = RetryPolicy(maximum_attempts=1)
_RECORD = workflow.LocalActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
)


@workflow.defn(name=ids.HOST_WORKFLOW)
class HostWorkflow:
    """ready → (heartbeats stop) suspect → (no answer to the roll call) lost → (registers again) ready."""

    @workflow.init
    def __init__(self, host: Host) -> None:
        self._host = host
        self._numbers = Numbers(host.projection)
        self._recorded: Host | None = None

    @workflow.run
    async def run(self, host: Host) -> None:
        while not self._host.forgotten:
            self._continue_as_new_if_due()
            try:
                await self._live()
            except (asyncio.CancelledError, ActivityError) as error:
                if not is_cancelled_exception(error):
                    raise
                # Of no use in Temporal's UI: nobody would watch over the host any more.
                self._recorded = None  # what was being written may not have been
                workflow.logger.warning("cancellation ignored: stop the host, then `holdfast hosts ID --forget`")
        await self._end()

    async def _live(self) -> None:
        match self._host.state:
            case HostState.SUSPECT:
                await self._call_roll()
            case HostState.LOST:
                await self._wait_for_registration()
            case _:
                await self._hold_lease()

    @workflow.update(name=ids.REGISTER_UPDATE, description="The host's process has started, or lost its lease")
    def register(self, registered: HostRegistered) -> Accepted:
        self._host = self._host.with_(name=registered.name, registrations=self._host.registrations + 1)
        return Accepted(generation=self._host.registrations)

    @workflow.update(name=ids.FORGET_UPDATE, description="Remove the host for good")
    def forget(self) -> Accepted:
        self._host = self._host.with_(forgotten=True)
        return Accepted(generation=self._host.registrations)

    @workflow.query(description="The whole durable state")
    def state(self) -> Host:
        return self._host

    async def _hold_lease(self) -> None:
        """As long as the host heartbeats. A host that restarts goes on with the same lease, by its token."""
        await self._record()
        lease: ActivityHandle[None] = workflow.start_activity_method(
            HostContract.hold_lease,
            HostLease(host_id=self._host.host_id, registration=self._host.registrations),
            task_queue=ids.host_queue(self._host.host_id),
            start_to_close_timeout=FOREVER,
            schedule_to_start_timeout=self._host.timings.join_grace,
            heartbeat_timeout=self._host.timings.lease_heartbeat,
            retry_policy=_ONCE,
            cancellation_type=ActivityCancellationType.TRY_CANCEL,
            summary=f"lease of {self._host.name}",
        )
        self._announce_capacity()
        await workflow.wait_condition(lambda: lease.done() or self._host.forgotten)
        if not lease.done():
            lease.cancel()
            let_go(lease)
            return
        self._host = self._host.with_(state=HostState.SUSPECT, message=await _why_it_ended(lease))

    def _announce_capacity(self) -> None:
        """Room comes with a lease: a new one, or one that is held again. A hint, so nobody waits for it."""
        announcement = workflow.start_activity_method(
            FleetContract.announce_capacity,
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=_ONCE,
            summary="there may be room now",
        )
        let_go(announcement)

    async def _call_roll(self) -> None:
        await self._record()
        try:
            await workflow.execute_activity_method(
                HostContract.answer_roll_call,
                task_queue=ids.host_queue(self._host.host_id),
                schedule_to_close_timeout=self._host.timings.lease_grace,
                retry_policy=_ONCE,
                summary=f"is {self._host.name} still there?",
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            await self._declare_lost()
        else:
            self._host = self._host.with_(state=HostState.READY, message="")

    async def _declare_lost(self) -> None:
        # First no new claim can be made on it, then those that exist are told: none slips through between.
        self._host = self._host.with_(
            state=HostState.LOST,
            message=f"no sign of life; {self._host.message}",
            registrations_when_lost=self._host.registrations,
        )
        await self._record()
        placed = await workflow.execute_activity_method(
            FleetContract.instances_on_host,
            HostId(host_id=self._host.host_id),
            start_to_close_timeout=timedelta(seconds=30),
            summary=f"who was on {self._host.name}?",
        )
        await asyncio.gather(*map(self._tell_lost, placed.instance_ids))

    async def _tell_lost(self, instance_id: str) -> None:
        instance = workflow.get_external_workflow_handle(ids.instance_workflow(instance_id))
        try:
            await instance.signal(ids.HOST_LOST_SIGNAL, self._host.host_id)
        except ApplicationError:
            workflow.logger.info("instance %s has ended already", instance_id)

    async def _wait_for_registration(self) -> None:
        await self._record()
        await workflow.wait_condition(
            lambda: self._host.registrations > self._host.registrations_when_lost or self._host.forgotten
        )
        if not self._host.forgotten:
            self._host = self._host.with_(state=HostState.READY, message="")

    async def _end(self) -> None:
        self._host = self._host.with_(state=HostState.FORGOTTEN, message="")
        await self._record()

    async def _record(self) -> None:
        workflow.set_current_details(describe(self._host))
        if self._recorded is self._host:
            return
        changed = self._recorded is None or self._recorded.state is not self._host.state
        self._host = self._host.with_(projection=self._numbers.after(self._host.projection))
        self._recorded = recorded = self._host
        if changed:
            workflow.upsert_search_attributes(
                [
                    KIND.value_set("host"),
                    HOST.value_set(recorded.host_id),
                    STATE.value_set(str(recorded.state)),
                ]
            )
        await workflow.execute_local_activity_method(ProjectionContract.record_host, recorded, **_RECORD)

    def _continue_as_new_if_due(self) -> None:
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(self._host)


async def _why_it_ended(lease: ActivityHandle[None]) -> str:
    try:
        await lease
    except ActivityError as error:
        return str(error.cause or error)[:200]
    return "the host gave its lease back"
