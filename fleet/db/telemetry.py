"""What hosts say of themselves every ten seconds: the newest of each, and the last half hour of all."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlmodel import Session, col, select

from fleet.db.audit import REFUSED, UNKNOWN, AuditLog
from fleet.db.session import Database, Json
from fleet.db.tables import HostRow, HostStatusRow
from fleet.telemetry import STATUS_EVERY_S, HostStatus, MiB

log = logging.getLogger("holdfast.telemetry")

KEPT = timedelta(minutes=30)
MOST_WAITING = 5000
"""Statuses that wait to be written; of more the oldest are left out of the history."""

_WRITE_EVERY_S = 1.0
_LONGEST_PAUSE_S = 15.0
_PRUNE_EVERY_S = 30.0
_SLACK_BYTES = 64 * MiB
"""Foreign memory that moves by less changes nothing."""
_APPLY_AGAIN_S = 300.0
_SEEN_ELSEWHERE_S = 2.5 * STATUS_EVERY_S
"""A host that was silent for so long may have told another process of ours meanwhile."""
_LARGEST = 512 * 1024
"""Characters of a status that are kept."""

Apply = Callable[[Session, str, HostStatus], object]
_AWAY = (OperationalError, InterfaceError, NoConnectionFree)


@dataclass(frozen=True)
class _Said:
    host_id: str
    at: datetime
    text: str
    """As JSON."""


@dataclass(frozen=True)
class _Newest:
    said: _Said
    status: HostStatus
    news: bool
    """It, or one before it that is not written yet, says something that the ledger must know."""

    def after(self, before: "_Newest | None") -> "_Newest":
        return replace(self, news=True) if before is not None and before.news else self


@dataclass
class _Told:
    """What was last passed on of a host's GPUs."""

    gpus: dict[str, tuple[bool, str, int]]
    """By UUID: healthy, reason, foreign bytes."""
    inventory: str
    applied: float
    noted: float

    def is_news(self, status: HostStatus, now: float) -> bool:
        if now - self.applied > _APPLY_AGAIN_S or now - self.noted > _SEEN_ELSEWHERE_S:
            return True
        if status.inventory != self.inventory or len(status.gpus) != len(self.gpus):
            return True
        return any(_moved(self.gpus.get(g.uuid), (g.healthy, g.reason, g.foreign_bytes)) for g in status.gpus)


class StatusLog:
    """One per process. ``note`` costs next to nothing and never fails; ``run`` writes about once a second.

    What was noted in the last second is lost when the process is killed; the next status says it all again. While the
    database is away the newest of each host is kept, and as much of the history as fits.
    """

    def __init__(
        self,
        database: Database,
        audit: AuditLog | None = None,
        registry: CollectorRegistry | None = None,
        *,
        apply: Apply,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``apply``: what brings news of GPUs into the ledger, in the same transaction. ``clock``: seconds."""
        self._database = database
        self._audit = audit
        self._apply = apply
        self._clock = clock
        self._newest: dict[str, _Newest] = {}
        self._history: deque[_Said] = deque(maxlen=MOST_WAITING)
        self._told: dict[str, _Told] = {}
        self._noticed = asyncio.Event()
        registry = registry or CollectorRegistry()
        self._received = Counter("holdfast_host_statuses_received", "Statuses of hosts.", registry=registry)
        self._dropped = Counter("holdfast_host_statuses_dropped", "Not in the history.", registry=registry)

    def note(self, host_id: str, status: HostStatus) -> None:
        """Call from the event loop."""
        self._received.inc()
        said = _Said(host_id, datetime.now(UTC), _kept(status))
        newest = _Newest(said, status, self._is_news(host_id, status))
        self._newest[host_id] = newest.after(self._newest.get(host_id))
        if len(self._history) == MOST_WAITING:
            self._dropped.inc()
        self._history.append(said)
        if self._audit is not None and status.refusals:
            _note_refusals(self._audit, host_id, status)
        self._noticed.set()

    async def run(self) -> None:
        """Write what is noted, until cancelled. A database that is away is waited for."""
        pause, pruned = _WRITE_EVERY_S, float("-inf")
        while True:
            await self._noticed.wait()
            await asyncio.sleep(pause)
            self._noticed.clear()
            try:
                await self.flush()
                if self._clock() - pruned > _PRUNE_EVERY_S:
                    await self._database.awrite(prune)
                    pruned = self._clock()
                pause = _WRITE_EVERY_S
            except _AWAY as error:
                log.warning("statuses of hosts wait for the database: %s", getattr(error, "orig", error))
                pause = min(_LONGEST_PAUSE_S, pause * 2)
                self._noticed.set()

    async def flush(self) -> None:
        """Write what is noted so far. When the database is away it raises, and keeps all for the next time."""
        newest, self._newest = self._newest, {}
        history, self._history = self._history, deque(maxlen=MOST_WAITING)
        if not newest:
            return
        try:
            await self._write_all(list(newest.values()), history)
        except _AWAY:
            for host_id, one in newest.items():
                self._newest[host_id] = self._newest[host_id].after(one) if host_id in self._newest else one
            self._history = deque([*history, *self._history], maxlen=MOST_WAITING)
            raise

    async def _write_all(self, newest: Sequence[_Newest], history: Sequence[_Said]) -> None:
        try:
            await self._database.awrite(lambda s: _write(s, newest, history, self._apply))
        except _AWAY:
            raise
        except SQLAlchemyError as error:
            if len(newest) == 1:
                host_id = newest[0].said.host_id
                log.error("the status of host %s cannot be kept: %s", host_id, error)
                self._told.pop(host_id, None)
                self._dropped.inc(len(history))
                return
            # It must not take the others with it.
            for one in newest:
                await self._write_all([one], [h for h in history if h.host_id == one.said.host_id])

    def _is_news(self, host_id: str, status: HostStatus) -> bool:
        now, told = self._clock(), self._told.get(host_id)
        if told is not None and not told.is_news(status, now):
            told.noted = now
            return False
        gpus = {g.uuid: (g.healthy, g.reason, g.foreign_bytes) for g in status.gpus}
        self._told[host_id] = _Told(gpus, status.inventory, now, now)
        return True


def history(session: Session, host_id: str, since: datetime | None, limit: int) -> list[HostStatusRow]:
    """What a host said after ``since``, oldest first; of more than ``limit`` the newest."""
    query = select(HostStatusRow).where(HostStatusRow.host_id == host_id)
    if since is not None:
        query = query.where(col(HostStatusRow.at) > since)
    return list(session.exec(query.order_by(col(HostStatusRow.at).desc()).limit(limit)).all())[::-1]


def prune(session: Session) -> None:
    session.execute(delete(HostStatusRow).where(col(HostStatusRow.at) < datetime.now(UTC) - KEPT))


_UPDATE = (
    update(HostRow.__table__)  # type: ignore[attr-defined]
    .where(col(HostRow.id) == bindparam("of_host"))
    .values(status=bindparam("said"), status_at=bindparam("said_at"), seen_at=bindparam("said_at"))
)
_INSERT = {
    kind: dialect.insert(HostStatusRow.__table__).on_conflict_do_nothing()  # type: ignore[attr-defined]
    for kind, dialect in (("postgresql", postgresql), ("sqlite", sqlite))
}


def _write(session: Session, newest: Sequence[_Newest], history: Sequence[_Said], apply: Apply) -> None:
    # In one order everywhere, so that two processes cannot wait for each other.
    newest = sorted(newest, key=lambda n: n.said.host_id)
    connection = session.connection()
    hosts = [{"of_host": n.said.host_id, "said": Json(n.said.text), "said_at": n.said.at} for n in newest]
    connection.execute(_UPDATE, hosts)
    connection.execute(
        _INSERT[connection.dialect.name], [{"host_id": h.host_id, "at": h.at, "status": Json(h.text)} for h in history]
    )
    for one in newest:
        if one.news:
            apply(session, one.said.host_id, one.status)


def _kept(status: HostStatus) -> str:
    """As JSON. Refusals are in the audit log; lists that no real host has are left out."""
    text = status.model_dump_json(exclude={"refusals"})
    if len(text) > _LARGEST:
        text = status.model_dump_json(exclude={"refusals", "engines", "foreign"})
    return text if len(text) <= _LARGEST else status.model_dump_json(include={"boot_id", "inventory", "at"})


def _note_refusals(audit: AuditLog, host_id: str, status: HostStatus) -> None:
    for refusal in status.refusals:
        audit.note(
            actor=UNKNOWN,
            action="engine.request",
            target=refusal.instance_id or f"host:{host_id}",
            outcome=REFUSED,
            reason=refusal.reason,
            peer=refusal.peer,
            count=refusal.count,
        )


def _moved(before: tuple[bool, str, int] | None, after: tuple[bool, str, int]) -> bool:
    if before is None or before[:2] != after[:2]:
        return True
    return abs(before[2] - after[2]) > _SLACK_BYTES or bool(before[2]) != bool(after[2])
