"""API keys and join tokens: shown once, kept as hashes."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field, StringConstraints
from sqlmodel import Session, col, select

from api.management.joining import JoinCommands, join_commands, note
from api.management.paging import Cursor, Limit, Page, page
from api.state import AdminDep, Services, ServicesDep
from fleet.access.secrets import digest, new_id, new_secret, shown_prefix
from fleet.db import join_tokens, registry
from fleet.db.tables import ApiKeyRow, JoinTokenRow
from fleet.errors import Conflict, NotFound
from fleet.join import JoinToken
from fleet.model import Wire

router = APIRouter(tags=["access"])

_YEARS_10 = 10 * 365 * 24 * 3600
Text = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f]*$")]


class ApiKeyCreate(Wire):
    name: Annotated[Text, StringConstraints(min_length=1)]
    scope: Literal["admin", "inference"] = "inference"
    ttl_s: int | None = Field(default=None, ge=1, le=_YEARS_10, description="lifetime in seconds; unset: no end")


class ApiKeyView(BaseModel):
    id: str
    name: str
    prefix: str
    scope: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class ApiKeyCreated(ApiKeyView):
    key: str
    """Shown this once."""


class JoinTokenCreate(Wire):
    description: Text = ""
    max_uses: int = Field(default=1, ge=1, le=10_000, description="so many hosts may join with it")
    ttl_s: int = Field(default=3600, ge=1, le=30 * 24 * 3600, description="lifetime in seconds")


class JoinTokenView(BaseModel):
    id: str
    description: str
    created_at: datetime
    expires_at: datetime
    max_uses: int
    uses: int
    """Hosts that joined with it so far."""
    revoked_at: datetime | None
    used_at: datetime | None
    """The last time."""
    used_by: str
    """Id of the host that used it last."""


class JoinTokenCreated(JoinTokenView):
    token: str
    """Shown this once."""
    command: str
    """``commands.process``"""
    commands: JoinCommands
    note: str
    """What must be done first; empty: nothing."""


@router.post("/api-keys", status_code=201, summary="Make an API key")
async def create_key(body: ApiKeyCreate, response: Response, services: ServicesDep, _admin: AdminDep) -> ApiKeyCreated:
    key = new_secret("key")
    now = datetime.now(UTC)
    row = ApiKeyRow(
        id=new_id("key"),
        name=body.name,
        prefix=shown_prefix(key),
        key_hash=digest(key),
        scope=body.scope,
        created_at=now,
        expires_at=now + timedelta(seconds=body.ttl_s) if body.ttl_s else None,
    )
    shown = _key_view(row)
    await services.database.awrite(lambda s: add_key(s, row))
    response.headers["location"] = f"/api/v1/api-keys/{shown.id}"
    return ApiKeyCreated(**shown.model_dump(), key=key)


@router.get("/api-keys", summary="List API keys")
async def list_keys(
    services: ServicesDep, _admin: AdminDep, limit: Limit = 100, cursor: Cursor = None
) -> Page[ApiKeyView]:
    rows = await services.database.aread(lambda s: s.exec(select(ApiKeyRow).order_by(col(ApiKeyRow.id))).all())
    return page(rows, limit, cursor, lambda r: r.id, _key_view)


@router.delete("/api-keys/{key_id}", status_code=204, summary="Revoke an API key")
async def revoke_key(key_id: str, services: ServicesDep, _admin: AdminDep) -> Response:
    """Gateways refuse it within a second. Revoking twice is harmless."""
    await services.database.awrite(lambda s: _revoke_key(s, key_id))
    return Response(status_code=204)


@router.post("/join-tokens", status_code=201, summary="Make a token for new hosts")
async def create_token(
    body: JoinTokenCreate, response: Response, services: ServicesDep, _admin: AdminDep
) -> JoinTokenCreated:
    """Good once unless ``max_uses`` says otherwise. The answer has the commands that make a machine a host."""
    new = join_tokens.new_token(body.description, body.ttl_s, body.max_uses)
    shown = _token_view(new.row)
    await services.database.awrite(lambda s: join_tokens.add(s, new.row))
    response.headers["location"] = f"/api/v1/join-tokens/{shown.id}"
    token = str(JoinToken(secret=new.secret, pin=services.authority.ca.pin))
    commands = join_commands(services.settings, token)
    return JoinTokenCreated(
        **shown.model_dump(), token=token, command=commands.process, commands=commands, note=note(services.settings)
    )


@router.get("/join-tokens", summary="List join tokens")
async def list_tokens(
    services: ServicesDep, _admin: AdminDep, limit: Limit = 100, cursor: Cursor = None
) -> Page[JoinTokenView]:
    rows = await services.database.aread(lambda s: s.exec(select(JoinTokenRow).order_by(col(JoinTokenRow.id))).all())
    return page(rows, limit, cursor, lambda r: r.id, _token_view)


@router.delete("/join-tokens/{token_id}", status_code=204, summary="Revoke a join token")
async def revoke_token(token_id: str, services: ServicesDep, _admin: AdminDep) -> Response:
    """Hosts that joined with it stay. Revoking twice is harmless."""
    await services.database.awrite(lambda s: join_tokens.revoke(s, token_id))
    return Response(status_code=204)


def add_key(session: Session, row: ApiKeyRow) -> None:
    session.add(row)
    registry.bump(session)


async def ensure_admin_key(services: Services, key: str) -> None:
    """Make the key in ``<home>/admin_key`` valid, unless a person has revoked it."""

    def ensure(session: Session) -> None:
        known = session.exec(select(ApiKeyRow).where(ApiKeyRow.key_hash == digest(key))).first()
        if known is None:
            row = ApiKeyRow(
                id=new_id("key"),
                name="admin_key file",
                prefix=shown_prefix(key),
                key_hash=digest(key),
                scope="admin",
            )
            add_key(session, row)

    await services.database.awrite(ensure)


def _revoke_key(session: Session, key_id: str) -> None:
    row = None if "\x00" in key_id else session.get(ApiKeyRow, key_id)
    if row is None:
        raise NotFound(f"there is no API key {key_id!r}", hint="list what there is")
    if row.revoked_at is not None:
        return
    now = datetime.now(UTC)
    admins = session.exec(select(ApiKeyRow).where(ApiKeyRow.scope == "admin").with_for_update()).all()
    others = [a for a in admins if a.id != key_id and not a.revoked_at and (not a.expires_at or a.expires_at > now)]
    if row.scope == "admin" and not others:
        raise Conflict("it is the last admin key", hint="make another admin key first")
    row.revoked_at = now
    session.add(row)
    registry.bump(session)


def _key_view(row: ApiKeyRow) -> ApiKeyView:
    return ApiKeyView(**row.model_dump(include=set(ApiKeyView.model_fields)))


def _token_view(row: JoinTokenRow) -> JoinTokenView:
    return JoinTokenView(**row.model_dump(include=set(JoinTokenView.model_fields)))
