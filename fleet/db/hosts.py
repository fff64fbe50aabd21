"""Hosts as the ledger knows them."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select

from fleet.db import claims, host_settings, registry
from fleet.db.gpu_status import NOT_REPORTED
from fleet.db.tables import ClaimRow, GpuRow, HostRow, HostStatusRow, PortClaimRow
from fleet.host_client import HostAddress
from fleet.inventory import AcceleratorKind, Gpu, Inventory, Registration
from fleet.placement.room import gpu_room
from fleet.placement.view import GpuView, HostView
from fleet.states import ClaimState, HostState, Maintenance


@dataclass(frozen=True)
class ReadyHost:
    view: HostView
    """Without the model file."""
    address: HostAddress


def address_of(row: HostRow) -> HostAddress:
    return HostAddress(row.id, row.address, row.http_port, row.tunnel_only, row.tunnel_url)


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
    changed |= row.fabric_address != inventory.fabric_address  # what a gang was told of it
    row.name = inventory.hostname
    row.machine_id = inventory.machine_id
    row.address = registration.address
    row.http_port = registration.http_port
    row.version = registration.version
    row.inventory = inventory.model_dump(mode="json")
    row.fingerprint = inventory.fingerprint()
    row.port_first, row.port_last = inventory.port_range or (0, 0)
    row.fabric_address = inventory.fabric_address
    row.labels = inventory.labels | row.given_labels
    row.ram_allocatable = host_settings.ram_allocatable(inventory, row.reserve)
    row.seen_at = datetime.now(UTC)
    if changed:
        row.generation += 1
    _save_gpus(session, row, inventory)
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
        session.execute(delete(PortClaimRow).where(col(PortClaimRow.host_id) == host_id))
        session.execute(delete(HostStatusRow).where(col(HostStatusRow.host_id) == host_id))
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


def _save_gpus(session: Session, host: HostRow, inventory: Inventory) -> None:
    """A cordoned card stays cordoned. One that is away stays known: one that fell off the bus comes back."""
    # In the order in which claims lock them.
    ours = select(GpuRow.uuid).where(GpuRow.host_id == host.id).order_by(col(GpuRow.uuid))
    session.exec(ours.with_for_update()).all()
    gpus = tuple(_unless_elsewhere(session, host.id, gpu) for gpu in inventory.gpus)
    _keep_away(session, host.id, gpus)
    reserved = host_settings.vram_reserved(inventory, host.reserve)
    for gpu in sorted(gpus, key=lambda g: g.uuid):
        # Locked and read anew: a cordon of this moment is not to be overwritten.
        known = session.get(GpuRow, gpu.uuid, with_for_update=True, populate_existing=True)
        foreign = known.foreign_bytes if known is not None and known.host_id == host.id else 0
        session.merge(
            GpuRow(
                uuid=gpu.uuid,
                host_id=host.id,
                index=gpu.index,
                kind=gpu.kind,
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                allocatable=gpu_room(gpu.memory_bytes, foreign, reserved),
                used=known.used if known is not None else 0,
                healthy=gpu.healthy,
                reason=gpu.reason,
                cordoned=known is not None and known.cordoned,
                cordon_reason=known.cordon_reason if known is not None else "",
                foreign_bytes=foreign,
                details=gpu.model_dump(mode="json"),
                generation=host.generation,
            )
        )
    session.flush()


def _keep_away(session: Session, host_id: str, gpus: tuple[Gpu, ...]) -> None:
    """What of the host's cards is not among ``gpus``: those that may come back stay, unhealthy."""
    present, taken = {g.uuid for g in gpus}, {g.pci_address for g in gpus}
    away = select(GpuRow).where(GpuRow.host_id == host_id, col(GpuRow.uuid).not_in(present))
    for row in session.exec(away.execution_options(populate_existing=True)).all():
        if row.cordoned or _may_come_back(row, taken):
            row.healthy, row.reason = False, NOT_REPORTED
            session.add(row)
        else:
            session.delete(row)
    session.flush()


def _may_come_back(row: GpuRow, taken: set[str]) -> bool:
    """A MIG instance does not, nor a card that another one replaced."""
    if not row.details:
        return False
    was = Gpu.model_validate(row.details)
    return bool(was.pci_address) and not was.parent_uuid and was.pci_address not in taken


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
        gpus=tuple(_gpu_view(g) for g in gpus if g.healthy and not g.cordoned and g.memory_bytes > 0),
        engines=inventory.engines,
        replicas_of_deployment=replicas,
        model=None,
        cordoned_gpus=tuple((g.uuid, g.cordon_reason) for g in gpus if g.cordoned),
        runtimes=inventory.runtimes,
        reserved_for=row.reserved_for,
    )


def _gpu_view(row: GpuRow) -> GpuView:
    return GpuView(
        uuid=row.uuid,
        free_bytes=row.allocatable - row.used,
        total_bytes=row.memory_bytes,
        kind=AcceleratorKind(row.kind),
        part=bool(row.details.get("parent_uuid")),
    )
