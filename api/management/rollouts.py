"""Revisions of deployments and the way from one to another."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Path, Response
from pydantic import BaseModel, Field
from sqlmodel import Session

from api.management.deployments import DeploymentView, IdempotencyKey, changed, existing, projected, show
from api.management.paging import Page
from api.state import AdminDep, ServicesDep
from fleet.access.sealing import MASK
from fleet.changes import needs_new_engines
from fleet.db import revisions
from fleet.db.tables import DeploymentRow, RevisionRow
from fleet.deployments import ABOUT_REPLICAS, DeploymentChange
from fleet.errors import Conflict, NotFound
from fleet.model import Wire
from fleet.rollouts import Steer, Steering
from fleet.specs import DeploymentSpec

router = APIRouter(prefix="/deployments", tags=["rollouts"])


class RevisionView(BaseModel):
    revision: int
    current: bool
    outcome: str
    """``live``, ``rolling out``, ``superseded``, ``failed`` or ``aborted``."""
    cause: str
    engine: str
    engine_version: str
    spec: DeploymentSpec
    """Values of ``env`` are masked."""
    created_at: datetime


class Rollback(Wire):
    revision: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Unset: what worked before the current one."""


_DEFAULT = Rollback()


@router.get("/{name}/revisions", summary="List the revisions that are kept, newest first")
async def list_revisions(name: str, services: ServicesDep, _admin: AdminDep) -> Page[RevisionView]:
    row = await existing(services, name)
    rows = await services.database.aread(lambda s: revisions.kept(s, name))
    return Page[RevisionView](items=[_view(r, row) for r in rows], next_cursor=None)


@router.post("/{name}/rollback", status_code=202, summary="Go back to an earlier revision")
async def rollback(
    *,
    name: str,
    response: Response,
    services: ServicesDep,
    _admin: AdminDep,
    body: Annotated[Rollback, Body(examples=[{"revision": 2}])] = _DEFAULT,
    idempotency_key: IdempotencyKey = None,
) -> DeploymentView:
    """Deploys it again, under a new number, with the replicas and the rollout policy of now. While a rollout from that
    very revision is in progress, the rollout is turned round instead, and what still runs of it goes on."""
    row = await existing(services, name)
    chosen = await services.database.aread(lambda s: _target(s, row, body.revision))
    spec = DeploymentSpec.model_validate(chosen.spec)
    now = DeploymentSpec.model_validate(row.spec)
    spec = spec.model_copy(update={name: getattr(now, name) for name in ABOUT_REPLICAS})
    same = not needs_new_engines(now, spec) and (row.engine, row.engine_version) == _made_of(chosen)
    if same and idempotency_key is None:
        raise Conflict(
            f"{name} is what it was at revision {chosen.revision} already",
            field="revision",
            hint=f"GET /api/v1/deployments/{name}/revisions lists what there is",
        )
    change = DeploymentChange(
        spec=spec,
        engine=chosen.engine,
        engine_version=chosen.engine_version,
        cause=f"rollback to revision {chosen.revision}",
        key=idempotency_key or "",
    )
    return await changed(name, change, response, services)


@router.post("/{name}/rollout/{action}", status_code=202, summary="Pause, resume, promote or abort a rollout")
async def steer(
    name: str,
    action: Annotated[Steering, Path(description="what to do with the rollout in progress")],
    response: Response,
    services: ServicesDep,
    _admin: AdminDep,
    idempotency_key: IdempotencyKey = None,
) -> DeploymentView:
    await existing(services, name)
    accepted = await services.workflows.steer_rollout(name, Steer(action=action, key=idempotency_key or ""))
    row = await projected(services, name, accepted.generation) or await existing(services, name)
    return show(response, services.settings, row)


def _target(session: Session, row: DeploymentRow, wanted: int | None) -> RevisionRow:
    kept = revisions.kept(session, row.name)
    if wanted is None:
        before = [r for r in kept if r.revision != row.revision and r.outcome in ("live", "superseded")]
        if not before:
            raise Conflict(f"{row.name} has no earlier revision that worked", hint="change it with PATCH instead")
        return before[0]
    for revision in kept:
        if revision.revision == wanted:
            return revision
    known = ", ".join(str(r.revision) for r in kept)
    raise NotFound(f"{row.name} has no revision {wanted}", field="revision", hint=f"kept are: {known}")


def _made_of(revision: RevisionRow) -> tuple[str, str]:
    return revision.engine, revision.engine_version


def _view(r: RevisionRow, row: DeploymentRow) -> RevisionView:
    spec = DeploymentSpec.model_validate(r.spec)
    return RevisionView(
        revision=r.revision,
        current=r.revision == row.revision,
        outcome=r.outcome,
        cause=r.cause,
        engine=r.engine,
        engine_version=r.engine_version,
        spec=spec.model_copy(update={"env": dict.fromkeys(spec.env, MASK)}),
        created_at=r.created_at,
    )
