"""Between batches as clients see them, in the database, and their workflows: what one knows, the other hears of.

Whoever makes or cancels a batch tells its workflow at once. When that does not work, it is told later, from here.
"""

import asyncio
import logging
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from api.temporal_client import WorkflowClient
from fleet.batches import CancelBatch
from fleet.db import batches
from fleet.db.batches import BatchRow
from fleet.db.session import Database
from fleet.db.tables import now
from fleet.errors import HoldfastError, NotFound
from fleet.timings import Timings

log = logging.getLogger("holdfast.batches")

_LOOK_S = 15.0
_OVERDUE = timedelta(seconds=10)


class BatchStarter:
    """One in each API process; ``start`` and ``cancel`` are what ``FilesAndBatches`` is given."""

    def __init__(self, database: Database, workflows: WorkflowClient, timings: Timings) -> None:
        self._database = database
        self._workflows = workflows
        self._timings = timings

    async def start(self, batch_id: str) -> None:
        """Twice is once. Raises Unavailable."""
        row = await self._database.aread(lambda s: batches.find(s, batch_id, None))
        if row is not None and not row.ended:
            await self._workflows.start_batch(batches.state_of(row, self._timings))

    async def cancel(self, batch_id: str) -> None:
        """Twice is once. Raises Unavailable."""
        try:
            await self._workflows.cancel_batch(batch_id, CancelBatch())
        except NotFound:
            await self.start(batch_id)  # it never began, or has just ended

    async def run(self) -> None:
        """Again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> int:
        """Tell workflows what they do not know yet, and delete files whose time is over. Returns how many were told."""
        try:
            late = await self._database.aread(lambda s: batches.overdue(s, now() - _OVERDUE))
            told = [await self._tell(row) for row in late]
            await self._database.awrite(lambda s: batches.sweep_files(s, now()))
        except (HoldfastError, SQLAlchemyError) as error:
            log.warning("batches are told later what they are to do: %s", error)
            return 0
        return sum(told)

    async def _tell(self, row: BatchRow) -> bool:
        if row.projection == 0:
            await self.start(row.id)
        if row.cancel_asked_at is not None:
            await self.cancel(row.id)
        return True
