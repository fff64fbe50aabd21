"""One workflow per deployment that waits for room which is there in pieces: moves others, a few at a time."""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.contracts import (
        DefragmentationRecord,
        DefragmentContract,
        DefragmentQuestion,
        MoveEnd,
        MoveQuestion,
        MoveStart,
    )
    from fleet import ids
    from fleet.defragmentations import (
        Defragmentation,
        PlannedMove,
        StopDefragmenting,
        Waiting,
        begun,
        called_off,
        describe,
        next_moves,
        overdue,
        patience,
        pauses,
        planned,
        seen,
        stopped,
    )
    from fleet.deployments import Accepted
    from fleet.temporal import DEPLOYMENT, KIND, STATE
    from workflows.projection import Numbers

_RECORD = workflow.LocalActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
)

_HEARS_AT_ONCE = "does not wait over what was said meanwhile"


@workflow.defn(name=ids.DEFRAGMENT_WORKFLOW)
class DefragmentWorkflow:
    """Level-triggered: look who waits and what could move, begin the next moves, wait until they are through."""

    @workflow.init
    def __init__(self, defragmentation: Defragmentation) -> None:
        self._state = defragmentation
        self._numbers = Numbers(defragmentation.projection)
        self._recorded: Defragmentation | None = None
        self._shown = ""
        self._look = defragmentation.timings.move_look

    @workflow.run
    async def run(self, defragmentation: Defragmentation) -> str:
        while not self._state.ended:
            try:
                await self._step()
            except (asyncio.CancelledError, ActivityError) as error:
                if not is_cancelled_exception(error):
                    raise
                # As `stop`: moves that are under way must not be left to themselves.
                self._state, self._recorded = stopped(self._state, StopDefragmenting(reason="cancelled")), None
        await self._record()
        return self._state.ended

    @workflow.update(name=ids.STOP_DEFRAGMENTING_UPDATE, description="No move more; those under way are called off")
    def stop(self, wanted: StopDefragmenting) -> Accepted:
        self._state = stopped(self._state, wanted)
        return Accepted(generation=len(self._state.done))

    @workflow.query(description="The whole durable state")
    def state(self) -> Defragmentation:
        return self._state

    async def _step(self) -> None:
        await self._record()
        if self._state is not self._recorded:
            return  # what came meanwhile is recorded before anything is done about it
        self._continue_as_new_if_due()
        if self._state.stop_reason:
            await self._end(self._state.stop_reason)
        elif self._state.under_way:
            await self._look_how_far()
        elif pauses(self._state, workflow.now()):
            await self._wait("pause between moves")
        elif not self._state.planned:
            await self._plan()
        else:
            for move in next_moves(self._state):
                await self._begin(move)

    async def _plan(self) -> None:
        d = self._state
        plan = await workflow.execute_activity_method(
            DefragmentContract.plan_defragmentation,
            DefragmentQuestion(deployment=d.deployment, stay=d.given_up, at_most=d.timings.most_moves),
            start_to_close_timeout=timedelta(minutes=2),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=30)),
            summary=f"what could be moved for {d.deployment}?",
        )
        self._state = planned(self._state, plan)
        if self._state.ended and d.waiting is not None:
            await self._call_off(())
        elif not self._state.ended and not plan.moves:
            await self._record()
            await self._wait("there is room: it was told so")

    async def _begin(self, move: PlannedMove) -> None:
        waiting = self._state.waiting
        if waiting is None:
            return
        until = workflow.now() + self._state.timings.move_deadline
        accepted = await workflow.execute_activity_method(
            DefragmentContract.begin_move,
            MoveStart(waiting=waiting, move=move, until=until),
            start_to_close_timeout=timedelta(seconds=30),
            summary=f"move {move.instance_id}",
        )
        self._look = self._state.timings.move_look
        self._state = begun(self._state, move, until, accepted=accepted)

    async def _look_how_far(self) -> None:
        d = self._state
        found = await workflow.execute_activity_method(
            DefragmentContract.look_at_moves,
            MoveQuestion(waiting=_name(d.waiting), moves=tuple(u.move for u in d.under_way)),
            start_to_close_timeout=timedelta(seconds=30),
            summary="how far are the moves?",
        )
        now = workflow.now()
        moved = seen(self._state, found.left, now)
        if moved is not self._state:
            self._state = moved
        elif not found.waits:
            await self._end("it has its room")
        elif late := overdue(self._state, now):
            await self._call_off(late)
            self._state = called_off(self._state, late, now)
        else:
            await self._wait("how far are the moves?")

    async def _end(self, why: str) -> None:
        moves = tuple(u.move for u in self._state.under_way)
        await self._call_off(moves)
        if moves:
            await self._call_off(())
            self._state = called_off(self._state, moves, workflow.now())
        self._state = self._state.with_(planned=(), not_before=None, ended=why)

    async def _call_off(self, moves: tuple[PlannedMove, ...]) -> None:
        await workflow.execute_activity_method(
            DefragmentContract.end_moves,
            MoveEnd(waiting=_name(self._state.waiting), moves=moves),
            start_to_close_timeout=timedelta(seconds=30),
            summary=f"{len(moves)} stay where they are" if moves else "no room is kept any more",
        )

    async def _wait(self, why: str) -> None:
        """Until a person says something, or it is time to look again: soon, and then ever more seldom."""
        if self._state is not self._recorded and workflow.patched(_HEARS_AT_ONCE):
            return  # it was said while we looked
        before = self._state
        pause = patience(before, self._look * workflow.random().uniform(0.8, 1.2), workflow.now())
        self._look = min(2 * self._look, before.timings.longest_move_look)
        try:
            await workflow.wait_condition(lambda: self._state is not before, timeout=pause, timeout_summary=why)
        except TimeoutError:
            return

    async def _record(self) -> None:
        workflow.set_current_details(describe(self._state, workflow.now()))
        if self._recorded is self._state:
            return
        self._state = self._state.with_(projection=self._numbers.after(self._state.projection))
        self._recorded = recorded = self._state
        if self._shown != recorded.state:
            self._shown = recorded.state
            workflow.upsert_search_attributes(
                [
                    KIND.value_set("defragment"),
                    DEPLOYMENT.value_set(recorded.deployment),
                    STATE.value_set(recorded.state),
                ]
            )
        await workflow.execute_local_activity_method(
            DefragmentContract.record_defragmentation,
            DefragmentationRecord(defragmentation=recorded, run_id=workflow.info().first_execution_run_id),
            **_RECORD,
        )

    def _continue_as_new_if_due(self) -> None:
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(self._state)


def _name(waiting: Waiting | None) -> str:
    return waiting.instance_id if waiting is not None else ""
