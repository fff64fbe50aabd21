"""Deployments: create, read, change, stop, start, restart, delete."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Response
from pydantic import BaseModel, ValidationError
from sqlmodel import Session, col, select

from api.management.checks import check_spec
from api.management.merge import merge_patch, seal_env
from api.management.paging import Cursor, LabelFilter, Limit, Page, has_labels, page
from api.problems import invalid
from api.state import AdminDep, Services, ServicesDep
from fleet import ids
from fleet.access.sealing import MASK
from fleet.db.projections import deployment_row
from fleet.db.routes import refuse_alias
from fleet.db.tables import DeploymentRow
from fleet.deployments import Accepted, Deployment, DeploymentChange
from fleet.errors import Conflict, InvalidInput, NotFound
from fleet.settings import Settings
from fleet.specs import DeploymentCreate, DeploymentSpec

router = APIRouter(prefix="/deployments", tags=["deployments"])

_PROJECTED_WITHIN_S = 2.0
_POLL_S = 0.02

IfMatch = Annotated[str | None, Header(alias="If-Match", max_length=100, description="the ETag that was read")]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, description="the same again is done once"),
]


class RolloutView(BaseModel):
    strategy: str
    mode: str
    """``surge``: new replicas first; ``recreate``: old ones make room first."""
    stage: str
    paused: bool
    rolling_back: bool
    revision: int
    from_revision: int | None
    new_replicas: int
    new_ready_replicas: int
    old_replicas: int
    note: str
    started_at: datetime
    bake_until: datetime | None


class FailedRollout(BaseModel):
    revision: int
    outcome: str
    """``failed`` or ``aborted``."""
    reason: str
    hint: str


class DeploymentStatus(BaseModel):
    phase: str
    ready_replicas: int
    desired_replicas: int
    revision: int
    generation: int
    message: str
    hint: str
    conditions: list[dict[str, Any]] = []
    rollout: RolloutView | None = None
    """The one in progress."""
    failed_rollout: FailedRollout | None = None
    """The last change, if it was gone back from."""
    workflow_url: str


class DeploymentView(BaseModel):
    name: str
    labels: dict[str, str]
    spec: DeploymentSpec
    """Values of ``env`` are masked."""
    created_at: datetime
    updated_at: datetime
    engine: str
    engine_version: str
    status: DeploymentStatus


@router.post("", status_code=201, summary="Create a deployment")
async def create(
    body: DeploymentCreate,
    response: Response,
    services: ServicesDep,
    _admin: AdminDep,
    idempotency_key: IdempotencyKey = None,
) -> DeploymentView:
    """Answers at once; the model is placed and started in the background. Watch ``status``."""
    await services.database.aread(lambda s: refuse_alias(s, body.name))
    engine, version = await check_spec(services, body.spec)
    deployment = Deployment(
        name=body.name,
        labels=body.labels,
        spec=seal_env(services.master, body.spec, {}),
        engine=engine,
        engine_version=version,
        created_at=datetime.now(UTC),
        create_key=idempotency_key or "",
        timings=services.settings.timings,
    )
    before = await _create(services, deployment)
    if before is not None:
        return show(response, services.settings, before)
    row = await projected(services, body.name, 1, since=deployment.created_at)
    response.headers["location"] = f"/api/v1/deployments/{body.name}"
    return show(response, services.settings, row or _not_yet(deployment))


@router.get("", summary="List deployments")
async def list_(
    services: ServicesDep,
    _admin: AdminDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    label: LabelFilter = None,
) -> Page[DeploymentView]:
    rows = await services.database.aread(_all)
    chosen = [r for r in rows if has_labels(r.labels, label)]
    return page(chosen, limit, cursor, lambda r: r.name, lambda r: view(services.settings, r))


@router.get("/{name}", summary="Read a deployment")
async def get(name: str, response: Response, services: ServicesDep, _admin: AdminDep) -> DeploymentView:
    return show(response, services.settings, await existing(services, name))


@router.patch("/{name}", summary="Change a deployment (JSON merge patch)")
async def patch(
    *,
    name: str,
    body: Annotated[dict[str, Any], Body(examples=[{"spec": {"replicas": 2}}])],
    response: Response,
    services: ServicesDep,
    _admin: AdminDep,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """What is not named stays; ``null`` removes. A change that needs new engines is a new revision, and is rolled out
    as ``spec.rollout`` says."""
    row = await existing(services, name)
    unknown = set(body) - {"labels", "spec"}
    if unknown:
        field = sorted(unknown)[0]
        raise InvalidInput(f"{field} cannot be changed", field=field, hint="a patch has 'labels' and 'spec'")
    current = {"name": name, "labels": row.labels, "spec": _masked(row).model_dump(mode="json")}
    try:
        wanted = DeploymentCreate.model_validate(merge_patch(current, body))
    except ValidationError as error:
        return invalid(error.errors())
    old = DeploymentSpec.model_validate(row.spec)
    change = DeploymentChange(labels=wanted.labels, if_generation=generation(if_match), key=idempotency_key or "")
    if "spec" in body:
        engine, version = await _recheck(services, row, old, wanted.spec)
        sealed = seal_env(services.master, wanted.spec, old.env)
        change = change.model_copy(update={"spec": sealed, "engine": engine, "engine_version": version})
    return await changed(name, change, response, services)


@router.post("/{name}/stop", status_code=202, summary="Stop all replicas, keep the deployment")
async def stop(
    name: str, response: Response, services: ServicesDep, _admin: AdminDep, idempotency_key: IdempotencyKey = None
) -> DeploymentView:
    await existing(services, name)
    return await changed(name, DeploymentChange(stopped=True, key=idempotency_key or ""), response, services)


@router.post("/{name}/start", status_code=202, summary="Start a stopped deployment again")
async def start(
    name: str, response: Response, services: ServicesDep, _admin: AdminDep, idempotency_key: IdempotencyKey = None
) -> DeploymentView:
    await existing(services, name)
    return await changed(name, DeploymentChange(stopped=False, key=idempotency_key or ""), response, services)


@router.post("/{name}/restart", status_code=202, summary="Replace all replicas")
async def restart(
    name: str, response: Response, services: ServicesDep, _admin: AdminDep, idempotency_key: IdempotencyKey = None
) -> DeploymentView:
    """As a rollout of the same revision. Sent again with the same Idempotency-Key, it restarts once."""
    row = await existing(services, name)
    return await changed(name, DeploymentChange(restart_of=row.launch, key=idempotency_key or ""), response, services)


@router.delete("/{name}", status_code=202, summary="Delete a deployment")
async def delete(name: str, response: Response, services: ServicesDep, _admin: AdminDep) -> DeploymentView:
    """Its replicas drain and stop; then the name is free again. Deleting twice is harmless."""
    row = await existing(services, name)
    accepted = await services.workflows.delete_deployment(name)
    return show(response, services.settings, await projected(services, name, accepted.generation) or row)


def view(settings: Settings, row: DeploymentRow) -> DeploymentView:
    return DeploymentView(
        name=row.name,
        labels=row.labels,
        spec=_masked(row),
        created_at=row.created_at,
        updated_at=row.updated_at,
        engine=row.engine,
        engine_version=row.engine_version,
        status=DeploymentStatus(
            phase=row.phase,
            ready_replicas=row.ready_replicas,
            desired_replicas=row.desired_replicas,
            revision=row.revision,
            generation=row.generation,
            message=row.message,
            hint=row.hint,
            rollout=RolloutView.model_validate(row.rollout) if row.rollout else None,
            failed_rollout=_failed(row.durable.get("given_up")),
            workflow_url=settings.workflow_url(ids.deployment_workflow(row.name)),
        ),
    )


def _failed(given_up: dict[str, Any] | None) -> FailedRollout | None:
    return FailedRollout.model_validate(given_up) if given_up else None


async def _create(services: Services, deployment: Deployment) -> DeploymentRow | None:
    """Start its workflow; the row of the one that the same request made before, if it is a repetition."""
    deadline = time.monotonic() + _PROJECTED_WITHIN_S
    while True:
        try:
            await services.workflows.create_deployment(deployment)
        except Conflict:
            row = await _row(services, deployment.name)
            if row is not None and deployment.create_key and row.create_key == deployment.create_key:
                return row
            # Without a row it is about to end (or has just begun): the name may be free in a moment.
            if row is not None or time.monotonic() > deadline:
                raise
            await asyncio.sleep(_POLL_S)
        else:
            return None


def show(response: Response, settings: Settings, row: DeploymentRow) -> DeploymentView:
    response.headers["etag"] = f'"{row.generation}"'
    return view(settings, row)


def _masked(row: DeploymentRow) -> DeploymentSpec:
    spec = DeploymentSpec.model_validate(row.spec)
    return spec.model_copy(update={"env": dict.fromkeys(spec.env, MASK)})


async def changed(name: str, change: DeploymentChange, response: Response, services: Services) -> DeploymentView:
    accepted: Accepted = await services.workflows.change_deployment(name, change)
    row = await projected(services, name, accepted.generation) or await existing(services, name)
    return show(response, services.settings, row)


async def _recheck(services: Services, row: DeploymentRow, old: DeploymentSpec, new: DeploymentSpec) -> tuple[str, str]:
    """Check only what a change touches: scaling must work while a host is away."""
    touched = ("model", "engine", "engine_version", "engine_args")
    if all(getattr(old, f) == getattr(new, f) for f in touched):
        return row.engine, row.engine_version
    return await check_spec(services, new)


async def existing(services: Services, name: str) -> DeploymentRow:
    row = await _row(services, name)
    if row is None:
        raise NotFound(f"there is no deployment named {name!r}", hint="GET /api/v1/deployments lists what there is")
    return row


async def _row(services: Services, name: str) -> DeploymentRow | None:
    return None if "\x00" in name else await services.database.aread(lambda s: s.get(DeploymentRow, name))


async def projected(
    services: Services, name: str, generation: int, since: datetime | None = None
) -> DeploymentRow | None:
    """The row once the workflow has written what it accepted; None when that takes too long."""
    deadline = time.monotonic() + _PROJECTED_WITHIN_S
    while time.monotonic() < deadline:
        row = await services.database.aread(lambda s: s.get(DeploymentRow, name))
        if row is not None and row.generation >= generation and (since is None or row.created_at >= since):
            return row
        await asyncio.sleep(_POLL_S)
    return None


def _all(session: Session) -> list[DeploymentRow]:
    return list(session.exec(select(DeploymentRow).order_by(col(DeploymentRow.name))).all())


def _not_yet(deployment: Deployment) -> DeploymentRow:
    """Accepted, but no controller has picked it up yet."""
    row = deployment_row(deployment, run_id="")
    row.message, row.updated_at = "accepted; waits for a controller", deployment.created_at
    return row


def generation(if_match: str | None) -> int | None:
    """Which one ``If-Match`` wants; None: any. Raises InvalidInput."""
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InvalidInput("If-Match is not an ETag of ours", field="If-Match", hint='send it as it was read, e.g. "3"')
    return int(text)
