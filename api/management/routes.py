"""Routes: by which names clients ask for models, and where their requests go."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from pydantic import BaseModel, ValidationError

from api.management.deployments import IdempotencyKey, IfMatch, generation
from api.management.merge import merge_patch
from api.management.paging import Cursor, LabelFilter, Limit, Page, has_labels, page
from api.problems import invalid
from api.state import AdminDep, ServicesDep
from fleet.db import routes
from fleet.db.routes import RouteRow
from fleet.errors import InvalidInput
from fleet.routes import RouteCreate, RouteSpec

router = APIRouter(prefix="/routes", tags=["routes"])

_EXAMPLE = {"spec": {"targets": [{"deployment": "smol", "weight": 9}, {"provider": "openai", "model": "gpt-x"}]}}


class RouteView(BaseModel):
    name: str
    labels: dict[str, str]
    spec: RouteSpec
    generation: int
    created_at: datetime
    updated_at: datetime


@router.post("", status_code=201, summary="Create a route")
async def create(
    body: RouteCreate,
    response: Response,
    services: ServicesDep,
    _admin: AdminDep,
    idempotency_key: IdempotencyKey = None,
) -> RouteView:
    """Gateways know it within a second. A route with the name of a deployment replaces what that name leads to."""
    key = idempotency_key or ""
    made = await services.database.awrite(lambda s: _view(routes.create(s, body, key)))
    response.headers["location"] = f"/api/v1/routes/{made.name}"
    return _show(response, made)


@router.get("", summary="List routes")
async def list_(
    services: ServicesDep,
    _admin: AdminDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    label: LabelFilter = None,
) -> Page[RouteView]:
    """Without the names that need no route: those of deployments and of their LoRA adapters."""
    rows = await services.database.aread(routes.all_routes)
    return page([r for r in rows if has_labels(r.labels, label)], limit, cursor, lambda r: r.name, _view)


@router.get("/{name:path}", summary="Read a route")
async def get(name: str, response: Response, services: ServicesDep, _admin: AdminDep) -> RouteView:
    return _show(response, await services.database.aread(lambda s: _view(routes.existing(s, name))))


@router.patch("/{name:path}", summary="Change a route (JSON merge patch)", response_model=RouteView)
async def patch(
    *,
    name: str,
    body: Annotated[dict[str, Any], Body(examples=[_EXAMPLE])],
    response: Response,
    services: ServicesDep,
    _admin: AdminDep,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """What is not named stays; ``null`` removes; lists are replaced whole. Requests on their way are not touched."""
    refuse_other_fields(body, ("labels", "spec"))

    def wanted(row: RouteRow) -> RouteCreate:
        current = {"name": row.name, "labels": row.labels, "spec": row.spec}
        return RouteCreate.model_validate(merge_patch(current, body))

    known, key = generation(if_match), idempotency_key or ""
    try:
        changed = await services.database.awrite(lambda s: _view(routes.change(s, name, wanted, known, key)))
    except ValidationError as error:
        return invalid(error.errors())
    return _show(response, changed)


@router.delete("/{name:path}", status_code=204, summary="Delete a route")
async def delete(name: str, services: ServicesDep, _admin: AdminDep) -> Response:
    """If a deployment has the same name, that name leads to it again."""
    await services.database.awrite(lambda s: routes.delete(s, name))
    return Response(status_code=204)


def refuse_other_fields(body: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raises InvalidInput for a patch of what cannot be changed."""
    if other := sorted(set(body) - set(known)):
        hint = f"a patch has {' and '.join(repr(name) for name in known)}"
        raise InvalidInput(f"{other[0]} cannot be changed", field=other[0], hint=hint)


def _show(response: Response, shown: RouteView) -> RouteView:
    response.headers["etag"] = f'"{shown.generation}"'
    return shown


def _view(row: RouteRow) -> RouteView:
    return RouteView.model_validate(row.model_dump(include=set(RouteView.model_fields)))
