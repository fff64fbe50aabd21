"""Taking hosts and instances out of service, and letting replicas of lost hosts be replaced."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel, Field, StringConstraints
from sqlmodel import Session, col, select

from api.management.host_views import HostView, existing, view
from api.management.instances import InstanceView
from api.management.instances import view as view_instance
from api.state import AdminDep, Services, ServicesDep
from fleet.db.tables import HostRow, InstanceRow
from fleet.deployments import Accepted, InstancesLeave
from fleet.errors import Conflict, NotFound
from fleet.hosts import Maintain, Upkeep
from fleet.model import Wire
from fleet.states import Maintenance

router = APIRouter(tags=["hosts"])

_PROJECTED_WITHIN_S = 2.0
_POLL_S = 0.02
_AT_ONCE = 20
"""Workflows that are asked at the same time."""
_A_MONTH_S = 30 * 24 * 3600

Reason = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
Deadline = Annotated[
    int | None,
    Field(
        ge=0, le=_A_MONTH_S, description="seconds from now; then replicas go even without a replacement. Unset: never"
    ),
]


class HostDrain(Wire):
    evacuate: bool = Field(default=True, description="false: only take no new replicas")
    deadline_s: Deadline = None
    reason: Reason = Field(default="", description="for people")


class InstanceDrain(Wire):
    deadline_s: Deadline = None
    reason: Reason = Field(default="", description="for people")


class ApprovedHosts(BaseModel):
    hosts: list[str]
    """Ids of those whose replicas are replaced now."""


@router.post("/hosts/approve-replacement", status_code=202, summary="Replace the replicas of all lost hosts that wait")
async def approve_all(services: ServicesDep, _admin: AdminDep) -> ApprovedHosts:
    """Approve for every host whose replacement is paused. Those that came back meanwhile are left out."""
    waiting = await services.database.aread(_waiting)
    approved: list[str] = []
    for start in range(0, len(waiting), _AT_ONCE):
        answers = await asyncio.gather(*(_approved(services, h) for h in waiting[start : start + _AT_ONCE]))
        approved += [host_id for host_id in answers if host_id]
    if not approved:
        raise Conflict("no host waits for approval", hint="`holdfast hosts` says how each is")
    return ApprovedHosts(hosts=approved)


@router.post("/hosts/{host_id}/approve-replacement", status_code=202, summary="Replace the replicas of a lost host")
async def approve(host_id: str, services: ServicesDep, _admin: AdminDep) -> HostView:
    """It is really gone, although so many hosts are unhealthy at once that the fault may be elsewhere."""
    await existing(services, host_id)
    await _of_its_workflow(services.workflows.approve_replacement(host_id), host_id)
    return await _projected(services, host_id, lambda host: not host.replacement_paused)


@router.post("/hosts/{host_id}/drain", status_code=202, summary="Take a host out of service")
async def drain(
    host_id: str, services: ServicesDep, _admin: AdminDep, body: Annotated[HostDrain | None, Body()] = None
) -> HostView:
    """It takes no new replicas. Those that run there are replaced elsewhere: the new one is ready before the old one
    stops. ``maintenance`` is ``drained`` when nothing runs there any more. Draining again sets a new deadline."""
    wanted = body or HostDrain()
    level = Maintain(
        mode=Upkeep.DRAIN if wanted.evacuate else Upkeep.CORDON,
        deadline=_absolute(wanted.deadline_s) if wanted.evacuate else None,
        reason=wanted.reason,
    )
    under_way = {Maintenance.DRAINING, Maintenance.DRAINED} if wanted.evacuate else {Maintenance.CORDONED}
    return await _maintain(services, host_id, level, under_way)


@router.post("/hosts/{host_id}/resume", status_code=202, summary="Let a host take work again")
async def resume(host_id: str, services: ServicesDep, _admin: AdminDep) -> HostView:
    """The end of maintenance. Replicas that were asked to leave before still do."""
    return await _maintain(services, host_id, Maintain(), {Maintenance.NONE})


@router.post("/instances/{instance_id:path}/drain", status_code=202, tags=["instances"], summary="Replace an instance")
async def drain_instance(
    instance_id: str, services: ServicesDep, _admin: AdminDep, body: Annotated[InstanceDrain | None, Body()] = None
) -> InstanceView:
    """Its deployment starts another one, and stops this one once that is ready (or the deadline has passed)."""
    wanted = body or InstanceDrain()
    row = None if "\x00" in instance_id else await services.database.aread(lambda s: s.get(InstanceRow, instance_id))
    if row is None:
        raise NotFound(f"there is no instance {instance_id!r}", hint="GET /api/v1/instances lists what there is")
    reason = wanted.reason or "a person asked for it"
    leave = InstancesLeave(instance_ids=(row.id,), reason=reason, by=_absolute(wanted.deadline_s))
    await services.workflows.replace_instances(row.deployment, leave)
    return view_instance(services.settings, row)


async def _maintain(services: Services, host_id: str, level: Maintain, states: set[Maintenance]) -> HostView:
    await existing(services, host_id)
    await _of_its_workflow(services.workflows.maintain_host(host_id, level), host_id)
    return await _projected(services, host_id, lambda host: host.maintenance in states)


async def _of_its_workflow(change: Awaitable[Accepted], host_id: str) -> None:
    """A host that has joined has a row, but no workflow until its process has registered."""
    try:
        await change
    except NotFound as error:
        hint = "start `holdfast host` on it first, or forget it"
        raise Conflict(f"host {host_id} has never registered", hint=hint) from error


async def _approved(services: Services, host_id: str) -> str:
    """Its id, or nothing when it does not wait any more."""
    try:
        await services.workflows.approve_replacement(host_id)
    except (Conflict, NotFound):
        return ""
    return host_id


async def _projected(services: Services, host_id: str, done: Callable[[HostRow], bool]) -> HostView:
    """The host once its workflow has written that it is ``done``, or as it is when that takes too long."""
    deadline = time.monotonic() + _PROJECTED_WITHIN_S
    while True:
        rows = await existing(services, host_id)
        if done(rows[0]) or time.monotonic() > deadline:
            return view(services.settings, rows)
        await asyncio.sleep(_POLL_S)


def _absolute(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)


def _waiting(session: Session) -> list[str]:
    return list(session.exec(select(HostRow.id).where(col(HostRow.replacement_paused)).order_by(HostRow.id)).all())
