"""What hosts themselves say: join, register, what runs, how engines are, how the host is.

Each can be asked twice with the same result: answers get lost.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import grpc
from pydantic import BaseModel, ValidationError
from sqlalchemy import update
from sqlalchemy.exc import NoResultFound
from sqlmodel import Session, col

from api.relay import joining, registering
from api.relay.authenticate import Caller
from api.relay.directory import HostDirectory
from api.relay.reach import Reach
from api.relay.refusal import Doorbook, Refused
from api.relay.registering import OtherMachine
from api.temporal_client import WorkflowClient
from fleet import join, versions
from fleet.access.authority import CertificateAuthority, NotOurs, expires_at, key_of_request
from fleet.db import claims, registry
from fleet.db.session import Database
from fleet.db.tables import HostRow
from fleet.db.telemetry import StatusLog
from fleet.errors import Forbidden, InvalidInput, NotFound
from fleet.hosts import HostRegistered
from fleet.instances import EngineReport
from fleet.inventory import EngineRef, Registration, UnknownEngine
from fleet.join import (
    REASON_HEADER,
    Certificate,
    CertificateRequest,
    EngineList,
    JoinAnswer,
    JoinRequest,
    Reason,
    Registered,
    StatusAnswer,
)
from fleet.telemetry import HostStatus

VERSION = version("holdfast")


@dataclass(frozen=True)
class Call:
    """Who says it, from where."""

    caller: Caller
    peer: str

    @property
    def host_id(self) -> str:
        return self.caller.host.id


Method = Callable[["Hosts", Call, Any], Awaitable[BaseModel | None]]


@dataclass(frozen=True)
class Hosts:
    database: Database
    workflows: WorkflowClient
    directory: HostDirectory
    statuses: StatusLog
    doorbook: Doorbook
    reach: Reach
    ca: CertificateAuthority
    ticket_keys: list[str]
    namespace: str

    async def join(self, body: JoinRequest, peer: str) -> JoinAnswer:
        """The one call without a pass. Raises HoldfastError, Refused."""
        if body.version:
            _check_version(body.version)
        joined = await self.database.awrite(lambda s: joining.join(s, body, self.ca))
        await self.directory.look_up(joined.host_id)
        actor, action = f"host:{joined.host_id}", "host.join"
        self.doorbook.done(
            actor=actor, action=action, target=joined.token_id, peer=peer, reason="again" if joined.again else ""
        )
        return JoinAnswer(
            host_id=joined.host_id,
            ca=self.ca.certificate_pem,
            certificate=joined.certificate,
            namespace=self.namespace,
        )

    async def register(self, call: Call, body: Registration) -> Registered:
        """Raises OtherMachine while another machine speaks as this host, Refused for its version."""
        host_id, boot_id = call.host_id, call.caller.boot_id
        _check_version(body.version)
        if body.inventory.boot_id != boot_id:
            raise InvalidInput("it is not that of the pass", field="inventory.boot_id", hint="restart the host process")
        try:
            known = await self.database.awrite(lambda s: registering.register(s, host_id, boot_id, body, call.peer))
        except NoResultFound:
            raise _forgotten(host_id) from None
        except OtherMachine as refused:
            text = refused.message
            await self.database.awrite(lambda s: registering.warn(s, host_id, text))
            raise
        host = await self.directory.look_up(host_id)
        if host is None:
            raise _forgotten(host_id)
        self.reach.look_at(host)
        name = body.inventory.hostname
        registered = HostRegistered(host_id=host_id, name=name, version=body.version, boot_id=boot_id)
        await self.workflows.register_host(registered, known=known)
        wanted = await self._wanted(host_id, set(body.engines))
        if body.fresh:
            # Their start was on its way to the process before this one: without a word it would be waited for in vain.
            lost = [UnknownEngine(**dict(e), host_id=host_id) for e in wanted if e not in body.engines]
            await asyncio.gather(*map(self.workflows.engine_unknown, lost))
        return Registered(engines=wanted, ticket_keys=self.ticket_keys, now=time.time())

    async def engines(self, call: Call, body: EngineList) -> EngineList:
        return EngineList(engines=await self._wanted(call.host_id, set(body.engines)))

    async def report(self, call: Call, body: EngineReport) -> None:
        """Of an instance that has ended it is taken too, and forgotten."""
        of = (body.instance_id, body.fence)
        hosts, leader = await self.database.aread(lambda s: (claims.hosts_of(s, *of), claims.host_of(s, *of)))
        mine = call.host_id in hosts if body.rank else leader in (call.host_id, None)
        if hosts and not mine:
            raise Forbidden(
                f"{body.instance_id} is not placed on {call.host_id}", hint="speak for your own engines only"
            )
        try:
            await self.workflows.report_engine(body)
        except NotFound:
            return

    async def status(self, call: Call, body: HostStatus) -> StatusAnswer:
        host = call.caller.host
        if body.boot_id != call.caller.boot_id:
            raise InvalidInput("it is not that of the pass", field="boot_id", hint="restart the host process")
        self.statuses.note(host.id, body)
        if body.address and body.address != host.address:
            await self.database.awrite(lambda s: _save_address(s, host.id, body.address))
            moved = await self.directory.look_up(host.id)
            if moved is not None:
                self.reach.look_at(moved)
        return StatusAnswer(ticket_keys=self.ticket_keys, now=time.time(), tunnel=host.tunnel_only)

    async def renew(self, call: Call, body: CertificateRequest) -> Certificate:
        """For the key that the host joined with."""
        host = call.caller.host
        try:
            if key_of_request(body.certificate_request) != host.public_key:
                raise Forbidden("the request is for another key", hint="a host keeps the key that it joined with")
            certificate = self.ca.issue_to_host(body.certificate_request, host.id)
        except NotOurs as error:
            raise InvalidInput(str(error), field="certificate_request", hint="make a new request") from error
        ends = expires_at(certificate)
        await self.database.awrite(lambda s: _save_expiry(s, host.id, ends))
        return Certificate(certificate=certificate, ca=self.ca.certificate_pem)

    async def _wanted(self, host_id: str, running: set[EngineRef]) -> list[EngineRef]:
        """What may run on the host. Claims on what is gone are freed, and the host was heard of."""

        def exchange(session: Session) -> list[EngineRef]:
            claims.confirm_gone(session, host_id, running)
            session.execute(update(HostRow).where(col(HostRow.id) == host_id).values(seen_at=datetime.now(UTC)))
            return sorted(claims.legitimate(session, host_id), key=lambda r: (r.instance_id, r.fence))

        return await self.database.awrite(exchange)


METHODS: Mapping[str, tuple[type[BaseModel], Method]] = {
    join.REGISTER: (Registration, Hosts.register),
    join.ENGINES: (EngineList, Hosts.engines),
    join.REPORT: (EngineReport, Hosts.report),
    join.STATUS: (HostStatus, Hosts.status),
    join.RENEW: (CertificateRequest, Hosts.renew),
}
"""Those that take a pass: one answer for each message."""


def parse(model: type[BaseModel], request: bytes) -> BaseModel:
    """Raises InvalidInput with the field at fault."""
    try:
        return model.model_validate_json(request)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:200]
        raise InvalidInput(first["msg"][:300], field=field or "the request") from error


def _check_version(theirs: str) -> None:
    if reason := versions.why_not(VERSION, theirs):
        trailing = ((REASON_HEADER, Reason.VERSION.value),)
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "version", reason, trailing=trailing)


def _forgotten(host_id: str) -> NotFound:
    return NotFound(f"there is no host {host_id} any more", hint="it was forgotten; join with a new token")


def _save_address(session: Session, host_id: str, address: str) -> None:
    session.execute(update(HostRow).where(col(HostRow.id) == host_id).values(address=address))
    registry.bump(session)


def _save_expiry(session: Session, host_id: str, ends: datetime) -> None:
    session.execute(update(HostRow).where(col(HostRow.id) == host_id).values(certificate_expires_at=ends))
