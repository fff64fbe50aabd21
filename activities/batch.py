"""Working off batches: what a ``BatchWorkflow`` asks for."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy.exc import OperationalError
from sqlmodel import Session
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.batch_files import check_input, fill, write_file
from activities.batch_window import WindowBeat, WindowRun
from activities.contracts import AssembleTask, BatchContract, BatchId, BatchRecord, WindowTask
from activities.gateway_client import GatewayClient
from activities.turns import Turns
from fleet.batch_lines import Request, requests_of
from fleet.batches import AssembledBatch, CheckedBatch, EndReason, WindowDone
from fleet.db import batches, stored_files
from fleet.db.batches import BatchRow, BatchWindowRow, Result
from fleet.db.session import Database

_BEATS = 4
"""Heartbeats within the time after which a window would be given to another one."""
_DATABASE_AWAY_S = 1.0
_LOOK_S = 5.0
"""How often a window looks whether somebody wants the batch cancelled."""
_WHY_NOT = {
    EndReason.EXPIRED: ("batch_expired", "This request could not be executed before the completion window expired."),
    EndReason.CANCELLED: ("batch_cancelled", "The batch was cancelled before this request was executed."),
    EndReason.INPUT_GONE: ("input_file_gone", "The input file was lost before this request was executed."),
}


@dataclass(frozen=True)
class _Window:
    batch: BatchRow
    row: BatchWindowRow
    requests: list[Request]


class BatchActivities(BatchContract):
    def __init__(self, database: Database, gateway: GatewayClient, turns: Turns) -> None:
        self._database = database
        self._gateway = gateway
        self._turns = turns

    @activity.defn(name="validate_batch")
    async def validate_batch(self, batch: BatchId) -> CheckedBatch:
        row = await self._row(batch.batch_id)
        check = await check_input(self._database, row, activity.heartbeat)
        model = next(iter(check.models)) if len(check.models) == 1 else ""
        return CheckedBatch(
            total=check.total, windows=len(check.windows), errors=len(check.mistakes), model=model[:256]
        )

    @activity.defn(name="run_batch_window")
    async def run_batch_window(self, task: WindowTask) -> WindowDone:
        window = await self._database.aread(lambda s: _window(s, task))
        if window is None:
            raise ApplicationError("the input file is gone", type="InputGone", non_retryable=True)
        key_id, endpoint = window.batch.key_id, window.batch.endpoint
        run = WindowRun(
            task.batch_id,
            window.requests,
            partial(self._gateway.ask, key_id, endpoint),
            partial(self._write, task.batch_id),
            self._turns,
            faults=_faults(),
        )
        cancel = await self._run(run, task)
        known = await self._answered(window)
        return _done(task, window, known, cancel=cancel, last_error=run.last_error)

    @activity.defn(name="assemble_batch")
    async def assemble_batch(self, task: AssembleTask) -> AssembledBatch:
        row = await self._row(task.batch_id)
        await self._database.awrite(lambda s: batches.seal(s, row.id))
        beat = activity.heartbeat
        if why := _WHY_NOT.get(task.reason):
            await fill(self._database, row, *why, beat)
        at = datetime.now(UTC)
        output = await write_file(self._database, row, ok=True, at=at, beat=beat)
        errors = await write_file(self._database, row, ok=False, at=at, beat=beat)
        counts = await self._database.aread(lambda s: batches.counts(s, row.id))
        return AssembledBatch(
            completed=counts.completed, failed=counts.failed, output_file_id=output, error_file_id=errors
        )

    @activity.defn(name="clear_batch")
    async def clear_batch(self, batch: BatchId) -> None:
        while await self._database.awrite(lambda s: batches.forget_lines(s, batch.batch_id)):
            pass

    @activity.defn(name="record_batch")
    async def record_batch(self, record: BatchRecord) -> None:
        await self._database.awrite(lambda s: batches.record(s, record.batch))

    async def _row(self, batch_id: str) -> BatchRow:
        row = await self._database.aread(lambda s: s.get(BatchRow, batch_id))
        if row is None:
            raise ApplicationError(f"the database knows no batch {batch_id}", type="NoBatch")
        return row

    async def _write(self, batch_id: str, result: Result) -> bool:
        """However long the database is away: an answer was paid for."""
        while True:
            try:
                return await self._database.awrite(lambda s: batches.write_results(s, batch_id, [result]))
            except OperationalError:
                await asyncio.sleep(_DATABASE_AWAY_S)

    async def _to_be_cancelled(self, batch_id: str) -> bool:
        try:
            row = await self._database.aread(lambda s: s.get(BatchRow, batch_id))
        except OperationalError:
            return False  # asked again soon
        return row is not None and row.cancel_asked_at is not None

    async def _answered(self, window: _Window) -> dict[int, bool]:
        row = window.row
        return await self._database.aread(lambda s: batches.answered(s, row.batch_id, row.first_line, row.lines))

    async def _run(self, run: WindowRun, task: WindowTask) -> bool:
        """Until it is through, called back, or its time is up. Whether somebody wants the batch cancelled."""
        stop = asyncio.Event()
        working = asyncio.create_task(run.run(stop, task.call_back.total_seconds()))
        async with _beating(run.beat, task.heartbeat), self._watching(task, stop) as cancel:
            try:
                await asyncio.shield(working)
            except asyncio.CancelledError:
                await _called_back(working, stop)
        return cancel.is_set()

    @contextlib.asynccontextmanager
    async def _watching(self, task: WindowTask, stop: asyncio.Event) -> AsyncIterator[asyncio.Event]:
        """Sets ``stop`` when its time is up, or when the batch is to be cancelled: then the given event is set too."""
        cancel = asyncio.Event()

        async def watch() -> None:
            until = time.monotonic() + task.patience.total_seconds()
            while time.monotonic() < until:
                if await self._to_be_cancelled(task.batch_id):
                    cancel.set()
                    break
                await asyncio.sleep(min(_LOOK_S, max(0.0, until - time.monotonic())))
            stop.set()

        watching = asyncio.create_task(watch())
        try:
            yield cancel
        finally:
            watching.cancel()
            await asyncio.wait([watching])


async def _called_back(working: "asyncio.Task[None]", stop: asyncio.Event) -> None:
    """Only a workflow that wants it is obeyed in peace; else the process ends, or another one has taken over."""
    details = activity.cancellation_details()
    if details is None or not details.cancel_requested:
        working.cancel()
        await asyncio.wait([working])
        raise asyncio.CancelledError
    this = asyncio.current_task()
    if this is not None:
        this.uncancel()
    stop.set()
    await working


@contextlib.asynccontextmanager
async def _beating(beat: Callable[[], WindowBeat], every: timedelta) -> AsyncIterator[None]:
    async def beats() -> None:
        while True:
            activity.heartbeat(beat())
            await asyncio.sleep(every.total_seconds() / _BEATS)

    beating = asyncio.create_task(beats())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.wait([beating])


def _window(session: Session, task: WindowTask) -> _Window | None:
    batch = session.get_one(BatchRow, task.batch_id)
    if batch.sealed:  # everything is in its files already, and its windows may be gone
        return _Window(
            batch, BatchWindowRow(batch_id=batch.id, number=task.window, first_line=0, lines=0, offset=0, length=0), []
        )
    row = session.get_one(BatchWindowRow, (task.batch_id, task.window))
    data = stored_files.read_range(session, batch.input_file_id, row.offset, row.length)
    if data is None:
        return None
    known = batches.answered(session, task.batch_id, row.first_line, row.lines)
    return _Window(batch, row, requests_of(data, row.first_line, set(known)))


def _faults() -> dict[int, int]:
    """What the attempt before has told of its lines."""
    details = activity.info().heartbeat_details
    return WindowBeat.model_validate(details[0]).faults if details else {}


def _done(task: WindowTask, window: _Window, known: dict[int, bool], *, cancel: bool, last_error: str) -> WindowDone:
    completed = sum(known.values())
    left = [r for r in window.requests if r.line not in known]
    return WindowDone(
        window=task.window,
        completed=completed,
        failed=len(known) - completed,
        left=len(left),
        cancel=cancel,
        last_error=last_error,
    )
