"""One workflow per host: is it alive, who must know when it is not, and what a person wants of it."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import groupby

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.workflow import ActivityCancellationType, ActivityHandle

with workflow.unsafe.imports_passed_through():
    from activities.contracts import (
        BreakerContract,
        FleetContract,
        HostContract,
        HostId,
        Occupants,
        ProjectionContract,
        Replacement,
    )
    from fleet import ids
    from fleet.deployments import Accepted, InstancesLeave
    from fleet.hosts import (
        Host,
        HostLease,
        HostRegistered,
        Maintain,
        Upkeep,
        come_back,
        describe,
        leave_reason,
        look_at_drain,
        lose,
        maintain,
        pause_replacement,
        told,
    )
    from fleet.states import HostState, Maintenance
    from fleet.temporal import HOST, KIND, STATE
    from workflows.handles import let_go
    from workflows.projection import Numbers

FOREVER = timedelta(days=3650)
ANSWER_WITHIN = timedelta(seconds=10)
"""What a controller was asked when it was killed is asked again after that."""
_ONCE = RetryPolicy(maximum_attempts=1)
_RECORD = workflow.LocalActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
)


@workflow.defn(name=ids.HOST_WORKFLOW)
class HostWorkflow:
    """ready → (heartbeats stop) suspect → (no answer to the roll call) lost → (registers again) ready.

    Beside that, while it is ready: draining → (no instance is left) drained.
    """

    @workflow.init
    def __init__(self, host: Host) -> None:
        self._host = host
        self._numbers = Numbers(host.projection)
        self._recorded: Host | None = None
        self._lease: ActivityHandle[None] | None = None
        self._room_to_announce = False
        # What follows is not carried over: the next run just asks and looks once more.
        self._breaker_due = True
        self._breaker_pause = host.timings.lease_grace
        self._next_look: datetime | None = None
        self._look_pause = host.timings.drain_look
        self._asked_to_leave: set[str] = set()
        self._recalled = ""
        """For which reason instances were to leave that may stay now."""

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
        """One step, or wait for a reason to take one."""
        await self._record()
        if self._host is not self._recorded:
            return  # what came meanwhile is recorded before anything is done about it
        match self._host.state:
            case HostState.SUSPECT:
                await self._call_roll()
            case HostState.LOST:
                await self._endure_loss()
            case _:
                await self._serve()

    @workflow.update(name=ids.REGISTER_UPDATE, description="The host's process has started, or lost its lease")
    def register(self, registered: HostRegistered) -> Accepted:
        self._host = self._host.with_(name=registered.name, registrations=self._host.registrations + 1)
        return Accepted(generation=self._host.registrations)

    @workflow.update(name=ids.FORGET_UPDATE, description="Remove the host for good")
    def forget(self) -> Accepted:
        self._host = self._host.with_(forgotten=True)
        return Accepted(generation=self._host.registrations)

    @workflow.update(name=ids.MAINTAIN_UPDATE, description="Cordon or drain the host, or let it take work again")
    def maintain(self, level: Maintain) -> Accepted:
        before, self._host = self._host, maintain(self._host, level)
        if self._host is not before:
            if before.maintenance is Maintenance.DRAINING:
                self._recalled = leave_reason(before)
            self._room_to_announce = level.mode is Upkeep.NONE
            self._look_from_scratch()
        return Accepted(generation=self._host.maintain_generation)

    @workflow.update(name=ids.APPROVE_REPLACEMENT_UPDATE, description="It is really gone: replace its instances")
    def approve_replacement(self) -> Accepted:
        self._host = self._host.with_(replacement_approved=True)
        return Accepted(generation=self._host.registrations)

    @approve_replacement.validator
    def _check_approval(self) -> None:
        if not self._host.replacement_paused:
            raise ApplicationError(
                f"host {self._host.host_id} is {self._host.state} and waits for no approval",
                type="NothingToApprove",
                non_retryable=True,
            )

    @workflow.signal(name=ids.CLAIMS_CHANGED_SIGNAL, description="Claims on this host were given back")
    def claims_changed(self) -> None:
        self._next_look = None

    @workflow.query(description="The whole durable state")
    def state(self) -> Host:
        return self._host

    # -- alive ------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Hold the lease; next to it, drain. A host that restarts goes on with the same lease, by its token."""
        lease = self._lease = self._lease or self._take_lease()
        if self._room_to_announce and not self._recalled:
            self._announce_capacity()
        if lease.done():
            self._lease = None
            self._host = self._host.with_(state=HostState.SUSPECT, message=await _why_it_ended(lease))
        elif self._recalled:
            await self._recall()
        elif self._look_is_due():
            await self._look_who_is_left()
        else:
            await self._until(
                lambda: lease.done() or bool(self._recalled) or self._look_is_due(), self._until_next_look()
            )

    def _take_lease(self) -> ActivityHandle[None]:
        self._room_to_announce = self._host.maintenance is Maintenance.NONE
        return workflow.start_activity_method(
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

    def _announce_capacity(self) -> None:
        """Room comes with a lease, and with the end of maintenance. A hint, so nobody waits for it."""
        self._room_to_announce = False
        announcement = workflow.start_activity_method(
            FleetContract.announce_capacity,
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=_ONCE,
            summary="there may be room now",
        )
        let_go(announcement)

    async def _call_roll(self) -> None:
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
            # Recorded first, so that no new claim can be made on it; those that exist are told after that.
            self._breaker_due, self._breaker_pause = True, self._host.timings.lease_grace
            self._host = lose(self._host, workflow.now())
        else:
            self._host = self._host.with_(state=HostState.READY, message="")

    # -- lost -------------------------------------------------------------------------------------------------

    async def _endure_loss(self) -> None:
        host = self._host
        if host.returned:
            self._look_from_scratch()
            self._host = come_back(host)
        elif host.untold and (self._breaker_due or host.replacement_approved):
            await self._replace_or_pause()
        else:
            # Soon at first: others that were only suspect have by then shown that they are well, or are lost.
            pause = self._jittered(self._breaker_pause) if host.untold else None
            self._breaker_pause = min(2 * self._breaker_pause, host.timings.breaker_pause)
            self._breaker_due = not await self._until(lambda: False, pause, "may its instances be replaced now?")

    async def _replace_or_pause(self) -> None:
        self._breaker_due = False
        placed = await self._who_is_here()
        if placed.instance_ids and not self._host.replacement_approved:
            answer = await self._may_replace()
            if not answer.allowed:
                self._host = pause_replacement(self._host, answer.reason)
                return
        if self._host.returned:
            return
        await asyncio.gather(*map(self._tell_lost, placed.instance_ids))
        self._host = told(self._host)

    async def _may_replace(self) -> Replacement:
        return await workflow.execute_activity_method(
            BreakerContract.may_replace,
            HostId(host_id=self._host.host_id),
            start_to_close_timeout=ANSWER_WITHIN,
            summary=f"is it only {self._host.name}, or are too many hosts unhealthy at once?",
        )

    async def _tell_lost(self, instance_id: str) -> None:
        instance = workflow.get_external_workflow_handle(ids.instance_workflow(instance_id))
        try:
            await instance.signal(ids.HOST_LOST_SIGNAL, self._host.host_id)
        except ApplicationError:
            workflow.logger.info("instance %s has ended already", instance_id)

    # -- maintenance ------------------------------------------------------------------------------------------

    def _look_is_due(self) -> bool:
        if self._host.maintenance is not Maintenance.DRAINING:
            return False
        return self._next_look is None or workflow.now() >= self._next_look

    def _until_next_look(self) -> timedelta | None:
        if self._host.maintenance is not Maintenance.DRAINING or self._next_look is None:
            return None
        return self._next_look - workflow.now()

    def _look_from_scratch(self) -> None:
        self._next_look, self._look_pause = None, self._host.timings.drain_look
        self._asked_to_leave.clear()

    async def _look_who_is_left(self) -> None:
        """Ask those to leave that have not been asked. It is recorded by now that no new claim can be made here."""
        level = self._host.wanted
        if self._next_look is not None:  # nothing told us to look: should a word of ours have been lost, say it again
            self._asked_to_leave.clear()
        self._next_look = workflow.now() + self._jittered(self._look_pause)
        self._look_pause = min(2 * self._look_pause, self._host.timings.longest_drain_look)
        found = await self._who_is_here()
        if self._host.wanted != level:
            return
        late = sorted(set(found.instance_ids) - self._asked_to_leave)
        self._asked_to_leave = set(found.instance_ids)
        orphans = await self._ask_to_leave(late, level)
        if self._host.wanted == level:
            self._host = look_at_drain(self._host, found.instance_ids, orphans or found.obstacle)

    async def _recall(self) -> None:
        """Those that were asked to leave and are still here may stay."""
        reason, self._recalled = self._recalled, ""
        found = await self._who_is_here()
        stay = [
            self._tell_deployment(name, InstancesLeave(instance_ids=tuple(these), reason=reason, stay=True))
            for name, these in groupby(sorted(found.instance_ids), key=_deployment_of)
        ]
        await asyncio.gather(*stay)

    async def _ask_to_leave(self, instance_ids: Sequence[str], level: Maintain) -> str:
        """Their deployments replace them, and stop them then. Answers whose deployment is not there, for people."""
        reason = leave_reason(self._host)
        asked = [
            self._tell_deployment(name, InstancesLeave(instance_ids=tuple(these), reason=reason, by=level.deadline))
            for name, these in groupby(instance_ids, key=_deployment_of)
        ]
        orphans = [name for name in await asyncio.gather(*asked) if name]
        return f"nobody looks after {', '.join(orphans)}: cancel its instances in Temporal" if orphans else ""

    async def _tell_deployment(self, name: str, leave: InstancesLeave) -> str:
        """Its name when there is no such deployment any more, although it has instances here."""
        deployment = workflow.get_external_workflow_handle(ids.deployment_workflow(name))
        try:
            await deployment.signal(ids.LEAVE_SIGNAL, leave)
        except ApplicationError:
            self._asked_to_leave.difference_update(leave.instance_ids)
            return name
        return ""

    async def _who_is_here(self) -> Occupants:
        return await workflow.execute_activity_method(
            FleetContract.instances_on_host,
            HostId(host_id=self._host.host_id),
            start_to_close_timeout=ANSWER_WITHIN,
            summary=f"who is on {self._host.name}?",
        )

    # -- what all of them need --------------------------------------------------------------------------------

    async def _until(self, also: Callable[[], bool], longest: timedelta | None, why: str = "look who is left") -> bool:
        """Wait for a change of the state, or for ``also``; False when ``longest`` passes first."""
        try:
            await workflow.wait_condition(
                lambda: self._host is not self._recorded or also(), timeout=longest, timeout_summary=why
            )
        except TimeoutError:
            return False
        return True

    @staticmethod
    def _jittered(pause: timedelta) -> timedelta:
        return pause * workflow.random().uniform(0.8, 1.2)

    async def _end(self) -> None:
        if self._lease is not None:
            self._lease.cancel()
            let_go(self._lease)
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
        # A lease that is held is not: the host hears that it is void, and the next run asks it to hold another.
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(self._host)


def _deployment_of(instance_id: str) -> str:
    return instance_id.rpartition("/")[0]


async def _why_it_ended(lease: ActivityHandle[None]) -> str:
    try:
        await lease
    except ActivityError as error:
        return str(error.cause or error)[:200]
    return "the host gave its lease back"
