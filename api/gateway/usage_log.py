"""Writes into the database what requests used: soon, in batches, and each request exactly once."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from api.gateway.usage_spool import UsageSpool
from fleet.access.secrets import new_id
from fleet.db import usage
from fleet.db.session import Database
from fleet.usage import UsageRecord

_log = logging.getLogger(__name__)

_AT_ONCE = 2000
_PRUNE_EVERY_S = 3600.0
_LONGEST_PAUSE_S = 15.0


class UsageLog:
    """One per gateway process. ``note`` costs next to nothing and never fails; ``run`` writes.

    Killed, the process loses what was noted in its last second (``interval``), and not what it had put into a file.
    While the database is away, ``most_waiting`` records are kept in memory; more go to ``<folder>/<gateway>.jsonl`` and
    come into the database when it answers again, by this process or the next.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        *,
        interval: float = 1.0,
        most_waiting: int = 20_000,
        most_bytes: int = 1 << 30,
        keep: timedelta = timedelta(days=400),
        prunes: bool = True,
    ) -> None:
        """``folder``: ``<home>/usage-spool``, the same for all gateways of a machine. ``prunes``: whether this one
        deletes rows older than ``keep``; one worker of several is enough."""
        self.gateway = new_id("gateway")
        self.lost = 0
        """Records that neither the database nor the disk took."""
        self._database = database
        self._spool = UsageSpool(folder, self.gateway, most_bytes=most_bytes)
        self._interval = interval
        self._most_waiting = most_waiting
        self._keep, self._prunes = keep, prunes
        self._waiting: list[UsageRecord] = []
        self._writing = asyncio.Lock()
        self._full = asyncio.Event()
        self._spills: set[asyncio.Task[None]] = set()
        self._spooled = True
        """Files may be there. At first those of processes that were killed."""
        self._down = False
        self._pruned_at = float("-inf")

    def note(self, record: UsageRecord) -> None:
        """Call from the event loop."""
        waiting = self._waiting
        waiting.append(record)
        if len(waiting) >= self._most_waiting:
            self._overflow()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def run(self) -> None:
        """Until cancelled."""
        pause = self._interval
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), pause)
            self._full.clear()
            pause = self._interval if await self.flush() else min(_LONGEST_PAUSE_S, pause * 2)

    async def flush(self) -> bool:
        """Write what is noted, and what is in files; whether the database took it. Does not raise."""
        async with self._writing:
            taken, self._waiting = self._waiting, []
            try:
                for start in range(0, len(taken), _AT_ONCE):
                    batch = taken[start : start + _AT_ONCE]
                    await self._database.awrite(lambda s, batch=batch: usage.write(s, batch))  # type: ignore[misc]
                await self._replay()
            except (SQLAlchemyError, OSError) as error:
                # What was written of it already is no harm: written again, it changes nothing.
                self._waiting = taken + self._waiting
                self._note_down(error)
                if len(self._waiting) >= self._most_waiting:
                    self._spill()
                return False
            except asyncio.CancelledError:
                self._waiting = taken + self._waiting
                raise
            self._down = False
        return True

    async def stop(self) -> None:
        """When ``run`` has ended: write all that is noted; what the database does not take goes to the disk."""
        try:
            async with asyncio.timeout(5):
                await self.flush()
        except TimeoutError:
            pass
        if self._waiting:
            self._spill()
        await asyncio.gather(*self._spills)
        await asyncio.to_thread(self._spool.close)

    async def _replay(self) -> None:
        if self._spooled:
            await asyncio.gather(*self._spills)
            self._spooled = False
            try:
                await asyncio.to_thread(self._spool.replay, self._write)
            except BaseException:
                self._spooled = True
                raise
        if self._prunes and time.monotonic() - self._pruned_at > _PRUNE_EVERY_S:
            self._pruned_at = time.monotonic()
            before = usage.oldest_kept(self._keep)
            while await self._database.awrite(lambda s: usage.prune(s, before)):
                pass

    def _write(self, records: Sequence[UsageRecord]) -> None:
        self._database.write(lambda s: usage.write(s, records))

    def _overflow(self) -> None:
        if self._writing.locked():  # for as long as this: the database is slow, or hangs
            self._spill()
        else:
            self._full.set()

    def _spill(self) -> None:
        taken, self._waiting = self._waiting, []
        task = asyncio.get_running_loop().create_task(self._put_away(taken))
        self._spills.add(task)
        task.add_done_callback(self._spills.discard)

    async def _put_away(self, records: Sequence[UsageRecord]) -> None:
        try:
            kept = await asyncio.to_thread(self._spool.append, records)
        except OSError as error:
            _log.error("what requests used cannot be put on disk: %s", error)
            kept = False
        if kept:
            self._spooled = True
        else:
            self.lost += len(records)
            _log.error("what %d requests used is lost: neither the database nor the disk takes it", len(records))

    def _note_down(self, error: Exception) -> None:
        if not self._down:
            self._down = True
            _log.warning("what requests use cannot be written now, it is kept: %s", error)
