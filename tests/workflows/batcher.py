"""What the control plane does for a batch, without files and gateways."""

import asyncio

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.contracts import AssembleTask, BatchContract, BatchId, BatchRecord, WindowTask
from fleet.batches import AssembledBatch, Batch, CheckedBatch, EndReason, WindowDone


class FakeBatcher(BatchContract):
    """Windows of ten lines; every line is answered at once, unless ``holding``."""

    LINES = 10

    def __init__(self) -> None:
        self.found = CheckedBatch(total=50, windows=5, model="m")
        self.holding = False
        """Windows answer half of their lines, and then wait until they are called back, or until it is False."""
        self.most_at_once = 0
        self.begun: list[int] = []
        """Windows, as often as they were begun."""
        self.through: set[int] = set()
        self.called_back: list[int] = []
        self.gone = False
        """The input file."""
        self.wants_cancel = False
        self.assembled: list[EndReason] = []
        self.cleared = 0
        self.recorded: list[Batch] = []
        self._now = 0

    @property
    def last(self) -> Batch:
        return self.recorded[-1]

    @property
    def under_way(self) -> int:
        return self._now

    @activity.defn(name="validate_batch")
    async def validate_batch(self, batch: BatchId) -> CheckedBatch:
        return self.found

    @activity.defn(name="run_batch_window")
    async def run_batch_window(self, task: WindowTask) -> WindowDone:
        if self.gone:
            raise ApplicationError("the input file is gone", type="InputGone", non_retryable=True)
        self.begun.append(task.window)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            while self.holding:
                activity.heartbeat()
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            details = activity.cancellation_details()
            if details is None or not details.cancel_requested:
                raise
            self.called_back.append(task.window)
            return WindowDone(window=task.window, completed=5, left=5, last_error="429 overloaded")
        finally:
            self._now -= 1
        self.through.add(task.window)
        return WindowDone(window=task.window, completed=9, failed=1, cancel=self.wants_cancel)

    @activity.defn(name="assemble_batch")
    async def assemble_batch(self, task: AssembleTask) -> AssembledBatch:
        self.assembled.append(task.reason)
        done = len(self.through)
        rest = self.found.total - self.LINES * done if task.reason not in ("", "invalid") else 0
        return AssembledBatch(completed=9 * done, failed=done + rest, output_file_id="file-o", error_file_id="file-e")

    @activity.defn(name="clear_batch")
    async def clear_batch(self, batch: BatchId) -> None:
        self.cleared += 1

    @activity.defn(name="record_batch")
    async def record_batch(self, record: BatchRecord) -> None:
        self.recorded.append(record.batch)
