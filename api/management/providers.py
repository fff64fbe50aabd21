"""Providers: other people's APIs that routes may send requests to."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from pydantic import BaseModel, SecretStr, ValidationError

from api.management.deployments import IdempotencyKey, IfMatch, generation
from api.management.merge import merge_patch, sealed_again
from api.management.paging import Cursor, Limit, Page, page
from api.management.provider_check import ProviderCheck, ask
from api.management.routes import refuse_other_fields
from api.problems import invalid
from api.state import AdminDep, Services, ServicesDep
from fleet.access.sealing import MASK, CannotOpen
from fleet.db import providers
from fleet.db.providers import Kept
from fleet.db.routes import ProviderRow
from fleet.errors import InvalidInput
from fleet.routes import ProviderCreate, ProviderSpec

router = APIRouter(prefix="/providers", tags=["providers"])

_NOT_OPENED = "its key was sealed with another master key; set it again: `holdfast providers set NAME --key-file FILE`"


class ProviderSpecView(BaseModel):
    kind: str
    base_url: str
    has_key: bool
    """The key itself is never shown."""
    headers: dict[str, str]
    in_flight: int


class ProviderView(BaseModel):
    name: str
    spec: ProviderSpecView
    generation: int
    created_at: datetime
    updated_at: datetime


@router.post("", status_code=201, summary="Add a provider")
async def create(
    body: ProviderCreate,
    response: Response,
    services: ServicesDep,
    _admin: AdminDep,
    idempotency_key: IdempotencyKey = None,
) -> ProviderView:
    """It is not asked anything yet; ``/check`` does that."""
    wanted, key = Kept(body.spec, _sealed(services, body.spec.api_key, "")), idempotency_key or ""
    made = await services.database.awrite(lambda s: _view(providers.create(s, body.name, wanted, key)))
    response.headers["location"] = f"/api/v1/providers/{made.name}"
    return _show(response, made)


@router.get("", summary="List providers")
async def list_(
    services: ServicesDep, _admin: AdminDep, limit: Limit = 100, cursor: Cursor = None
) -> Page[ProviderView]:
    rows = await services.database.aread(providers.all_providers)
    return page(rows, limit, cursor, lambda r: r.name, _view)


@router.get("/{name}", summary="Read a provider")
async def get(name: str, response: Response, services: ServicesDep, _admin: AdminDep) -> ProviderView:
    return _show(response, await services.database.aread(lambda s: _view(providers.existing(s, name))))


@router.patch("/{name}", summary="Change a provider (JSON merge patch)", response_model=ProviderView)
async def patch(
    *,
    name: str,
    body: Annotated[dict[str, Any], Body(examples=[{"spec": {"in_flight": 64}}])],
    response: Response,
    services: ServicesDep,
    _admin: AdminDep,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """What is not named stays, the key too; ``null`` removes. Requests on their way are not touched."""
    refuse_other_fields(body, ("spec",))

    def wanted(row: ProviderRow) -> Kept:
        after = ProviderCreate.model_validate(merge_patch({"name": row.name, "spec": row.spec}, body)).spec
        same = "api_key" not in body.get("spec", {})
        return Kept(after, row.sealed_key if same else _sealed(services, after.api_key, row.sealed_key))

    known, key = generation(if_match), idempotency_key or ""
    try:
        changed = await services.database.awrite(lambda s: _view(providers.change(s, name, wanted, known, key)))
    except ValidationError as error:
        return invalid(error.errors())
    return _show(response, changed)


@router.delete("/{name}", status_code=204, summary="Delete a provider")
async def delete(name: str, services: ServicesDep, _admin: AdminDep) -> Response:
    """Refused while routes use it."""
    await services.database.awrite(lambda s: providers.delete(s, name))
    return Response(status_code=204)


@router.post("/{name}/check", summary="Ask a provider for its models")
async def check(name: str, services: ServicesDep, _admin: AdminDep) -> ProviderCheck:
    """As the gateway would, with its key. Whatever it does, the answer says what is wrong."""

    def read(session: Any) -> tuple[dict[str, Any], str]:
        row = providers.existing(session, name)
        return row.spec, row.sealed_key

    spec, sealed = await services.database.aread(read)
    try:
        key = services.master.open(sealed) if sealed else ""
    except CannotOpen:
        return ProviderCheck(ok=False, problem=_NOT_OPENED)
    return await ask(ProviderSpec.model_validate(spec), key)


def _sealed(services: Services, key: SecretStr | None, before: str) -> str:
    """What to keep of ``key``, when ``before`` is what is kept now. The mask stands for that one."""
    if key is None:
        return ""
    secret = key.get_secret_value()
    if secret == MASK and before:
        return before
    if not secret or secret == MASK or not (secret.isascii() and secret.isprintable()) or secret != secret.strip():
        raise InvalidInput(
            "a key has printable ASCII characters only, and no space around them",
            field="spec.api_key",
            hint="send the key itself, without the end of the line; leave it out, or send null, for none",
        )
    return sealed_again(services.master, secret, before)


def _show(response: Response, shown: ProviderView) -> ProviderView:
    response.headers["etag"] = f'"{shown.generation}"'
    return shown


def _view(row: ProviderRow) -> ProviderView:
    return ProviderView(
        name=row.name,
        spec=ProviderSpecView(**row.spec, has_key=bool(row.sealed_key)),
        generation=row.generation,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
