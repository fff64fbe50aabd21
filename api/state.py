"""What every route of the management API needs, and who is asking."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry
from sqlmodel import select

from api.temporal_client import WorkflowClient
from fleet.access.sealing import Sealer
from fleet.access.secrets import digest
from fleet.db.audit import AuditLog
from fleet.db.authority import Authority
from fleet.db.session import Database
from fleet.db.tables import ApiKeyRow
from fleet.errors import Forbidden, Unauthenticated
from fleet.host_client import HostClient
from fleet.model_files import ModelFiles
from fleet.settings import Settings

_bearer = HTTPBearer(auto_error=False, description="a key made with `holdfast keys create`, or <home>/admin_key")
_HINT = "send 'Authorization: Bearer <key>' with a key from `holdfast keys create` or from <home>/admin_key"


@dataclass(frozen=True)
class Services:
    settings: Settings
    database: Database
    workflows: WorkflowClient
    hosts: HostClient
    files: ModelFiles
    master: Sealer
    authority: Authority
    audit: AuditLog
    gateway_metrics: CollectorRegistry


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def require_admin(request: Request, services: ServicesDep, credentials: Credentials) -> str:
    """The id of an API key with scope ``admin``."""
    if credentials is None:
        raise Unauthenticated("no API key was sent", hint=_HINT)
    hashed = digest(credentials.credentials)
    row = await services.database.aread(lambda s: s.exec(select(ApiKeyRow).where(ApiKeyRow.key_hash == hashed)).first())
    if row is None or row.revoked_at is not None or (row.expires_at and row.expires_at <= datetime.now(UTC)):
        raise Unauthenticated("the API key is unknown, revoked or expired", hint=_HINT)
    request.state.actor = f"key:{row.id}"
    if row.scope != "admin":
        raise Forbidden(f"key {row.prefix} may use the models but not manage them", hint="use a key with scope 'admin'")
    return row.id


AdminDep = Annotated[str, Depends(require_admin)]
