"""Hosts as the ledger knows them."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select

from fleet.db import claims, registry
from fleet.db.tables import ClaimRow, GpuRow, HostRow
from fleet.host_client import HostAddress
from fleet.inventory import Gpu, Inventory, Registration
from fleet.placement.choose import GpuView, HostView
from fleet.states import ClaimState, HostState, Maintenance


@dataclass(frozen=True)
class ReadyHost:
    view: HostView
    """Without the model file."""
    address: HostAddress


def address_of(row: HostRow) -> HostAddress:
    return HostAddress(row.id, row.address, row.http_port, row.credential_hash)


def ready_hosts(session: Session, deployment: str) -> list[ReadyHost]:
    """All hosts that take new work, with what is free on them now."""
    replicas = replicas_by_host(session, deployment)
    gpus: dict[str, list[GpuRow]] = {}
    for gpu in session.exec(select(GpuRow).order_by(col(GpuRow.index))).all():
        gpus.setdefault(gpu.host_id, []).append(gpu)
    ready = select(HostRow).where(HostRow.state == HostState.READY, HostRow.maintenance == Maintenance.NONE)
    rows = session.exec(ready).all()
    return [ReadyHost(_view(row, gpus.get(row.id, []), replicas.get(row.id, 0)), address_of(row)) for row in rows]


def replicas_by_host(session: Session, deployment: str) -> dict[str, int]:
    """How many instances of a deployment are placed on each host that has any."""
    counts = session.execute(
        select(ClaimRow.host_id, func.count(func.distinct(ClaimRow.instance_id)))
        .where(col(ClaimRow.instance_id).startswith(f"{deployment}/", autoescape=True))
        .where(ClaimRow.state != ClaimState.RELEASING)
        .group_by(ClaimRow.host_id)
    ).all()
    return dict(counts)


def save_registration(session: Session, host_id: str, registration: Registration) -> None:
    """Store what a host says of itself. A changed inventory gets a new generation, so that old decisions fail."""
    row = session.get_one(HostRow, host_id, with_for_update=True)
    inventory = registration.inventory
    changed = not row.inventory or not Inventory.model_validate(row.inventory).same_hardware(inventory)
    row.name = inventory.hostname
    row.machine_id = inventory.machine_id
    row.address = registration.address
    row.http_port = registration.http_port
    row.version = registration.version
    row.inventory = inventory.model_dump(mode="json")
    row.labels = inventory.labels
    row.ram_allocatable = inventory.ram_allocatable_bytes
    row.seen_at = datetime.now(UTC)
    if changed:
        row.generation += 1
        _save_gpus(session, host_id, inventory.gpus, row.generation)
    session.add(row)
    session.flush()
    if changed:
        claims.recount(session, host_id)


def record_state(
    session: Session, host_id: str, state: HostState, message: str, projection: int, **more: object
) -> None:
    """The host workflow's word on its host. ``more``: other columns that it writes."""
    if state is HostState.FORGOTTEN:
        # The host first: a claim that is being made on it holds its row, and is seen below once it is through.
        session.execute(delete(HostRow).where(col(HostRow.id) == host_id))
        session.execute(delete(GpuRow).where(col(GpuRow.host_id) == host_id))
        session.execute(delete(ClaimRow).where(col(ClaimRow.host_id) == host_id))
        registry.bump(session)
        return
    before = session.exec(select(HostRow.state).where(HostRow.id == host_id)).first()
    recorded = session.execute(
        update(HostRow)
        .where(col(HostRow.id) == host_id, col(HostRow.projection) < projection)
        .values(state=state, message=message, projection=projection, **more)
    )
    if recorded.rowcount and before != state:  # type: ignore[attr-defined]
        registry.bump(session)  # gateways ask the engines of a suspect host last


def _save_gpus(session: Session, host_id: str, gpus: tuple[Gpu, ...], generation: int) -> None:
    """A cordoned card stays cordoned, and known while it is away: one that fell off the bus comes back."""
    gpus = tuple(_unless_elsewhere(session, host_id, gpu) for gpu in gpus)
    present = [g.uuid for g in gpus]
    away = (col(GpuRow.host_id) == host_id, col(GpuRow.uuid).not_in(present))
    session.execute(delete(GpuRow).where(*away, ~col(GpuRow.cordoned)))
    session.execute(update(GpuRow).where(*away).values(healthy=False, reason="its host does not report it any more"))
    for gpu in sorted(gpus, key=lambda g: g.uuid):
        # Locked and read anew: a cordon of this moment is not to be overwritten.
        known = session.get(GpuRow, gpu.uuid, with_for_update=True, populate_existing=True)
        session.merge(
            GpuRow(
                uuid=gpu.uuid,
                host_id=host_id,
                index=gpu.index,
                kind=gpu.kind,
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                allocatable=gpu.memory_bytes,
                healthy=gpu.healthy,
                reason=gpu.reason,
                cordoned=known is not None and known.cordoned,
                cordon_reason=known.cordon_reason if known is not None else "",
                generation=generation,
            )
        )
    session.flush()


def _unless_elsewhere(session: Session, host_id: str, gpu: Gpu) -> Gpu:
    """A card belongs to the host that reported it first, as long as that one lives (a cloned machine, say)."""
    known = session.get(GpuRow, gpu.uuid)
    owner = session.get(HostRow, known.host_id) if known is not None and known.host_id != host_id else None
    if owner is None or owner.state == HostState.LOST:
        return gpu
    reason = f"host {owner.id} reports the same card"
    return gpu.model_copy(update={"uuid": f"{gpu.uuid}@{host_id}", "healthy": False, "reason": reason})


def _view(row: HostRow, gpus: list[GpuRow], replicas: int) -> HostView:
    inventory = Inventory.model_validate(row.inventory)
    return HostView(
        host_id=row.id,
        name=row.name,
        generation=row.generation,
        labels=row.labels,
        ram_free_bytes=row.ram_allocatable - row.ram_used,
        ram_total_bytes=row.ram_allocatable,
        gpus=tuple(
            GpuView(g.uuid, g.allocatable - g.used, g.memory_bytes) for g in gpus if g.healthy and not g.cordoned
        ),
        engines=inventory.engines,
        replicas_of_deployment=replicas,
        model=None,
        cordoned_gpus=tuple((g.uuid, g.cordon_reason) for g in gpus if g.cordoned),
        runtimes=inventory.runtimes,
    )
