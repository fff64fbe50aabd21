"""Hosts, as people see them."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlmodel import Session, col, select

from api.management.gpus import GpuView, gpu_view
from api.management.paging import Cursor, LabelFilter, Limit, Page, has_labels, page
from api.state import AdminDep, Services, ServicesDep
from fleet import ids
from fleet.db import claims
from fleet.db.tables import GpuRow, HostRow
from fleet.errors import Conflict, NotFound
from fleet.settings import Settings
from fleet.states import HostState, Maintenance

router = APIRouter(prefix="/hosts", tags=["hosts"])


class HostView(BaseModel):
    id: str
    name: str
    state: str
    message: str
    address: str
    version: str
    labels: dict[str, str]
    inventory: dict[str, Any]
    ram_allocatable_bytes: int
    ram_used_bytes: int
    gpus: list[GpuView]
    maintenance: Maintenance
    maintenance_message: str
    lost_at: datetime | None
    replacement_paused: bool
    """Lost together with too many others: its replicas stay its own until somebody approves."""
    joined_at: datetime
    workflow_url: str


Rows = tuple[HostRow, list[GpuRow]]


@router.get("", summary="List hosts")
async def list_(
    services: ServicesDep,
    _admin: AdminDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    label: LabelFilter = None,
) -> Page[HostView]:
    rows = await services.database.aread(_all)
    chosen = [r for r in rows if has_labels(r[0].labels, label)]
    return page(chosen, limit, cursor, lambda r: r[0].id, lambda r: view(services.settings, r))


@router.get("/{host_id}", summary="Read a host")
async def get(host_id: str, services: ServicesDep, _admin: AdminDep) -> HostView:
    return view(services.settings, await existing(services, host_id))


@router.delete("/{host_id}", status_code=204, summary="Forget a host that is lost and will not come back")
async def forget(host_id: str, services: ServicesDep, _admin: AdminDep) -> Response:
    host, _ = await existing(services, host_id)
    if host.state != HostState.LOST:
        raise Conflict(f"host {host_id} is {host.state}", hint="stop its process first; only a lost host is forgotten")
    if placed := await services.database.aread(lambda s: claims.instances_on(s, host_id)):
        hint = "wait until they are placed elsewhere"
        if host.replacement_paused:
            hint = f"have them placed elsewhere first: holdfast approve-replacement {host_id}"
        raise Conflict(f"{', '.join(placed)} are still placed there", hint=hint)
    await services.workflows.forget_host(host_id)
    return Response(status_code=204)


def view(settings: Settings, rows: Rows) -> HostView:
    host, gpus = rows
    return HostView(
        id=host.id,
        name=host.name,
        state=host.state,
        message=host.message,
        address=host.address,
        version=host.version,
        labels=host.labels,
        inventory=host.inventory,
        ram_allocatable_bytes=host.ram_allocatable,
        ram_used_bytes=host.ram_used,
        gpus=[gpu_view(g) for g in gpus],
        maintenance=Maintenance(host.maintenance),
        maintenance_message=host.maintenance_message,
        lost_at=host.lost_at,
        replacement_paused=host.replacement_paused,
        joined_at=host.joined_at,
        workflow_url=settings.workflow_url(ids.host_workflow(host.id)),
    )


async def existing(services: Services, host_id: str) -> Rows:
    found = [r for r in await services.database.aread(_all) if r[0].id == host_id]
    if not found:
        raise NotFound(f"there is no host {host_id!r}", hint="GET /api/v1/hosts lists what there is")
    return found[0]


def _all(session: Session) -> list[Rows]:
    gpus: dict[str, list[GpuRow]] = {}
    for gpu in session.exec(select(GpuRow).order_by(col(GpuRow.index))).all():
        gpus.setdefault(gpu.host_id, []).append(gpu)
    hosts = session.exec(select(HostRow).order_by(col(HostRow.id))).all()
    return [(host, gpus.get(host.id, [])) for host in hosts]
