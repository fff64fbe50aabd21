"""The engines of one placement, each an activity on its own host's queue: one, or those of a gang, by rank."""

import contextlib
from collections.abc import Callable, Sequence, Set
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError
from temporalio.workflow import ActivityCancellationType, ActivityHandle

with workflow.unsafe.imports_passed_through():
    from activities.contracts import GpuFault, HostContract, ReleaseRequest
    from fleet import ids
    from fleet.gangs import Acceptance, no_answer
    from fleet.instances import EngineExit, EngineLaunch, Instance
    from fleet.inventory import EngineRef
    from fleet.placement.request import Placement
    from workflows.handles import let_go

FOREVER = timedelta(days=3650)
_ACCEPT_HEARTBEAT = timedelta(seconds=30)
"""A host process that dies while it gets ready is soon asked again."""


class Engines:
    """``ask`` for them, see which have ``ended``, ``end`` them, and learn by ``exit_of`` how they ended."""

    def __init__(self, instance: Instance, placement: Placement, lost: Set[str], unknown_on: Set[str]) -> None:
        """``lost``: hosts that are. ``unknown_on``: hosts that know nothing of their engine. Both as they are at any
        time."""
        self._placement = placement
        self._hosts = placement.hosts
        self._engine = EngineRef(instance_id=instance.instance_id, fence=instance.fence)
        self._lost = lost
        self._unknown_on = unknown_on
        self._handles: dict[int, ActivityHandle[EngineExit]] = {}

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(range(len(self._hosts)))

    @property
    def ended(self) -> tuple[int, ...]:
        return tuple(rank for rank in self.ranks if self.done(rank))

    def done(self, rank: int) -> bool:
        return self._handles[rank].done()

    def ask(self, instance: Instance, rank: int) -> None:
        """For the first time, or again because its host knows nothing of it. A host that does adopts what runs."""
        if (before := self._handles.get(rank)) is not None:
            before.cancel()
            let_go(before)
        launch = _launch(instance, self._placement, rank)
        self._handles[rank] = workflow.start_activity_method(
            HostContract.run_engine,
            launch,
            task_queue=ids.host_queue(self._hosts[rank]),
            start_to_close_timeout=FOREVER,
            # No schedule-to-start timeout: whether the host is gone is for its lease to say.
            heartbeat_timeout=instance.timings.engine_heartbeat,
            retry_policy=RetryPolicy(backoff_coefficient=1.0),  # a retry adopts the running engine
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"serve {launch.spec.served_name} on {self._hosts[rank]}, fence {launch.fence}",
        )

    async def end(self, ranks: Sequence[int], *, drain: bool, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Stop them and wait until none is left that its host answers for, or until ``interrupted``."""
        for rank in ranks:
            self._handles[rank].cancel()
        nudges = [self._nudge(rank, drain=drain) for rank in ranks]
        await workflow.wait_condition(lambda: interrupted() or all(map(self._settled, ranks)))
        for nudge in nudges:
            nudge.cancel()
            let_go(nudge)

    def _settled(self, rank: int) -> bool:
        return self.done(rank) or self._hosts[rank] in self._lost or self._hosts[rank] in self._unknown_on

    async def gone(self) -> tuple[str, ...]:
        """The hosts that have said that nothing is left there. Nobody waits for the others any longer."""
        self.let_go()
        said = {rank: (await self.exit_of(rank))[1] for rank in self.ended}
        return tuple(h for rank, h in enumerate(self._hosts) if said.get(rank, h in self._unknown_on))

    def let_go(self) -> None:
        """Of those that have not ended."""
        for rank in self.ranks:
            if not self.done(rank):
                let_go(self._handles[rank])

    def cancel(self) -> None:
        """Without waiting: for the day that a lost host returns."""
        for handle in self._handles.values():
            handle.cancel()
        self.let_go()

    async def exit_of(self, rank: int) -> tuple[EngineExit, bool]:
        """How it ended, and whether its host has said so: only then is its memory free."""
        try:
            return await self._handles[rank], True
        except ActivityError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError) and cause.type == "EngineExited" and cause.details:
                return EngineExit.model_validate(cause.details[0]), True
            if isinstance(cause, CancelledError):
                # Not started: no host held it when the server cancelled it, but an earlier attempt may have run it.
                return EngineExit(exit_code=None, failure_class="cancelled"), error.started_event_id > 0
            return EngineExit(exit_code=None, hint=str(cause or error)), False

    def _nudge(self, rank: int, *, drain: bool) -> ActivityHandle[None]:
        return workflow.start_activity_method(
            HostContract.look_at_engine if drain else HostContract.hurry_engine,
            self._engine,
            task_queue=ids.host_queue(self._hosts[rank]),
            schedule_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(maximum_attempts=1),
            summary="tell the host to look",
        )


async def acceptances(
    instance: Instance, placement: Placement, interrupted: Callable[[], bool]
) -> dict[int, Acceptance]:
    """Ask all hosts of a gang at once whether they can run their parts, until all have said yes, one has not, or
    ``interrupted``. Those who have not answered by then are not in it."""
    asked = {rank: _ask_to_accept(instance, placement, rank) for rank in range(len(placement.hosts))}
    answers: dict[int, Acceptance] = {}

    def settled() -> bool:
        for rank, handle in asked.items():
            if handle.done() and rank not in answers:
                answers[rank] = _answer(placement.hosts[rank], handle)
        return len(answers) == len(asked) or any(a.refusal for a in answers.values()) or interrupted()

    try:
        await workflow.wait_condition(settled)
    finally:
        for handle in asked.values():
            handle.cancel()
            let_go(handle)
    return answers


def release_of(instance_id: str, fence: int, placement: Placement, gone: Sequence[str]) -> ReleaseRequest:
    """``gone``: the hosts of the placement that have confirmed."""
    all_gone = set(gone) == set(placement.hosts)
    return ReleaseRequest(
        instance_id=instance_id, fence=fence, engine_gone=all_gone, hosts_gone=() if all_gone else tuple(gone)
    )


def fault_of(ended: EngineExit, instance_id: str, fence: int, gpu_uuids: tuple[str, ...]) -> GpuFault:
    certain = ended.gpu_fault == "certain"
    return GpuFault(instance_id=instance_id, fence=fence, gpu_uuids=gpu_uuids, reason=ended.hint, certain=certain)


def _ask_to_accept(instance: Instance, placement: Placement, rank: int) -> ActivityHandle[Acceptance]:
    host_id = placement.hosts[rank]
    return workflow.start_activity_method(
        HostContract.accept_engine,
        _launch(instance, placement, rank),
        task_queue=ids.host_queue(host_id),
        schedule_to_close_timeout=instance.timings.accept,
        heartbeat_timeout=_ACCEPT_HEARTBEAT,
        retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
        summary=f"can {host_id} run member {rank} of {instance.spec.served_name}, fence {instance.fence}?",
    )


def _answer(host_id: str, handle: ActivityHandle[Acceptance]) -> Acceptance:
    """``runs``: unknown counts as yes, so that no memory is freed on a guess."""
    with contextlib.suppress(ActivityError):
        return handle.result()
    error = handle.exception()
    cause = error.cause if isinstance(error, ActivityError) else error
    return Acceptance(refusal=no_answer(host_id, str(cause or error)), runs=True)


def _launch(instance: Instance, placement: Placement, rank: int) -> EngineLaunch:
    return EngineLaunch(
        instance_id=instance.instance_id,
        deployment=instance.deployment,
        fence=instance.fence,
        spec=instance.spec,
        placement=placement,
        drain=instance.timings.drain,
        image=instance.image,
        rank=rank,
    )
