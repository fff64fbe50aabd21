"""``/v1/batches``: what is worked off on spare capacity."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from api.gateway.refusals import Refusal, shown
from api.openai_files.exchange import Exchange, invalid, not_found
from api.openai_files.files import kept_for, page
from api.openai_files.limits import Limits
from fleet.batches import COMPLETION_WINDOW, ENDPOINTS, Batch, BatchStatus
from fleet.db import batches
from fleet.db.batches import BatchRow, Counts
from fleet.db.session import Database
from fleet.db.tables import now
from fleet.errors import HoldfastError

log = logging.getLogger("holdfast.batches")

Tell = Callable[[str], Awaitable[None]]
"""Given a batch's id; raises HoldfastError when nobody can be told now."""
_NOT_BEGUN_FOR = timedelta(seconds=5)
_WINDOW = "24h"


class Batches:
    def __init__(self, database: Database, start: Tell, cancel: Tell, limits: Limits) -> None:
        self._database = database
        self._start = start
        self._cancel = cancel
        self._limits = limits
        self._starting: dict[str, asyncio.Task[None]] = {}

    async def create(self, exchange: Exchange, key_id: str) -> None:
        row = self._asked(await exchange.json(), key_id)
        shown_first = _view(row, Counts())
        file = await self._database.awrite(lambda s: batches.create(s, BatchRow(**row.model_dump())))
        if file is None:
            raise invalid(f"No such file: '{shown(row.input_file_id)}'.", "input_file_id", "not_found")
        if file.purpose != "batch":
            raise invalid(
                f"The file's purpose is '{file.purpose}'. Upload it with the purpose 'batch'.", "input_file_id"
            )
        await self._tell(self._start, row.id)
        await exchange.answer(shown_first)

    async def list(self, exchange: Exchange, key_id: str) -> None:
        limit = exchange.number("limit", 20, 100)
        after = exchange.query("after")
        last = await self._find(after, key_id) if after else None
        rows = await self._database.aread(lambda s: batches.page(s, key_id, after=last, limit=limit + 1))
        views = [await self._view(row) for row in rows[:limit]]
        await exchange.answer(page(views, has_more=len(rows) > limit))

    async def read(self, exchange: Exchange, key_id: str, batch_id: str) -> None:
        row = await self._find(batch_id, key_id)
        if row.projection == 0 and now() - row.created_at > _NOT_BEGUN_FOR:
            self._start_again(batch_id)
        await exchange.answer(await self._view(row))

    async def cancel(self, exchange: Exchange, key_id: str, batch_id: str) -> None:
        """It is written down first: its workflow hears of it even if nobody can be told now."""
        before = await self._find(batch_id, key_id)
        if before.ended:
            message = f"The batch has ended: it is {before.status}."
            raise Refusal(409, message, param="id", code="batch_has_ended")
        row = await self._database.awrite(partial(batches.ask_to_cancel, batch_id=batch_id, key_id=key_id))
        if row is None:
            raise not_found("batch", batch_id)
        await self._tell(self._cancel, batch_id)
        await exchange.answer(await self._view(row))

    async def _find(self, batch_id: str, key_id: str) -> BatchRow:
        row = None
        if batch_id.isprintable():
            row = await self._database.aread(lambda s: batches.find(s, batch_id, key_id))
        if row is None:
            raise not_found("batch", batch_id)
        return row

    async def _view(self, row: BatchRow) -> dict[str, Any]:
        counts = Counts()
        if row.projection and not row.ended:
            counts = await self._database.aread(lambda s: batches.counts(s, row.id))
        return _view(row, counts)

    async def _tell(self, tell: Tell, batch_id: str) -> bool:
        try:
            await tell(batch_id)
        except HoldfastError as error:
            log.warning("%s is told later: %s", batch_id, error.detail)
            return False
        return True

    def _start_again(self, batch_id: str) -> None:
        """In the background, and not twice at once."""
        if batch_id not in self._starting:
            task = asyncio.create_task(self._begin(batch_id))
            self._starting[batch_id] = task

    async def _begin(self, batch_id: str) -> None:
        try:
            await self._tell(self._start, batch_id)
        finally:
            del self._starting[batch_id]

    def _asked(self, body: dict[str, Any], key_id: str) -> BatchRow:
        """Raises Refusal."""
        file_id = body.get("input_file_id")
        if not isinstance(file_id, str) or not file_id.isprintable():
            raise invalid(
                "'input_file_id' must name a file that was uploaded with the purpose 'batch'.", "input_file_id"
            )
        endpoint = body.get("endpoint")
        if endpoint not in ENDPOINTS:
            raise invalid(f"'endpoint' must be one of {', '.join(ENDPOINTS)}.", "endpoint")
        if body.get("completion_window") != _WINDOW:
            raise invalid(f"'completion_window' must be '{_WINDOW}'.", "completion_window")
        kept = body.get("output_expires_after")
        if kept is not None and not isinstance(kept, dict):
            raise invalid("'output_expires_after' must be an object.", "output_expires_after")
        at = now()
        lasts = kept_for(kept, "output_expires_after", self._limits) if kept is not None else self._limits.kept
        return BatchRow(
            id=f"batch_{secrets.token_hex(12)}",
            key_id=key_id,
            endpoint=endpoint,
            input_file_id=file_id,
            completion_window=_WINDOW,
            output_expires_s=int(lasts.total_seconds()),
            notes=_metadata(body.get("metadata")),
            created_at=at,
            expires_at=at + COMPLETION_WINDOW,
        )


def _metadata(said: object) -> dict[str, str]:
    """Raises Refusal."""
    if said is None:
        return {}
    if not isinstance(said, dict) or len(said) > 16:
        raise invalid("'metadata' must be an object with at most 16 entries.", "metadata")
    for key, value in said.items():
        if not isinstance(value, str) or len(key) > 64 or len(value) > 512 or "\x00" in key + value:
            raise invalid(
                "Of 'metadata', keys have at most 64 characters, and values are texts of at most 512.", "metadata"
            )
    return dict(said)


def _view(row: BatchRow, counted: Counts) -> dict[str, Any]:
    """``counted``: of one that has not ended, its answers so far."""
    b = Batch.model_validate(row.durable) if row.durable else None
    completed, failed = (b.completed, b.failed) if b is not None and b.ended else (counted.completed, counted.failed)
    cancelling = row.cancel_asked_at is not None and not row.ended
    mistakes = {"object": "list", "data": row.mistakes} if row.status == BatchStatus.FAILED else None
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "model": row.model or None,
        "errors": mistakes,
        "input_file_id": row.input_file_id,
        "completion_window": row.completion_window,
        "status": str(BatchStatus.CANCELLING) if cancelling else row.status,
        "output_file_id": (b.output_file_id or None) if b is not None else None,
        "error_file_id": (b.error_file_id or None) if b is not None else None,
        "created_at": _seconds(row.created_at),
        "in_progress_at": _seconds(b.in_progress_at) if b is not None else None,
        "expires_at": _seconds(row.expires_at),
        "finalizing_at": _seconds(b.finalizing_at) if b is not None else None,
        "completed_at": _ended(row, BatchStatus.COMPLETED),
        "failed_at": _ended(row, BatchStatus.FAILED),
        "expired_at": _ended(row, BatchStatus.EXPIRED),
        "cancelling_at": _seconds(row.cancel_asked_at or (b.cancelling_at if b is not None else None)),
        "cancelled_at": _ended(row, BatchStatus.CANCELLED),
        "request_counts": {"total": b.total if b is not None else 0, "completed": completed, "failed": failed},
        "metadata": row.notes or None,
    }


def _ended(row: BatchRow, status: BatchStatus) -> int | None:
    return _seconds(row.ended_at) if row.status == status else None


def _seconds(at: datetime | None) -> int | None:
    return int(at.timestamp()) if at is not None else None
