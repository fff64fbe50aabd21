"""Instances: what runs where, and what it prints."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel
from sqlmodel import Session, col, select

from api.management.paging import Cursor, Limit, Page, page
from api.state import AdminDep, Services, ServicesDep
from fleet import ids
from fleet.db.hosts import address_of
from fleet.db.tables import DeploymentRow, HostRow, InstanceRow
from fleet.errors import Conflict, NotFound, Unavailable
from fleet.host_client import HostAddress, HostUnreachable
from fleet.settings import Settings
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import Sizing
from fleet.states import InstanceState

router = APIRouter(prefix="/instances", tags=["instances"])
of_deployment = APIRouter(prefix="/deployments", tags=["instances"])

_AT_ONCE = 20
"""Workflows that are asked at the same time."""


class InstanceView(BaseModel):
    id: str
    deployment: str
    revision: int
    slot: int
    state: str
    host_id: str | None
    gpu_uuids: list[str]
    memory_bytes: int
    endpoint: str | None
    pid: int | None
    fence: int
    restarts: int
    message: str
    hint: str
    progress: float | None
    sizing: Sizing | None
    """What was booked for it, which its engine was told; null: a person named the bytes, or it is not placed."""
    measured: Measured | None
    """What its engine said of its memory when it started."""
    followers: list[str]
    """Of a replica that spans several hosts: the others, by rank."""
    workflow_url: str
    created_at: datetime
    updated_at: datetime


class Approved(BaseModel):
    instances: list[str]
    """Ids of those that are tried again."""


@router.get("", summary="List instances")
async def list_(
    services: ServicesDep,
    _admin: AdminDep,
    deployment: Annotated[str | None, Query(max_length=63)] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[InstanceView]:
    rows = await services.database.aread(lambda s: _all(s, deployment))
    return page(rows, limit, cursor, lambda r: r.id, lambda r: view(services.settings, r))


@router.get("/{instance_id:path}/logs", summary="Read or follow an engine's log")
async def logs(
    instance_id: str,
    services: ServicesDep,
    _admin: AdminDep,
    tail: Annotated[int, Query(ge=0, le=100_000, description="last lines")] = 1000,
    follow: bool = False,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000, description="unset: the newest")] = None,
) -> StreamingResponse:
    row = await _existing(services, instance_id)
    host = await _host_of(services, row)
    params: dict[str, str | int] = {"tail": tail, "follow": str(follow).lower()}
    if attempt is not None:
        params["attempt"] = attempt
    stream = _stream(services, host, instance_id, params)
    first = await anext(stream)  # errors come before the answer has begun
    return StreamingResponse(_prepend(first, stream), media_type="text/plain; charset=utf-8")


@router.get("/{instance_id:path}/metrics", summary="What an engine says of itself (Prometheus)")
async def metrics(instance_id: str, services: ServicesDep, _admin: AdminDep) -> PlainTextResponse:
    row = await _existing(services, instance_id)
    host = await _host_of(services, row)
    try:
        text = await services.hosts.engine_metrics(host, instance_id)
    except HostUnreachable as error:
        raise Unavailable(f"the host does not answer: {error}", hint="see `holdfast hosts`") from error
    if text is None:
        raise NotFound(f"the engine of {instance_id} does not answer ({row.state})", hint="wait until it is ready")
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/{instance_id:path}/approve-retry", status_code=202, summary="Let a failed instance try again, at once")
async def approve(instance_id: str, services: ServicesDep, _admin: AdminDep) -> Approved:
    row = await _existing(services, instance_id)
    if row.state != InstanceState.FAILED:
        raise Conflict(
            f"{instance_id} is {row.state}, not failed",
            hint="only a failed instance waits for approval; the others go on by themselves",
        )
    await services.workflows.approve_retry(instance_id)
    return Approved(instances=[instance_id])


@of_deployment.post("/{name}/approve-retry", status_code=202, summary="Let all failed instances try again, at once")
async def approve_all(name: str, services: ServicesDep, _admin: AdminDep) -> Approved:
    rows = await services.database.aread(lambda s: _of_deployment(s, name))
    if rows is None:
        raise NotFound(f"there is no deployment {name!r}", hint="GET /api/v1/deployments lists what there is")
    failed = [r.id for r in rows if r.state == InstanceState.FAILED]
    approved: list[str] = []
    for start in range(0, len(failed), _AT_ONCE):
        answers = await asyncio.gather(*(_approved(services, i) for i in failed[start : start + _AT_ONCE]))
        approved += [instance_id for instance_id in answers if instance_id]
    if not approved:
        raise Conflict(f"no instance of {name} is failed", hint=f"see `holdfast instances --deployment {name}`")
    return Approved(instances=approved)


@router.get("/{instance_id:path}", summary="Read an instance")
async def get(instance_id: str, services: ServicesDep, _admin: AdminDep) -> InstanceView:
    return view(services.settings, await _existing(services, instance_id))


def view(settings: Settings, row: InstanceRow) -> InstanceView:
    placement = row.durable.get("placement") or {}
    return InstanceView(
        **row.model_dump(include=set(InstanceView.model_fields)),
        sizing=placement.get("sizing"),
        measured=row.durable.get("measured") if placement else None,
        followers=[member["host_id"] for member in placement.get("followers", ())],
        workflow_url=settings.workflow_url(ids.instance_workflow(row.id)),
    )


def _all(session: Session, deployment: str | None) -> list[InstanceRow]:
    query = select(InstanceRow).order_by(col(InstanceRow.id))
    if deployment is not None:
        query = query.where(InstanceRow.deployment == deployment.replace("\x00", ""))
    return list(session.exec(query).all())


def _of_deployment(session: Session, name: str) -> list[InstanceRow] | None:
    if "\x00" in name or session.get(DeploymentRow, name) is None:
        return None
    return _all(session, name)


async def _approved(services: Services, instance_id: str) -> str:
    """Its id, or nothing when it is not failed any more."""
    try:
        await services.workflows.approve_retry(instance_id)
    except (Conflict, NotFound):
        return ""
    return instance_id


async def _existing(services: Services, instance_id: str) -> InstanceRow:
    row = None
    if "\x00" not in instance_id:
        row = await services.database.aread(lambda s: s.get(InstanceRow, instance_id))
    if row is None:
        raise NotFound(f"there is no instance {instance_id!r}", hint="GET /api/v1/instances lists what there is")
    return row


async def _host_of(services: Services, row: InstanceRow) -> HostAddress:
    if row.host_id is None:
        raise NotFound(f"{row.id} is on no host ({row.state}): {row.message}", hint="wait until it is placed")
    host = await services.database.aread(lambda s: s.get(HostRow, row.host_id))
    if host is None:
        raise NotFound(f"host {row.host_id} is gone", hint="its logs went with it")
    return address_of(host)


async def _stream(
    services: Services, host: HostAddress, instance_id: str, params: dict[str, str | int]
) -> AsyncIterator[bytes]:
    try:
        async with services.hosts.engine_log(host, instance_id, params) as answer:
            if answer.status_code == 404:
                raise NotFound(_detail(await answer.aread()), hint="leave out 'attempt' for the newest")
            if answer.status_code != 200:
                raise Unavailable(f"host {host.host_id} answered {answer.status_code}", hint="see the host's own log")
            yield b""
            async for chunk in answer.aiter_raw():
                yield chunk
    except HostUnreachable as error:
        raise Unavailable(f"the host does not answer: {error}", hint="see `holdfast hosts`") from error


def _detail(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["detail"])
    except (ValueError, LookupError, TypeError):
        raise Unavailable("what answers there is no host of ours", hint="see `holdfast hosts`") from None


async def _prepend(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
