"""Writes what the engines have answered into the database, now and then, for canaries to be judged by."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Set
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session

from fleet.access.secrets import new_id
from fleet.db import traffic
from fleet.db.session import Database
from fleet.db.traffic import Sums

_log = logging.getLogger(__name__)

_PRUNE_EVERY_S = 3600.0


class TrafficLog:
    """Nothing waits for it: while the database is down the sums grow in memory, and the next write has them all."""

    def __init__(self, database: Database, sums: Callable[[], Iterable[Sums]], interval: float) -> None:
        """``sums``: of all engines, read whenever something may have to be written."""
        self.gateway = new_id("gateway")
        """Of this process: its rows are nobody else's."""
        self._database = database
        self._sums = sums
        self._interval = interval
        self._written: dict[tuple[str, int], Sums] = {}
        """By instance and fence."""
        self._deployments: Set[str] = frozenset()
        self._deleted: set[str] = set()
        """Deployments whose rows are still to be deleted."""
        self._pruned_at = float("-inf")
        self._down = False

    def adopt(self, deployments: Set[str]) -> None:
        """These are there now: rows of others are deleted with the next write, and no more are written."""
        deleted = self._deployments - deployments
        self._deleted |= deleted
        self._written = {key: sums for key, sums in self._written.items() if sums.deployment not in deleted}
        self._deployments = deployments

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self.flush()

    async def flush(self) -> None:
        """Write what has changed. Does not raise when the database is down."""
        known = {(s.instance_id, s.fence): s for s in self._sums() if s.requests and s.deployment in self._deployments}
        changed = [sums for key, sums in known.items() if sums != self._written.get(key)]
        deleted = frozenset(self._deleted)
        due = time.monotonic() - self._pruned_at >= _PRUNE_EVERY_S
        if not changed and not deleted:
            return

        def write(session: Session) -> None:
            for deployment in deleted:
                traffic.forget(session, deployment, gateway=self.gateway)
            traffic.write(session, self.gateway, changed)
            if due:
                traffic.prune(session, datetime.now(UTC))

        try:
            await self._database.awrite(write)
        except (SQLAlchemyError, OSError) as error:
            self._note_down(error)
            return
        self._down = False
        self._deleted -= deleted
        self._written = known
        if due:
            self._pruned_at = time.monotonic()

    def _note_down(self, error: Exception) -> None:
        if not self._down:
            self._down = True
            _log.warning("what engines answered cannot be written now, it is kept: %s", error)
