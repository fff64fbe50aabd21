"""The ledger of memory and ports: who holds what. Truth for placement; no crash and no race over-books it.

A placement may span hosts (a gang): its claims are made and bound as one, and each host frees its own part.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, func, insert, update
from sqlmodel import Session, col, select

from fleet.db import guarded, ports
from fleet.db.alone import alone_on
from fleet.db.lost import ClaimLost, StaleFence
from fleet.db.session import Json
from fleet.db.tables import ClaimRow, GpuRow, HostRow
from fleet.inventory import EngineRef
from fleet.placement.parts import Part, parts_of
from fleet.placement.request import Placement
from fleet.states import ClaimState, Maintenance

__all__ = ["ClaimLost", "StaleFence"]

HELD_FOR = timedelta(minutes=2)
"""A claim that no host has taken up by then is free again."""


_NEWEST = (
    select(ClaimRow.fence, ClaimRow.placement)
    .where(col(ClaimRow.instance_id) == bindparam("instance"))
    .order_by(col(ClaimRow.fence).desc())
    .limit(1)
)
_INSERT = insert(ClaimRow)
_KEY = (ClaimRow.instance_id, ClaimRow.fence, ClaimRow.host_id, ClaimRow.gpu_uuid)


def existing(session: Session, instance_id: str, fence: int) -> Placement | None:
    """The placement made earlier under this fence; raises StaleFence when a newer one exists.

    Until the transaction ends no other one can claim for this instance.
    """
    alone_on(session, instance_id)
    newest = session.connection().execute(_NEWEST, {"instance": instance_id}).first()
    if newest is None or newest.fence < fence:
        return None
    if newest.fence > fence:
        raise StaleFence(newest.fence)
    return Placement.model_validate(newest.placement)


def claim(
    session: Session,
    instance_id: str,
    fence: int,
    placement: Placement,
    generations: Mapping[str, int],
    *,
    priority: int = 1,
) -> None:
    """Reserve all that ``placement`` names on all its hosts, or raise ClaimLost (or StaleFence) and leave nothing.

    ``generations``: for each of its hosts that of the inventory the decision was made on. The guard is in the write
    itself. ClaimLost also when another planner has placed this fence meanwhile: ``existing`` has its answer.
    """
    parts = parts_of(placement)
    if existing(session, instance_id, fence) is not None:
        raise ClaimLost(f"{instance_id} was placed under fence {fence} meanwhile")
    session.flush()
    guarded.take(session, parts, generations)
    ports.take(session, instance_id, fence, parts)
    same = {
        "instance_id": instance_id,
        "fence": fence,
        "state": ClaimState.HELD,
        "placement": Json(placement.model_dump_json()),
        "expires_at": datetime.now(UTC) + HELD_FOR,
        "hosts": len(parts),
        "priority": priority,
    }
    session.connection().execute(_INSERT, [same | row for part in parts for row in _rows_of(part)])
    session.expire_all()


def bind(session: Session, instance_id: str, fence: int) -> bool:
    """From now on the claims do not expire. False: they have, or were given back (one host's part is enough): the room
    may be somebody else's."""
    mine = (ClaimRow.instance_id == instance_id, ClaimRow.fence == fence)
    rows: Sequence[ClaimRow] = session.exec(select(ClaimRow).where(*mine)).all()
    if any(row.state == ClaimState.HELD for row in rows):
        rows = _locked(session, *mine)
        for row in rows:
            if row.state == ClaimState.HELD:
                row.state, row.expires_at = ClaimState.BOUND, None
                session.add(row)
    return bool(rows) and len({row.host_id for row in rows}) == rows[0].hosts


def release(session: Session, instance_id: str, fence: int, gone_from: Collection[str] | None = None) -> None:
    """Free the claims of this fence and older ones; the host has said that the engine is gone.

    ``gone_from``: the hosts that have said so; None: the leader's. What a gang holds on others stays booked until they
    confirm it too, as after ``give_up``.
    """
    gone: list[ClaimRow] = []
    others: list[ClaimRow] = []
    for row in _claims_up_to(session, instance_id, fence):
        said = row.rank == 0 if gone_from is None else row.host_id in gone_from
        (gone if said else others).append(row)
    _await_confirmation(session, others)
    _free(session, gone)


def give_up(session: Session, instance_id: str, fence: int) -> None:
    """Keep the memory booked until its (lost) host, of a gang each host, confirms that the engine is gone."""
    _await_confirmation(session, _claims_up_to(session, instance_id, fence))


def confirm_gone(session: Session, host_id: str, running: set[EngineRef]) -> int:
    """Free what was given up and does not run any more on ``host_id``. Returns of how many placements."""
    given_up = (ClaimRow.host_id == host_id, ClaimRow.state == ClaimState.RELEASING)
    gone = [r for r in _locked(session, *given_up) if _ref(r) not in running]
    _free(session, gone)
    return len({_ref(r) for r in gone})


def expire(session: Session, at: datetime) -> int:
    """Free claims that were held and never taken up. Returns of how many placements."""
    # Locked, so that a host that is just binding one of them either keeps it or finds it gone.
    rows = _locked(session, ClaimRow.state == ClaimState.HELD, col(ClaimRow.expires_at) < at)
    _free(session, rows)
    return len({_ref(r) for r in rows})


def legitimate(session: Session, host_id: str) -> set[EngineRef]:
    """The engines that should run on ``host_id``; of gangs also those that follow another host's."""
    query = select(ClaimRow.instance_id, ClaimRow.fence).where(ClaimRow.host_id == host_id).distinct()
    rows = session.exec(query.where(ClaimRow.state != ClaimState.RELEASING)).all()
    return {EngineRef(instance_id=instance_id, fence=fence) for instance_id, fence in rows}


def host_of(session: Session, instance_id: str, fence: int) -> str | None:
    """Where this placement is, of a gang its leader; None when there is no such claim."""
    query = select(ClaimRow.host_id).where(ClaimRow.instance_id == instance_id, ClaimRow.fence == fence)
    return session.exec(query.where(ClaimRow.rank == 0)).first()


def hosts_of(session: Session, instance_id: str, fence: int) -> tuple[str, ...]:
    """All hosts on which this placement holds something, by rank."""
    query = select(ClaimRow.rank, ClaimRow.host_id).where(ClaimRow.instance_id == instance_id, ClaimRow.fence == fence)
    return tuple(host_id for _, host_id in sorted(session.exec(query.distinct()).all()))


def instances_on(session: Session, host_id: str) -> list[str]:
    query = select(ClaimRow.instance_id).where(ClaimRow.host_id == host_id)
    return sorted(set(session.exec(query.where(ClaimRow.state != ClaimState.RELEASING)).all()))


def maintained_hosts_of(session: Session, instance_id: str) -> list[str]:
    """Hosts in maintenance on which the instance holds claims: they wait for it to leave."""
    query = select(ClaimRow.host_id).join(HostRow, col(HostRow.id) == col(ClaimRow.host_id))
    query = query.where(ClaimRow.instance_id == instance_id, HostRow.maintenance != Maintenance.NONE)
    return sorted(set(session.exec(query).all()))


def recount(session: Session, host_id: str) -> None:
    """Set the guarded counters of a host to the sum of its claims (after its inventory changed)."""
    session.flush()
    # Claims and releases change these rows too: only once they are locked do the sums miss none under way.
    session.execute(select(HostRow.id).where(HostRow.id == host_id).with_for_update())
    gpus = select(GpuRow.uuid).where(GpuRow.host_id == host_id).order_by(col(GpuRow.uuid)).with_for_update()
    uuids = session.exec(gpus).all()
    sums = dict(
        session.execute(
            select(ClaimRow.gpu_uuid, func.sum(ClaimRow.memory_bytes))
            .where(ClaimRow.host_id == host_id)
            .group_by(ClaimRow.gpu_uuid)
        ).all()
    )
    session.execute(update(HostRow).where(col(HostRow.id) == host_id).values(ram_used=int(sums.get("", 0))))
    for uuid in uuids:
        session.execute(update(GpuRow).where(col(GpuRow.uuid) == uuid).values(used=int(sums.get(uuid, 0))))
    session.expire_all()


def _rows_of(part: Part) -> list[dict[str, Any]]:
    """Of the claims on one host, what differs between them."""
    rows = [{"gpu_uuid": uuid, "memory_bytes": part.gpu_bytes} for uuid in part.gpu_uuids]
    if part.ram_bytes or not rows:
        rows.append({"gpu_uuid": "", "memory_bytes": part.ram_bytes})
    return [row | {"host_id": part.host_id, "rank": part.rank} for row in rows]


def _claims_up_to(session: Session, instance_id: str, fence: int) -> list[ClaimRow]:
    return _locked(session, ClaimRow.instance_id == instance_id, ClaimRow.fence <= fence)


def _locked(session: Session, *which: Any) -> list[ClaimRow]:
    """These claims as they are now; until the transaction ends nobody else changes them."""
    query = select(ClaimRow).where(*which).order_by(*map(col, _KEY)).with_for_update()
    return list(session.exec(query.execution_options(populate_existing=True)).all())


def _await_confirmation(session: Session, rows: Sequence[ClaimRow]) -> None:
    for row in rows:
        row.state, row.expires_at = ClaimState.RELEASING, None
        session.add(row)


def _ref(row: ClaimRow) -> EngineRef:
    return EngineRef(instance_id=row.instance_id, fence=row.fence)


def _free(session: Session, rows: Sequence[ClaimRow]) -> None:
    """``rows`` are locked."""
    if not rows:
        return
    session.flush()
    guarded.give_back(session, rows)
    ports.free(session, {(r.instance_id, r.fence, r.host_id) for r in rows})
    for row in rows:
        session.expunge(row)
    session.expire_all()
