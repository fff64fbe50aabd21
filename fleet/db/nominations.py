"""Room that is kept for a nominee while others leave it, and who those others are.

Written in the transaction that decides it, so that no crash leaves one without the other. All is idempotent: asked
again, the same is true. It ends when the nominee is placed, is gone, or does not come in time.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from sqlalchemy import delete, text
from sqlmodel import Session, col, select

from fleet.db.standings import priorities, standings
from fleet.db.tables import AuditRow, ClaimRow, EvictionRow, InstanceRow, NominationRow
from fleet.placement.decision import Decision
from fleet.policy.nominated import Nominated
from fleet.policy.priority import level
from fleet.policy.tenants import Tenant
from fleet.states import ClaimState, InstanceState

MOVE = "move:"


class PlanIsStale(Exception):
    """What the plan was made on is not so any more: look again."""


@dataclass(frozen=True)
class Nominee:
    """Who gets the room."""

    name: str
    """Instance id, or ``MOVE`` and the id of the instance that it replaces."""
    deployment: str
    priority: int
    fence: int = 0


@dataclass(frozen=True)
class Leaver:
    """An instance that was asked to go, and still holds its room."""

    instance_id: str
    deployment: str
    host_id: str
    by: datetime | None
    reason: str
    priority: int


class Room(Protocol):
    """On one host."""

    @property
    def host_id(self) -> str: ...
    @property
    def gpu_uuids(self) -> tuple[str, ...]: ...
    @property
    def gpu_bytes(self) -> int: ...
    @property
    def ram_bytes(self) -> int: ...


def nominate(session: Session, nominee: Nominee, room: Iterable[Room], expires_at: datetime) -> None:
    """Keep ``room`` for ``nominee``, instead of whatever was kept for it and whoever went for it before."""
    end(session, nominee.name)
    keep(session, nominee, room, expires_at)


def keep(session: Session, nominee: Nominee, room: Iterable[Room], expires_at: datetime) -> None:
    """As ``nominate``; those who go for it still do."""
    session.execute(delete(NominationRow).where(col(NominationRow.nominee) == nominee.name))
    for seat in room:
        for uuid, size in (*((u, seat.gpu_bytes) for u in seat.gpu_uuids), ("", seat.ram_bytes)):
            if size:
                session.add(
                    NominationRow(
                        nominee=nominee.name,
                        host_id=seat.host_id,
                        gpu_uuid=uuid,
                        deployment=nominee.deployment,
                        fence=nominee.fence,
                        memory_bytes=size,
                        priority=nominee.priority,
                        expires_at=expires_at,
                    )
                )
    session.flush()


def preempt(
    session: Session,
    nominee: Nominee,
    decision: Decision,
    victims: Collection[Tenant],
    *,
    now: datetime,
    until: datetime,
) -> None:
    """Keep the room for ``nominee``, and note that ``victims`` go for it. Raises PlanIsStale, and leaves nothing, when
    one of them has moved on, goes for somebody else, or is kept by its deployment's floor by now."""
    _one_at_a_time(session)
    expire(session, now)
    _check(session, nominee.priority, victims, now)
    nominate(session, nominee, decision.seats, until)
    for victim in sorted(victims, key=lambda v: v.instance_id):
        reason = f"gives way to {nominee.name} (priority {level(nominee.priority)})"
        evict(session, nominee.name, victim, reason, until=until, by=now)


def evict(
    session: Session, nominee: str, victim: Tenant, reason: str, *, until: datetime, by: datetime | None = None
) -> None:
    """Note that it goes for ``nominee``; the audit log remembers."""
    session.merge(
        EvictionRow(
            instance_id=victim.instance_id,
            deployment=victim.deployment,
            fence=victim.fence,
            nominee=nominee,
            by=by,
            reason=reason,
            expires_at=until,
        )
    )
    action = "instance.preempt" if by is not None else "instance.move"
    session.add(
        AuditRow(actor=f"instance:{nominee}", action=action, target=victim.instance_id, outcome="done", reason=reason)
    )


def move(
    session: Session, nominee: Nominee, tenant: Tenant, room: Iterable[Room], *, reason: str, until: datetime
) -> bool:
    """Note that ``tenant`` is moved to ``room`` for ``nominee``, and keep that for its replacement. False, and nothing
    is noted, when it has moved on or goes for somebody else. Twice is once."""
    known = session.get(EvictionRow, tenant.instance_id)
    if known is not None and known.nominee != nominee.name:
        return False
    if (tenant.instance_id, tenant.fence) not in held(session, [tenant.instance_id]):
        return False
    # Whoever takes that room keeps the one that waits out of its own.
    priority = max(tenant.priority, nominee.priority)
    replacement = Nominee(MOVE + tenant.instance_id, tenant.deployment, priority)
    nominate(session, replacement, room, until)
    evict(session, nominee.name, tenant, reason, until=until)
    return True


def leavers(session: Session, nominee: str, now: datetime) -> list[Leaver]:
    """Those that were asked to go for ``nominee`` and still hold what they held then."""
    query = (
        select(EvictionRow, ClaimRow.host_id)
        .join(ClaimRow, col(ClaimRow.instance_id) == col(EvictionRow.instance_id))
        .where(EvictionRow.nominee == nominee, EvictionRow.expires_at > now, ClaimRow.fence == EvictionRow.fence)
    )
    standing = priorities(session)
    found = {row.instance_id: _leaver(row, host_id, standing) for row, host_id in session.exec(query).all()}
    return sorted(found.values(), key=lambda leaver: leaver.instance_id)


def _leaver(row: EvictionRow, host_id: str, priorities: dict[str, int]) -> Leaver:
    priority = priorities.get(row.deployment, 1)
    return Leaver(row.instance_id, row.deployment, host_id, row.by, row.reason, priority)


def of(session: Session, nominee: str, now: datetime) -> list[NominationRow]:
    """What is kept for it."""
    query = select(NominationRow).where(NominationRow.nominee == nominee, NominationRow.expires_at > now)
    return list(session.exec(query).all())


def nominated(session: Session, instance_id: str, deployment: str, priority: int, now: datetime) -> Nominated:
    """What an instance that asks for room has to leave to others: what is kept for those of its own priority and
    above. To be taken from the fleet by ``fleet.policy.nominated.visible``."""
    rows = session.exec(select(NominationRow).where(NominationRow.expires_at > now)).all()
    evicted = session.exec(select(EvictionRow).where(EvictionRow.expires_at > now)).all()
    mine = [r for r in rows if _may_use(r, instance_id, deployment)]
    others = [r for r in rows if r.priority >= priority and r not in mine]
    return Nominated(
        bytes_on=_beyond_what_isheld(session, others, evicted),
        leaving=frozenset(e.instance_id for e in evicted if e.by is not None),
        bound_for=tuple(sorted({r.host_id for r in mine if r.nominee.startswith(MOVE)})),
    )


def _may_use(row: NominationRow, instance_id: str, deployment: str) -> bool:
    if row.nominee.startswith(MOVE):
        return row.deployment == deployment and row.nominee != MOVE + instance_id
    return row.nominee == instance_id


def _beyond_what_isheld(
    session: Session, kept: Iterable[NominationRow], evicted: Iterable[EvictionRow]
) -> dict[tuple[str, str], int]:
    fences = {e.instance_id: e for e in evicted}
    held: dict[tuple[str, str, str], int] = {}
    claims = select(ClaimRow).where(col(ClaimRow.instance_id).in_(fences)) if fences else None
    for claim in session.exec(claims).all() if claims is not None else ():
        eviction = fences[claim.instance_id]
        if claim.fence == eviction.fence:
            key = (eviction.nominee, claim.host_id, claim.gpu_uuid)
            held[key] = held.get(key, 0) + claim.memory_bytes
    found: dict[tuple[str, str], int] = {}
    for row in kept:
        beyond = row.memory_bytes - held.get((row.nominee, row.host_id, row.gpu_uuid), 0)
        if beyond > 0:
            card = (row.host_id, row.gpu_uuid)
            found[card] = found.get(card, 0) + beyond
    return found


def placed(session: Session, instance_id: str, deployment: str, hosts: Collection[str]) -> None:
    """The instance has a claim now: nothing is kept for it any more. As the replacement of one that is moved, it also
    takes what was kept for that."""
    end(session, instance_id)
    query = select(NominationRow.nominee).where(
        NominationRow.deployment == deployment,
        col(NominationRow.nominee).startswith(MOVE),
        col(NominationRow.host_id).in_(hosts),
        NominationRow.nominee != MOVE + instance_id,
    )
    for nominee in sorted(set(session.exec(query).all()))[:1]:
        session.execute(delete(NominationRow).where(col(NominationRow.nominee) == nominee))


def end(session: Session, nominee: str) -> None:
    """Nothing is kept for it any more. Who leaves already leaves on."""
    session.execute(delete(NominationRow).where(col(NominationRow.nominee) == nominee))
    session.execute(delete(EvictionRow).where(col(EvictionRow.nominee) == nominee))


def gone(session: Session, instance_id: str) -> None:
    """The instance has ended: as a nominee, and as one that was asked to go."""
    end(session, instance_id)
    session.execute(delete(EvictionRow).where(col(EvictionRow.instance_id) == instance_id))


def stay(session: Session, instance_id: str) -> None:
    """It need not go any more, and nothing is kept for its replacement."""
    session.execute(delete(EvictionRow).where(col(EvictionRow.instance_id) == instance_id))
    session.execute(delete(NominationRow).where(col(NominationRow.nominee) == MOVE + instance_id))


def expire(session: Session, now: datetime) -> None:
    session.execute(delete(NominationRow).where(col(NominationRow.expires_at) <= now))
    session.execute(delete(EvictionRow).where(col(EvictionRow.expires_at) <= now))


def _check(session: Session, taker: int, victims: Collection[Tenant], now: datetime) -> None:
    ids = [v.instance_id for v in victims]
    if session.exec(select(EvictionRow.instance_id).where(col(EvictionRow.instance_id).in_(ids))).first():
        raise PlanIsStale("one of them goes for somebody else already")
    if missing := {(v.instance_id, v.fence) for v in victims} - held(session, ids):
        raise PlanIsStale(f"{min(missing)[0]} has moved on")
    _check_floors(session, taker, ids, now)


def held(session: Session, ids: Collection[str]) -> set[tuple[str, int]]:
    """(Instance, fence) of placements that are not given up."""
    query = select(ClaimRow.instance_id, ClaimRow.fence).where(ClaimRow.state != ClaimState.RELEASING)
    return set(session.exec(query.where(col(ClaimRow.instance_id).in_(ids))).all())


def _check_floors(session: Session, taker: int, ids: Collection[str], now: datetime) -> None:
    ready: dict[str, int] = {}
    rows = session.exec(select(InstanceRow).where(col(InstanceRow.id).in_(ids))).all()
    for row in rows:
        if row.state == InstanceState.READY:
            ready[row.deployment] = ready.get(row.deployment, 0) + 1
    standing = standings(session, now)
    for deployment, taken in ready.items():
        spares = standing[deployment].spares(taker) if deployment in standing else None
        if spares is not None and taken > spares:
            raise PlanIsStale(f"{deployment} can spare {spares} ready replicas by now, not {taken}")


def _one_at_a_time(session: Session) -> None:
    """Two planners must not both take the last replica above a floor. SQLite has one writer at a time anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('preemption', 0))"))
