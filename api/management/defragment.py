"""Moving replicas so that one that waits finds room: begin, watch, stop."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel

from api.management.deployments import existing
from api.management.drains import Reason
from api.management.paging import Cursor, Limit, Page, page
from api.state import AdminDep, Services, ServicesDep
from fleet import ids
from fleet.db.defragmentations import all_of_them
from fleet.db.tables import DefragmentationRow
from fleet.defragmentations import Defragmentation, PlannedMove, StopDefragmenting
from fleet.errors import NotFound
from fleet.model import Wire
from fleet.specs import Name

router = APIRouter(prefix="/defragmentations", tags=["deployments"])


class DefragmentationCreate(Wire):
    deployment: Name


class DefragmentationStop(Wire):
    reason: Reason = ""


class MoveView(BaseModel):
    instance_id: str
    from_host: str
    to_hosts: list[str]
    bytes: int
    state: str
    """``planned``, ``under_way`` or ``done``."""
    until: datetime | None = None
    """Under way: when it is called off, and the instance stays."""


class DefragmentationView(BaseModel):
    deployment: str
    state: str
    """``planning``, ``moving``, ``stopping`` or ``ended``."""
    message: str
    waiting: str | None
    """The instance that finds no room."""
    moves: list[MoveView]
    could_not_be_moved: list[str]
    asked_by: str
    started_at: datetime
    updated_at: datetime
    workflow_url: str


@router.post("", status_code=202, summary="Move replicas so that a deployment finds room")
async def begin(body: DefragmentationCreate, services: ServicesDep, _admin: AdminDep) -> DefragmentationView:
    """Each moves as in a drain: its replacement is ready before it goes. Asked again while one runs, it changes
    nothing. When nobody waits, or no moves would help, it ends at once and says so."""
    await existing(services, body.deployment)
    wanted = Defragmentation(
        deployment=body.deployment,
        asked_by="a person",
        started_at=datetime.now(UTC),
        timings=services.settings.timings,
    )
    await services.workflows.defragment(wanted)
    row = await services.database.aread(lambda s: s.get(DefragmentationRow, body.deployment))
    return _view(services, row if row is not None and row.running else _not_yet(wanted))


@router.get("", summary="List defragmentations: running ones, and the last one of each deployment")
async def list_(
    services: ServicesDep, _admin: AdminDep, limit: Limit = 100, cursor: Cursor = None
) -> Page[DefragmentationView]:
    rows = sorted(await services.database.aread(all_of_them), key=lambda r: r.deployment)
    return page(rows, limit, cursor, lambda r: r.deployment, lambda r: _view(services, r))


@router.get("/{deployment}", summary="Read a defragmentation")
async def get(deployment: str, services: ServicesDep, _admin: AdminDep) -> DefragmentationView:
    return _view(services, await _row(services, deployment))


@router.post("/{deployment}/stop", status_code=202, summary="Stop a defragmentation")
async def stop(
    deployment: str,
    services: ServicesDep,
    _admin: AdminDep,
    body: Annotated[DefragmentationStop | None, Body()] = None,
) -> DefragmentationView:
    """No move more; replicas whose replacements are not ready stay where they are. Stopping twice is harmless."""
    row = await _row(services, deployment)
    if row.running:
        wanted = StopDefragmenting(reason=(body.reason if body else "") or "a person stopped it")
        await services.workflows.stop_defragmenting(deployment, wanted)
        row = await _row(services, deployment)
    return _view(services, row)


async def _row(services: Services, deployment: str) -> DefragmentationRow:
    row = None
    if "\x00" not in deployment:
        row = await services.database.aread(lambda s: s.get(DefragmentationRow, deployment))
    if row is None:
        hint = "GET /api/v1/defragmentations lists what there is; POST begins one"
        raise NotFound(f"nothing was ever moved for {deployment!r}", hint=hint)
    return row


def _not_yet(d: Defragmentation) -> DefragmentationRow:
    return DefragmentationRow(
        deployment=d.deployment,
        run_id="",
        running=True,
        message=d.message,
        durable=d.model_dump(mode="json"),
        projection=0,
        started_at=d.started_at,
        updated_at=d.started_at,
    )


def _view(services: Services, row: DefragmentationRow) -> DefragmentationView:
    d = Defragmentation.model_validate(row.durable)
    moves = [_move(u.move, "under_way", u.until) for u in d.under_way]
    moves += [_move(m, "planned") for m in d.planned] + [_move(m, "done") for m in d.done]
    return DefragmentationView(
        deployment=d.deployment,
        state=d.state,
        message=d.message,
        waiting=d.waiting.instance_id if d.waiting is not None else None,
        moves=moves,
        could_not_be_moved=list(d.given_up),
        asked_by=d.asked_by,
        started_at=row.started_at,
        updated_at=row.updated_at,
        workflow_url=services.settings.workflow_url(ids.defragment_workflow(d.deployment)),
    )


def _move(move: PlannedMove, state: str, until: datetime | None = None) -> MoveView:
    return MoveView(
        instance_id=move.instance_id,
        from_host=move.from_host,
        to_hosts=[seat.host_id for seat in move.to],
        bytes=move.bytes,
        state=state,
        until=until,
    )
