"""Batches of all keys: who wants what done, how far it is, and holding it up for a while."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.management.paging import Page
from api.state import AdminDep, Services, ServicesDep
from fleet import ids
from fleet.batches import Batch, BatchStatus, CancelBatch, PauseBatch, rate
from fleet.db import batches
from fleet.db.batches import BatchRow, Counts
from fleet.db.tables import now
from fleet.errors import Conflict, NotFound

router = APIRouter(prefix="/batches", tags=["batches"])


class BatchView(BaseModel):
    id: str
    key_id: str
    endpoint: str
    model: str
    """Empty: not known yet, or several."""
    status: str
    """As clients see it."""
    paused: bool
    total: int
    completed: int
    failed: int
    lines_per_second: float
    last_error: str
    message: str
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    workflow_url: str


@router.get("", summary="List batches, newest first")
async def list_(
    services: ServicesDep,
    _admin: AdminDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
) -> Page[BatchView]:
    after = await _row(services, cursor) if cursor else None
    rows = await services.database.aread(lambda s: batches.page(s, None, after=after, limit=limit + 1))
    views = [await _view(services, row) for row in rows[:limit]]
    return Page(items=views, next_cursor=views[-1].id if len(rows) > limit else None)


@router.get("/{batch_id}", summary="Read a batch")
async def get(batch_id: str, services: ServicesDep, _admin: AdminDep) -> BatchView:
    return await _view(services, await _row(services, batch_id))


@router.post("/{batch_id}/cancel", status_code=202, summary="Cancel a batch")
async def cancel(batch_id: str, services: ServicesDep, _admin: AdminDep) -> BatchView:
    """What was answered is kept; the other lines are in its error file. Twice is once."""
    row = await _row(services, batch_id)
    if not row.ended:
        await services.database.awrite(lambda s: batches.ask_to_cancel(s, batch_id, None))
        await services.workflows.cancel_batch(batch_id, CancelBatch(reason="an operator cancelled it"))
    return await _view(services, await _row(services, batch_id))


@router.post("/{batch_id}/pause", status_code=202, summary="Hold a batch up")
async def pause(batch_id: str, services: ServicesDep, _admin: AdminDep) -> BatchView:
    """No line more is sent until it is resumed. Its 24 hours run on."""
    return await _hold_up(services, batch_id, paused=True)


@router.post("/{batch_id}/resume", status_code=202, summary="Go on with a batch")
async def resume(batch_id: str, services: ServicesDep, _admin: AdminDep) -> BatchView:
    return await _hold_up(services, batch_id, paused=False)


async def _hold_up(services: Services, batch_id: str, *, paused: bool) -> BatchView:
    row = await _row(services, batch_id)
    if row.ended:
        raise Conflict(f"{batch_id} has ended: it is {row.status}", hint="make a new batch")
    await services.workflows.pause_batch(batch_id, PauseBatch(paused=paused))
    view = await _view(services, await _row(services, batch_id))
    return view.model_copy(update={"paused": paused})


async def _row(services: Services, batch_id: str) -> BatchRow:
    row = None
    if "\x00" not in batch_id:
        row = await services.database.aread(lambda s: batches.find(s, batch_id, None))
    if row is None:
        raise NotFound(f"there is no batch {batch_id!r}", hint="GET /api/v1/batches lists what there is")
    return row


async def _view(services: Services, row: BatchRow) -> BatchView:
    b = Batch.model_validate(row.durable) if row.durable else None
    counts = Counts(b.completed, b.failed) if b is not None else Counts()
    if b is not None and not row.ended:
        counts = await services.database.aread(lambda s: batches.counts(s, row.id))
    cancelling = row.cancel_asked_at is not None and not row.ended
    known = b.with_(completed=counts.completed, failed=counts.failed) if b is not None else None
    return BatchView(
        id=row.id,
        key_id=row.key_id,
        endpoint=row.endpoint,
        model=row.model,
        status=str(BatchStatus.CANCELLING) if cancelling else row.status,
        paused=b is not None and b.paused and not b.ended,
        total=b.total if b is not None else 0,
        completed=counts.completed,
        failed=counts.failed,
        lines_per_second=round(rate(known, now()), 3) if known is not None else 0.0,
        last_error=b.last_error if b is not None else "",
        message=b.end_message if b is not None else "",
        created_at=row.created_at,
        expires_at=row.expires_at,
        ended_at=row.ended_at,
        workflow_url=services.settings.workflow_url(ids.batch_workflow(row.id)),
    )
