"""Who did, or tried, what: noted in memory at once, written a moment later, kept for a while."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import delete, update
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from fleet.db.session import Database
from fleet.db.tables import AuditRow

log = logging.getLogger("holdfast.audit")

DONE, REFUSED = "done", "refused"
UNKNOWN = "unknown"
"""Actor of whoever did not say, or prove, who it is."""

ALIKE_S = 60.0
"""Entries that are alike within so many seconds are one row."""
DISTINCT_REFUSALS = 200
"""Within ``ALIKE_S``. Further ones are told apart by action and reason only: a flood must not push out what matters."""
MOST_WAITING = 5000
"""Distinct entries that wait to be written, e.g. while the database is away."""
MANY = "many"

_MOST_AT_ONCE = 10_000_000
"""So that a column of 32 bits can count what is alike."""
_WRITE_EVERY_S = 1.0
_LONGEST_PAUSE_S = 15.0
_PRUNE_EVERY_S = 600.0
_LONGEST = {"actor": 200, "action": 200, "target": 300, "outcome": 20, "reason": 500, "peer": 100}


@dataclass(frozen=True)
class Entry:
    """What makes two of them alike."""

    actor: str
    action: str
    target: str
    outcome: str
    reason: str
    peer: str


@dataclass
class _Noted:
    at: datetime
    count: int


class AuditLog:
    """One per process. ``note`` costs next to nothing and never fails; ``run`` writes.

    What was noted in the last second is lost when the process is killed.
    """

    def __init__(
        self,
        database: Database,
        registry: CollectorRegistry | None = None,
        *,
        keep: timedelta = timedelta(days=90),
        keep_rows: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock``: seconds, for what is alike within a minute."""
        self._database = database
        self._keep, self._keep_rows = keep, keep_rows
        self._clock = clock
        self._waiting: dict[Entry, _Noted] = {}
        self._rows: dict[Entry, tuple[int, float]] = {}
        """Row and time of its first entry, of those that may still be counted up."""
        self._minute: tuple[float, set[Entry]] = (clock(), set())
        self._noticed = asyncio.Event()
        registry = registry or CollectorRegistry()
        self._count = Counter("holdfast_audit_entries", "Noted, by outcome.", ["outcome"], registry=registry)
        self._dropped = Counter("holdfast_audit_dropped", "Not kept, because too many came.", registry=registry)

    def note(
        self,
        *,
        actor: str,
        action: str,
        target: str = "",
        outcome: str,
        reason: str = "",
        peer: str = "",
        count: int = 1,
    ) -> None:
        """``count``: so many alike. Text may be anything; it is cut to what is kept. Call from the event loop."""
        entry = Entry(
            **{
                name: _text(value, _LONGEST[name])
                for name, value in (
                    ("actor", actor),
                    ("action", action),
                    ("target", target),
                    ("outcome", outcome),
                    ("reason", reason),
                    ("peer", peer),
                )
            }
        )
        self._count.labels(DONE if entry.outcome == DONE else REFUSED).inc(count)
        self._put(self._told_apart(entry), _Noted(datetime.now(UTC), min(count, _MOST_AT_ONCE)))
        self._noticed.set()

    async def run(self) -> None:
        """Write what is noted, until cancelled; then what is left. A database that is away is waited for."""
        pause, pruned = _WRITE_EVERY_S, float("-inf")
        try:
            while True:
                await self._noticed.wait()
                await asyncio.sleep(pause)
                self._noticed.clear()
                try:
                    await self.flush()
                    if self._clock() - pruned > _PRUNE_EVERY_S:
                        await self._database.awrite(self._prune)
                        pruned = self._clock()
                    pause = _WRITE_EVERY_S
                except SQLAlchemyError as error:
                    log.warning("the audit log waits for the database: %s", getattr(error, "orig", error))
                    pause = min(_LONGEST_PAUSE_S, pause * 2)
                    self._noticed.set()
        finally:
            with contextlib.suppress(SQLAlchemyError, TimeoutError):
                await asyncio.shield(asyncio.wait_for(self.flush(), 5))

    async def flush(self) -> None:
        """Write what is noted so far. Raises SQLAlchemyError; then it is kept for the next time."""
        taken, self._waiting = self._waiting, {}
        if not taken:
            return
        now = self._clock()
        self._rows = {e: row for e, row in self._rows.items() if now - row[1] < ALIKE_S}
        known = {entry: row for entry, (row, _) in self._rows.items()}
        try:
            written = await self._database.awrite(lambda s: _write(s, taken, known))
        except SQLAlchemyError:
            for entry, noted in taken.items():
                self._put(entry, noted)
            raise
        for entry, row in written.items():
            self._rows.setdefault(entry, (row, now))

    def _put(self, entry: Entry, noted: _Noted) -> None:
        before = self._waiting.get(entry)
        if before is not None:
            before.count, before.at = min(_MOST_AT_ONCE, before.count + noted.count), min(before.at, noted.at)
        elif len(self._waiting) < MOST_WAITING:
            self._waiting[entry] = noted
        else:
            self._dropped.inc(noted.count)

    def _told_apart(self, entry: Entry) -> Entry:
        """``entry``, or what it has in common with others when refusals come in floods."""
        if entry.outcome != REFUSED:
            return entry
        since, seen = self._minute
        if self._clock() - since >= ALIKE_S:
            self._minute = (self._clock(), seen := set())
        if entry in seen:
            return entry
        if len(seen) < DISTINCT_REFUSALS:
            seen.add(entry)
            return entry
        coarse = replace(entry, actor=MANY, target=MANY, peer=MANY)
        if coarse not in seen and len(seen) >= 2 * DISTINCT_REFUSALS:
            return replace(coarse, action=MANY, reason=MANY)
        seen.add(coarse)
        return coarse

    def _prune(self, session: Session) -> None:
        session.execute(delete(AuditRow).where(col(AuditRow.at) < datetime.now(UTC) - self._keep))
        last = session.exec(select(AuditRow.id).order_by(col(AuditRow.id).desc()).offset(self._keep_rows).limit(1))
        if (beyond := last.first()) is not None:
            session.execute(delete(AuditRow).where(col(AuditRow.id) <= beyond))


def _write(session: Session, noted: Mapping[Entry, _Noted], known: Mapping[Entry, int]) -> dict[Entry, int]:
    """The id of each entry's row."""
    rows: dict[Entry, AuditRow] = {}
    ids: dict[Entry, int] = {}
    for entry, new in sorted(noted.items(), key=lambda item: item[1].at):
        if (row_id := known.get(entry)) is not None:
            counted = update(AuditRow).where(col(AuditRow.id) == row_id).values(count=AuditRow.count + new.count)
            if session.execute(counted).rowcount:  # type: ignore[attr-defined]
                ids[entry] = row_id
                continue
        rows[entry] = AuditRow(**vars(entry), at=new.at, count=new.count)
        session.add(rows[entry])
    session.flush()
    return ids | {entry: row.id for entry, row in rows.items() if row.id is not None}


def _text(value: str, longest: int) -> str:
    """What every database can keep."""
    return value.replace("\x00", "").encode(errors="replace").decode()[:longest]
