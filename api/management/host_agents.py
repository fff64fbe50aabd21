"""What hosts themselves say: join, register, what runs, how engines are."""

import asyncio
import re
import secrets
from datetime import UTC, datetime

from fastapi import APIRouter
from sqlmodel import Session, select

from api.state import HostDep, ServicesDep
from fleet.access.secrets import digest
from fleet.db import claims
from fleet.db.hosts import save_registration
from fleet.db.tables import HostRow, JoinTokenRow
from fleet.errors import Forbidden, Unauthenticated
from fleet.hosts import HostRegistered
from fleet.instances import EngineReport
from fleet.inventory import EngineRef, Registration
from fleet.join import EngineList, JoinAnswer, JoinRequest, TemporalAccess
from fleet.resync import host_of
from fleet.states import HostState

router = APIRouter(prefix="/hosts", tags=["host workers"])


@router.post("/join", status_code=201, summary="Become a host, with a one-time token")
async def join(body: JoinRequest, services: ServicesDep) -> JoinAnswer:
    """Asking again with the same token and credential gives the same host: an answer may be lost."""
    host_id = await services.database.awrite(lambda s: _join(s, body))
    settings = services.settings
    access = TemporalAccess(address=settings.effective_temporal_address, namespace=settings.temporal_namespace)
    return JoinAnswer(host_id=host_id, temporal=access)


@router.post("/{host_id}/register", summary="Say what this host is; the answer is what may go on running on it")
async def register(body: Registration, host: HostDep, services: ServicesDep) -> EngineList:
    await services.database.awrite(lambda s: save_registration(s, host.id, body))
    inventory = body.inventory
    await services.workflows.register_host(
        HostRegistered(host_id=host.id, name=inventory.hostname, version=body.version, boot_id=inventory.boot_id),
        known=host_of(host),
    )
    wanted = await _wanted(services, host.id, set(body.engines))
    if body.fresh:
        # Their start was on its way to the process before this one: without a word it would be waited for in vain.
        lost = [e for e in wanted.engines if e not in body.engines]
        await asyncio.gather(*map(services.workflows.engine_unknown, lost))
    return wanted


@router.post("/{host_id}/engines", summary="Say what runs; the answer is what may go on")
async def engines(body: EngineList, host: HostDep, services: ServicesDep) -> EngineList:
    return await _wanted(services, host.id, set(body.engines))


@router.post("/{host_id}/reports", status_code=202, summary="Say how an engine is")
async def report(body: EngineReport, host: HostDep, services: ServicesDep) -> None:
    mine = await services.database.aread(lambda s: claims.host_of(s, body.instance_id, body.fence))
    if mine is not None and mine != host.id:
        raise Forbidden(f"{body.instance_id} is not placed on {host.id}", hint="a host speaks for its own engines only")
    await services.workflows.report_engine(body)


async def _wanted(services: ServicesDep, host_id: str, running: set[EngineRef]) -> EngineList:
    def exchange(session: Session) -> list[EngineRef]:
        claims.confirm_gone(session, host_id, running)
        return sorted(claims.legitimate(session, host_id), key=lambda r: (r.instance_id, r.fence))

    return EngineList(engines=await services.database.awrite(exchange))


def _join(session: Session, request: JoinRequest) -> str:
    query = select(JoinTokenRow).where(JoinTokenRow.token_hash == digest(request.token)).with_for_update()
    token = session.exec(query).first()
    if token is None:
        raise Unauthenticated("the join token is unknown", hint="make a new one with `holdfast join-token create`")
    known = session.exec(select(HostRow).where(HostRow.credential_hash == request.credential_hash)).first()
    if known is not None and token.used_by == known.id:
        return known.id
    if token.used_at is not None or known is not None:
        raise Unauthenticated(
            "the join token was used already", hint="make a new one with `holdfast join-token create`"
        )
    now = datetime.now(UTC)
    if token.expires_at <= now:
        raise Unauthenticated("the join token has expired", hint="make a new one with `holdfast join-token create`")
    host = HostRow(
        id=_host_id(request.name),
        name=request.name,
        machine_id=request.machine_id,
        state=HostState.LOST,
        message="joined, has not registered yet",
        credential_hash=request.credential_hash,
    )
    token.used_at, token.used_by = now, host.id
    session.add(host)
    session.add(token)
    return host.id


def _host_id(name: str) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')[:40] or 'host'}-{secrets.token_hex(3)}"
