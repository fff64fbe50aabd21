"""Hosts: list, read, set, forget; and what they said of themselves."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response
from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from api.management.host_views import HostView, all_hosts, etag, existing, view
from api.management.merge import merge_patch
from api.management.paging import Cursor, LabelFilter, Limit, Page, has_labels, page
from api.problems import invalid
from api.state import AdminDep, ServicesDep
from fleet.db import claims, telemetry
from fleet.db.host_settings import HostSettings, change, revoke_key
from fleet.errors import Conflict, InvalidInput
from fleet.model import Wire
from fleet.specs import Labels
from fleet.states import HostState
from fleet.telemetry import HostStatus

router = APIRouter(prefix="/hosts", tags=["hosts"])

_MOST_BYTES = 1 << 50
_NOT_LOST = "stop its process first, or revoke its key (`holdfast hosts ID --revoke`); only a lost host is forgotten"
IfMatch = Annotated[str | None, Header(alias="If-Match", max_length=100, description="the ETag that was read")]
Since = Annotated[AwareDatetime | None, Query(description="only what came after, e.g. `2026-11-20T10:00:00Z`")]
Newest = Annotated[int, Query(ge=1, le=500, description="of more only the newest")]


class Reserve(Wire):
    ram_bytes: int | None = Field(default=None, ge=0, le=_MOST_BYTES)
    vram_bytes: int | None = Field(default=None, ge=0, le=_MOST_BYTES, description="of each GPU")


class HostPatch(Wire):
    labels: Labels = Field(default_factory=dict, description="laid over those that the host reports")
    reserved_for: Labels = Field(default_factory=dict, description="only deployments with all of these are placed here")
    reserve: Reserve = Field(default=Reserve(), description="what placement leaves alone, instead of the host's own")


class StatusAt(BaseModel):
    at: datetime
    status: HostStatus


class Statuses(BaseModel):
    items: list[StatusAt]
    """Oldest first."""


@router.get("", summary="List hosts")
async def list_(
    services: ServicesDep,
    _admin: AdminDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    label: LabelFilter = None,
) -> Page[HostView]:
    rows = await services.database.aread(all_hosts)
    chosen = [r for r in rows if has_labels(r[0].labels, label)]
    return page(chosen, limit, cursor, lambda r: r[0].id, lambda r: view(services.settings, r))


@router.get("/{host_id}", summary="Read a host")
async def get(host_id: str, response: Response, services: ServicesDep, _admin: AdminDep) -> HostView:
    rows = await existing(services, host_id)
    response.headers["etag"] = etag(rows[0])
    return view(services.settings, rows)


@router.patch(
    "/{host_id}",
    summary="Set labels, whom a host is for, and what placement leaves alone (JSON merge patch)",
    response_model=HostView,
)
async def patch(
    *,
    host_id: str,
    body: Annotated[dict[str, Any], Body(examples=[{"labels": {"rack": "4"}, "reserve": {"ram_bytes": 8 << 30}}])],
    response: Response,
    services: ServicesDep,
    _admin: AdminDep,
    if_match: IfMatch = None,
) -> Any:
    """What is not named stays; ``null`` removes, and what the host itself reports holds again. It counts for what is
    placed from now on; replicas that run there stay. The ETag is that of these settings."""

    def wanted(before: HostSettings) -> HostSettings:
        set_ = HostPatch.model_validate(merge_patch(before.model_dump(), body))
        reserve = set_.reserve.model_dump(exclude_none=True)
        return HostSettings(labels=set_.labels, reserved_for=set_.reserved_for, reserve=reserve)

    await existing(services, host_id)
    tag = _tag(if_match)
    try:
        await services.database.awrite(lambda s: change(s, host_id, wanted, tag))
    except ValidationError as error:
        return invalid(error.errors())
    return await get(host_id, response, services, _admin)


@router.get("/{host_id}/status", summary="What a host said of itself in the last half hour")
async def statuses(
    host_id: str, services: ServicesDep, _admin: AdminDep, since: Since = None, limit: Newest = 200
) -> Statuses:
    await existing(services, host_id)
    after = _utc(since)
    rows = await services.database.aread(lambda s: telemetry.history(s, host_id, after, limit))
    return Statuses(items=[StatusAt(at=r.at, status=HostStatus.model_validate(r.status)) for r in rows])


@router.post("/{host_id}/revoke", status_code=202, summary="Trust a host no more: it was stolen, say")
async def revoke(host_id: str, services: ServicesDep, _admin: AdminDep) -> HostView:
    """Its key is worth nothing at once. Within seconds it is lost, its replicas are placed elsewhere, and it can be
    forgotten. Revoking twice is harmless; there is no way back but to join anew."""
    await existing(services, host_id)
    await services.database.awrite(lambda s: revoke_key(s, host_id))
    return view(services.settings, await existing(services, host_id))


@router.delete("/{host_id}", status_code=204, summary="Forget a host that is lost and will not come back")
async def forget(host_id: str, services: ServicesDep, _admin: AdminDep) -> Response:
    """Its key is worth nothing from then on."""
    host, _ = await existing(services, host_id)
    if host.state != HostState.LOST:
        raise Conflict(f"host {host_id} is {host.state}", hint=_NOT_LOST)
    if placed := await services.database.aread(lambda s: claims.instances_on(s, host_id)):
        hint = "wait until they are placed elsewhere"
        if host.replacement_paused:
            hint = f"have them placed elsewhere first: holdfast approve-replacement {host_id}"
        raise Conflict(f"{', '.join(placed)} are still placed there", hint=hint)
    await services.workflows.forget_host(host_id)
    return Response(status_code=204)


def _tag(if_match: str | None) -> str | None:
    if if_match is None or if_match.strip() == "*":
        return None
    return if_match.strip().removeprefix("W/").strip('"')


def _utc(moment: datetime | None) -> datetime | None:
    try:
        return None if moment is None else moment.astimezone(UTC)
    except OverflowError:
        raise InvalidInput("it is no time that can be", field="since", hint="e.g. 2026-11-20T10:00:00Z") from None
