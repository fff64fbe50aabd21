"""The ledger of memory: who holds what. Truth for placement; no crash and no race over-books it."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, func, text, update
from sqlmodel import Session, col, select

from fleet.db.tables import ClaimRow, GpuRow, HostRow
from fleet.inventory import EngineRef
from fleet.placement.request import Placement
from fleet.states import ClaimState, HostState, Maintenance

HELD_FOR = timedelta(minutes=2)
"""A claim that no host has taken up by then is free again."""


class ClaimLost(Exception):
    """The room was there when we looked and is gone now, or the host changed: look again."""


class StaleFence(Exception):
    """A newer placement of the same instance exists, under ``newest``."""

    def __init__(self, newest: int) -> None:
        super().__init__(f"placed again under fence {newest}")
        self.newest = newest


def existing(session: Session, instance_id: str, fence: int) -> Placement | None:
    """The placement made earlier under this fence; raises StaleFence when a newer one exists.

    Until the transaction ends no other one can claim for this instance.
    """
    _one_planner_for(session, instance_id)
    rows = session.exec(select(ClaimRow).where(ClaimRow.instance_id == instance_id)).all()
    newest = max((r.fence for r in rows), default=0)
    if newest > fence:
        raise StaleFence(newest)
    return next((Placement.model_validate(r.placement) for r in rows if r.fence == fence), None)


def claim(session: Session, instance_id: str, fence: int, placement: Placement, generation: int) -> None:
    """Reserve what ``placement`` names, or raise ClaimLost (or StaleFence) and leave nothing.

    ``generation`` is that of the inventory the decision was made on. The guard is in the write itself.
    ClaimLost also when another planner has placed this fence meanwhile: ``existing`` has its answer.
    """
    if existing(session, instance_id, fence) is not None:
        raise ClaimLost(f"{instance_id} was placed under fence {fence} meanwhile")
    _take_ram_or_host(session, placement, generation)
    for uuid in sorted(placement.gpu_uuids):
        _take_gpu(session, uuid, placement, generation)
    for uuid in placement.gpu_uuids or ("",):
        session.add(
            ClaimRow(
                instance_id=instance_id,
                fence=fence,
                gpu_uuid=uuid,
                host_id=placement.host_id,
                memory_bytes=placement.memory_bytes,
                state=ClaimState.HELD,
                placement=placement.model_dump(mode="json"),
                expires_at=datetime.now(UTC) + HELD_FOR,
            )
        )
    session.flush()


def bind(session: Session, instance_id: str, fence: int) -> bool:
    """From now on the claim does not expire. False: it has, or was given back; the room may be somebody else's."""
    session.execute(
        update(ClaimRow)
        .where(
            col(ClaimRow.instance_id) == instance_id,
            col(ClaimRow.fence) == fence,
            col(ClaimRow.state) == ClaimState.HELD,
        )
        .values(state=ClaimState.BOUND, expires_at=None)
    )
    return host_of(session, instance_id, fence) is not None


def release(session: Session, instance_id: str, fence: int) -> None:
    """Free the claims of this fence and older ones; the host has said that the engine is gone."""
    _free(session, _claims_up_to(session, instance_id, fence))


def give_up(session: Session, instance_id: str, fence: int) -> None:
    """Keep the memory booked until its (lost) host confirms that the engine is gone."""
    for row in _claims_up_to(session, instance_id, fence):
        row.state = ClaimState.RELEASING
        row.expires_at = None
        session.add(row)


def confirm_gone(session: Session, host_id: str, running: set[EngineRef]) -> int:
    """Free what was given up and does not run any more on ``host_id``. Returns how many claims."""
    rows = session.exec(
        select(ClaimRow).where(ClaimRow.host_id == host_id, ClaimRow.state == ClaimState.RELEASING)
    ).all()
    gone = [r for r in rows if EngineRef(instance_id=r.instance_id, fence=r.fence) not in running]
    _free(session, gone)
    return len(gone)


def expire(session: Session, at: datetime) -> int:
    """Free claims that were held and never taken up. Returns how many."""
    query = select(ClaimRow).where(ClaimRow.state == ClaimState.HELD, col(ClaimRow.expires_at) < at)
    # Locked, so that a host that is just binding one of them either keeps it or finds it gone.
    rows = session.exec(query.with_for_update()).all()
    _free(session, list(rows))
    return len(rows)


def legitimate(session: Session, host_id: str) -> set[EngineRef]:
    """The engines that should run on ``host_id``."""
    rows = session.exec(
        select(ClaimRow).where(ClaimRow.host_id == host_id, ClaimRow.state != ClaimState.RELEASING)
    ).all()
    return {EngineRef(instance_id=r.instance_id, fence=r.fence) for r in rows}


def host_of(session: Session, instance_id: str, fence: int) -> str | None:
    """Where this placement is; None when there is no such claim."""
    query = select(ClaimRow.host_id).where(ClaimRow.instance_id == instance_id, ClaimRow.fence == fence)
    return session.exec(query).first()


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


def _one_planner_for(session: Session, instance_id: str) -> None:
    """Before the first claim there is no row to lock. SQLite has one writer at a time anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:id, 0))"), {"id": instance_id})


def _take_ram_or_host(session: Session, placement: Placement, generation: int) -> None:
    ram = 0 if placement.gpu_uuids else placement.memory_bytes
    taken = session.execute(
        update(HostRow)
        .where(
            col(HostRow.id) == placement.host_id,
            col(HostRow.state) == HostState.READY,
            col(HostRow.maintenance) == Maintenance.NONE,
            col(HostRow.generation) == generation,
            col(HostRow.ram_used) + ram <= col(HostRow.ram_allocatable),
        )
        .values(ram_used=HostRow.ram_used + ram)
    )
    if taken.rowcount != 1:  # type: ignore[attr-defined]
        raise ClaimLost(f"host {placement.host_id} has no room any more, or changed")


def _take_gpu(session: Session, uuid: str, placement: Placement, generation: int) -> None:
    taken = session.execute(
        update(GpuRow)
        .where(
            col(GpuRow.uuid) == uuid,
            col(GpuRow.host_id) == placement.host_id,
            col(GpuRow.generation) == generation,
            col(GpuRow.healthy),
            ~col(GpuRow.cordoned),
            col(GpuRow.used) + placement.memory_bytes <= col(GpuRow.allocatable),
        )
        .values(used=GpuRow.used + placement.memory_bytes)
    )
    if taken.rowcount != 1:  # type: ignore[attr-defined]
        raise ClaimLost(f"GPU {uuid} has no room any more, or changed")


def _claims_up_to(session: Session, instance_id: str, fence: int) -> list[ClaimRow]:
    query = select(ClaimRow).where(ClaimRow.instance_id == instance_id, ClaimRow.fence <= fence)
    return list(session.exec(query.with_for_update()).all())


def _free(session: Session, rows: list[ClaimRow]) -> None:
    for row in sorted(rows, key=lambda r: (r.host_id, r.gpu_uuid)):
        deleted = session.execute(
            delete(ClaimRow).where(
                col(ClaimRow.instance_id) == row.instance_id,
                col(ClaimRow.fence) == row.fence,
                col(ClaimRow.gpu_uuid) == row.gpu_uuid,
            )
        )
        if deleted.rowcount != 1:  # type: ignore[attr-defined]
            continue  # somebody else freed it: subtracting twice would open room that is taken
        if row.gpu_uuid:
            # A card that moved to another host owes nothing for what ran on the one before.
            gpu = update(GpuRow).where(col(GpuRow.uuid) == row.gpu_uuid, col(GpuRow.host_id) == row.host_id)
            session.execute(gpu.values(used=GpuRow.used - row.memory_bytes))
        else:
            host = update(HostRow).where(col(HostRow.id) == row.host_id)
            session.execute(host.values(ram_used=HostRow.ram_used - row.memory_bytes))
    session.expire_all()
