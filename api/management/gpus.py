"""GPUs of all hosts: which take new replicas, and what engines say of them."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, StringConstraints
from sqlmodel import Session, col, select

from api.management.paging import Cursor, Limit, Page, page
from api.state import AdminDep, Services, ServicesDep
from fleet.db import gpus
from fleet.db.tables import GpuFaultRow, GpuRow
from fleet.errors import NotFound
from fleet.model import Wire

router = APIRouter(prefix="/gpus", tags=["gpus"])


class GpuFaultView(BaseModel):
    instance_id: str
    fence: int
    reason: str
    at: datetime


class GpuView(BaseModel):
    uuid: str
    index: int
    name: str
    kind: str
    memory_bytes: int
    allocatable_bytes: int
    """Without what others use or what is reserved."""
    used_bytes: int
    """By claims."""
    healthy: bool
    reason: str
    cordoned: bool = Field(description="takes no new replicas; those that run there stay")
    cordon_reason: str
    foreign_bytes: int = Field(description="memory that others than our engines use, as last reported")
    details: dict[str, Any] = Field(description="all that its host reports of it: driver, place, links, ...")


class GpuDetails(GpuView):
    host_id: str
    faults: list[GpuFaultView] = Field(description="engines that blamed it, latest first")


class Cordon(Wire):
    reason: Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]
    """Shown to whoever wonders why nothing is placed there."""


Rows = tuple[GpuRow, list[GpuFaultRow]]


@router.get("", summary="List GPUs")
async def list_(services: ServicesDep, _admin: AdminDep, limit: Limit = 100, cursor: Cursor = None) -> Page[GpuDetails]:
    rows = await services.database.aread(_all)
    return page(rows, limit, cursor, lambda r: r[0].uuid, view)


@router.get("/{uuid}", summary="Read a GPU")
async def get(uuid: str, services: ServicesDep, _admin: AdminDep) -> GpuDetails:
    return view(await _existing(services, uuid))


@router.post("/{uuid}/cordon", summary="Place nothing more on a GPU")
async def cordon(uuid: str, body: Cordon, services: ServicesDep, _admin: AdminDep) -> GpuDetails:
    await _existing(services, uuid)
    await services.database.awrite(lambda s: gpus.cordon(s, uuid, body.reason))
    return view(await _existing(services, uuid))


@router.post("/{uuid}/uncordon", summary="Use a GPU again, and forget its faults")
async def uncordon(uuid: str, services: ServicesDep, _admin: AdminDep) -> GpuDetails:
    await _existing(services, uuid)
    await services.database.awrite(lambda s: gpus.uncordon(s, uuid))
    return view(await _existing(services, uuid))


def gpu_view(gpu: GpuRow) -> GpuView:
    """Without what engines say of it."""
    return GpuView(
        **gpu.model_dump(include=set(GpuView.model_fields)),
        allocatable_bytes=gpu.allocatable,
        used_bytes=gpu.used,
    )


def view(rows: Rows) -> GpuDetails:
    gpu, faults = rows
    return GpuDetails(
        **gpu_view(gpu).model_dump(),
        host_id=gpu.host_id,
        faults=[GpuFaultView(**f.model_dump(include=set(GpuFaultView.model_fields))) for f in faults],
    )


def _all(session: Session) -> list[Rows]:
    rows = session.exec(select(GpuRow).order_by(col(GpuRow.uuid))).all()
    blamed = gpus.faults(session)
    return [(row, blamed.get(row.uuid, [])) for row in rows]


async def _existing(services: Services, uuid: str) -> Rows:
    def one(session: Session) -> Rows | None:
        row = session.get(GpuRow, uuid)
        return None if row is None else (row, gpus.faults(session, uuid).get(uuid, []))

    found = None if "\x00" in uuid else await services.database.aread(one)
    if found is None:
        raise NotFound(f"there is no GPU {uuid!r}", hint="GET /api/v1/gpus lists what there is")
    return found
