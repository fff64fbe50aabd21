"""One workflow per batch: its lines are asked window by window, until all have their answers or its time is over."""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.workflow import ActivityCancellationType, ActivityHandle

with workflow.unsafe.imports_passed_through():
    from activities.contracts import AssembleTask, BatchContract, BatchId, BatchRecord, WindowTask
    from fleet import ids
    from fleet.batches import (
        Batch,
        CancelBatch,
        EndReason,
        PauseBatch,
        Step,
        WindowDone,
        assembled,
        begun,
        checked,
        describe,
        ending,
        finalizing,
        left,
        next_step,
        next_windows,
        patience,
        paused,
    )
    from fleet.deployments import Accepted
    from fleet.temporal import KIND, MODEL, STATE
    from workflows.projection import Numbers

_RECORD = workflow.LocalActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
)
_RETRY = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30))
_LONGEST = timedelta(hours=26)
"""No activity of a batch takes longer: its patience, or the end of the batch, comes first."""
INPUT_GONE = "InputGone"
"""Type of the error of a window whose input file is not there any more."""


@workflow.defn(name=ids.BATCH_WORKFLOW)
class BatchWorkflow:
    """Level-triggered: what is the next step, take it, record it. Requests and answers never pass through here."""

    @workflow.init
    def __init__(self, batch: Batch) -> None:
        self._state = batch
        self._numbers = Numbers(batch.projection)
        self._recorded: Batch | None = None
        self._shown = ("", "")
        self._windows: dict[int, ActivityHandle[WindowDone]] = {}
        self._called_back: set[int] = set()
        self._queue = ids.batch_queue(workflow.info().task_queue)

    @workflow.run
    async def run(self, batch: Batch) -> str:
        while not self._state.ended:
            try:
                await self._step()
            except (asyncio.CancelledError, ActivityError) as error:
                if not is_cancelled_exception(error):
                    raise
                # As `cancel`: lines that were answered must find their way into a file.
                self._end(EndReason.CANCELLED, "cancelled in Temporal")
                self._recorded = None
        await self._record()
        await self._clear()
        return self._state.status.value

    @workflow.update(name=ids.CANCEL_BATCH_UPDATE, description="No line more; what was answered is kept")
    def cancel(self, wanted: CancelBatch) -> Accepted:
        self._end(EndReason.CANCELLED, wanted.reason or "cancelled")
        return Accepted(generation=self._state.projection)

    @workflow.update(name=ids.PAUSE_BATCH_UPDATE, description="No line more for now, or go on. Its time runs on")
    def pause(self, wanted: PauseBatch) -> Accepted:
        self._state = paused(self._state, wanted.paused)
        return Accepted(generation=self._state.projection)

    @workflow.query(description="The whole durable state")
    def state(self) -> Batch:
        return self._state

    def _end(self, reason: EndReason, message: str) -> None:
        self._state = ending(self._state, reason, workflow.now(), message)

    async def _step(self) -> None:
        self._take_back()
        await self._record()
        if self._state is not self._recorded:
            return  # what came meanwhile is recorded before anything is done about it
        self._continue_as_new_if_due()
        match next_step(self._state, workflow.now()):
            case Step.VALIDATE:
                await self._validate()
            case Step.BEGIN if not workflow.info().is_continue_as_new_suggested():
                for window in next_windows(self._state):
                    self._begin(window)
            case Step.CALL_BACK:
                self._call_back()
                await self._wait("requests in flight end")
            case Step.FINALIZE:
                await self._finalize()
            case _:
                await self._wait("paused" if self._state.paused else "windows are under way")

    async def _validate(self) -> None:
        found = await workflow.execute_activity_method(
            BatchContract.validate_batch,
            BatchId(batch_id=self._state.batch_id),
            task_queue=self._queue,
            start_to_close_timeout=timedelta(minutes=15),
            heartbeat_timeout=self._state.timings.batch_heartbeat,
            retry_policy=_RETRY,
            summary="read the input file",
        )
        self._state = checked(self._state, found, workflow.now())

    def _begin(self, window: int) -> None:
        timings = self._state.timings
        self._windows[window] = workflow.start_activity_method(
            BatchContract.run_batch_window,
            WindowTask(
                batch_id=self._state.batch_id,
                window=window,
                patience=timings.batch_patience,
                call_back=timings.batch_call_back,
                heartbeat=timings.batch_heartbeat,
            ),
            task_queue=self._queue,
            start_to_close_timeout=_LONGEST,
            heartbeat_timeout=timings.batch_heartbeat,
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            retry_policy=_RETRY,
            summary=f"window {window + 1}",
        )
        self._state = begun(self._state, window)

    def _take_back(self) -> None:
        for window in sorted(w for w, handle in self._windows.items() if handle.done()):
            done = self._outcome(window)  # it may say that the batch cannot go on
            self._state = left(self._state, done, workflow.now())

    def _outcome(self, window: int) -> WindowDone:
        handle = self._windows.pop(window)
        self._called_back.discard(window)
        error = asyncio.CancelledError() if handle.cancelled() else handle.exception()
        if error is None:
            return handle.result()
        cause = error.cause if isinstance(error, ActivityError) else None
        if isinstance(cause, ApplicationError) and cause.type == INPUT_GONE:
            self._end(EndReason.INPUT_GONE, cause.message)
        # Called back while nobody worked on it, or by a controller that was gone: it is gone on with if need be.
        return WindowDone(window=window, left=1)

    def _call_back(self) -> None:
        for window in sorted(self._windows.keys() - self._called_back):
            self._windows[window].cancel()
            self._called_back.add(window)

    async def _finalize(self) -> None:
        self._state = finalizing(self._state, workflow.now())
        await self._record()
        files = await workflow.execute_activity_method(
            BatchContract.assemble_batch,
            AssembleTask(batch_id=self._state.batch_id, reason=self._state.end_reason),
            task_queue=self._queue,
            start_to_close_timeout=timedelta(hours=2),
            heartbeat_timeout=self._state.timings.batch_heartbeat,
            retry_policy=_RETRY,
            summary="write output and errors",
        )
        self._state = assembled(self._state, files, workflow.now())

    async def _clear(self) -> None:
        await workflow.execute_activity_method(
            BatchContract.clear_batch,
            BatchId(batch_id=self._state.batch_id),
            task_queue=self._queue,
            start_to_close_timeout=timedelta(minutes=15),
            retry_policy=_RETRY,
            summary="what its files say now is not kept twice",
        )

    async def _wait(self, why: str) -> None:
        """Until a window is back, a person says something, or its time is over."""
        before = self._state
        ended = before.end_reason != EndReason.NONE
        try:
            await workflow.wait_condition(
                lambda: self._state is not before or any(h.done() for h in self._windows.values()),
                timeout=None if ended else max(patience(before, workflow.now()), timedelta(milliseconds=1)),
                timeout_summary=f"{why}: until it is out of time",
            )
        except TimeoutError:
            self._end(EndReason.EXPIRED, "not all of it could be answered in time")

    async def _record(self) -> None:
        workflow.set_current_details(describe(self._state, workflow.now()))
        if self._recorded is self._state:
            return
        self._state = self._state.with_(projection=self._numbers.after(self._state.projection))
        self._recorded = recorded = self._state
        self._show(recorded)
        await workflow.execute_local_activity_method(BatchContract.record_batch, BatchRecord(batch=recorded), **_RECORD)

    def _show(self, b: Batch) -> None:
        shown = ("paused" if b.paused and not b.ended else b.status.value, b.checked.model if b.checked else "")
        if shown == self._shown:
            return
        self._shown = shown
        attributes = [KIND.value_set("batch"), STATE.value_set(shown[0])]
        workflow.upsert_search_attributes([*attributes, MODEL.value_set(shown[1])] if shown[1] else attributes)

    def _continue_as_new_if_due(self) -> None:
        if not self._windows and workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(self._state)
