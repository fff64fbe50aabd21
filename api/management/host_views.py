"""A host as people see it: what it has, what a person has set of it, how it is right now."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field
from sqlmodel import Session, col, select

from api.management.gpus import GpuView, gpu_view
from api.state import Services
from fleet import ids
from fleet.db.host_settings import settings_of
from fleet.db.tables import GpuRow, HostRow
from fleet.errors import NotFound
from fleet.settings import Settings
from fleet.states import Maintenance
from fleet.telemetry import GpuStatus, HostStatus

Rows = tuple[HostRow, list[GpuRow]]


class GpuOfHost(GpuView):
    status: GpuStatus | None = Field(description="the newest that the host said of it")


class HostView(BaseModel):
    id: str
    name: str
    state: str
    message: str
    address: str
    http_port: int
    version: str
    boot_id: str
    labels: dict[str, str] = Field(description="those that it reports, and over them `given_labels`")
    given_labels: dict[str, str]
    reserved_for: dict[str, str] = Field(description="only deployments with all of these labels are placed here")
    reserve: dict[str, int] = Field(description="`ram_bytes`, `vram_bytes` of each GPU: set by a person, else empty")
    inventory: dict[str, Any]
    ram_allocatable_bytes: int
    ram_used_bytes: int
    gpus: list[GpuOfHost]
    status: HostStatus | None = Field(description="the newest that it said of itself, each 10 s")
    status_at: datetime | None
    status_age_s: float | None
    reach: Literal["direct", "tunnel"] = Field(description="how gateways get there")
    tunnel_connected: bool
    certificate_expires_at: datetime | None
    maintenance: Maintenance
    maintenance_message: str
    lost_at: datetime | None
    replacement_paused: bool
    """Lost together with too many others: its replicas stay its own until somebody approves."""
    joined_at: datetime
    joined_with: str
    """Id of its join token."""
    workflow_url: str


def view(settings: Settings, rows: Rows) -> HostView:
    host, gpus = rows
    status = HostStatus.model_validate(host.status) if host.status else None
    of_gpus = {g.uuid: g for g in status.gpus} if status else {}
    return HostView(
        **host.model_dump(include=_AS_IT_IS),
        ram_allocatable_bytes=host.ram_allocatable,
        ram_used_bytes=host.ram_used,
        gpus=[GpuOfHost(**gpu_view(g).model_dump(), status=of_gpus.get(g.uuid)) for g in gpus],
        status=status,
        status_age_s=_age(host.status_at),
        reach="tunnel" if host.tunnel_only else "direct",
        tunnel_connected=bool(host.tunnel_url),
        workflow_url=settings.workflow_url(ids.host_workflow(host.id)),
    )


def etag(host: HostRow) -> str:
    """Of what people can set."""
    return f'"{settings_of(host).tag}"'


async def existing(services: Services, host_id: str) -> Rows:
    found = None if "\x00" in host_id else await services.database.aread(lambda s: _one(s, host_id))
    if found is None:
        raise NotFound(f"there is no host {host_id!r}", hint="GET /api/v1/hosts lists what there is")
    return found


def all_hosts(session: Session) -> list[Rows]:
    gpus: dict[str, list[GpuRow]] = {}
    for gpu in session.exec(select(GpuRow).order_by(col(GpuRow.index))).all():
        gpus.setdefault(gpu.host_id, []).append(gpu)
    hosts = session.exec(select(HostRow).order_by(col(HostRow.id))).all()
    return [(host, gpus.get(host.id, [])) for host in hosts]


def _one(session: Session, host_id: str) -> Rows | None:
    host = session.get(HostRow, host_id)
    gpus = select(GpuRow).where(GpuRow.host_id == host_id).order_by(col(GpuRow.index))
    return None if host is None else (host, list(session.exec(gpus).all()))


def _age(at: datetime | None) -> float | None:
    return None if at is None else round(max(0.0, (datetime.now(UTC) - at).total_seconds()), 1)


_AS_IT_IS = set(HostView.model_fields) & set(HostRow.model_fields) - {"status", "reach"}
