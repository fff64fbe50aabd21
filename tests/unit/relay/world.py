"""The whole relay inside the test's process; Temporal and the workflows are played."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from sqlmodel import select

from api.relay.serve import Relay
from fleet.access.keys import master_sealer_of
from fleet.db import authority, join_tokens
from fleet.db.session import Database
from fleet.db.tables import AuditRow, HostRow
from fleet.errors import NotFound
from fleet.hosts import Host, HostRegistered
from fleet.instances import EngineReport
from fleet.inventory import EngineRef
from fleet.join import JoinToken
from fleet.serving import listen
from fleet.settings import Settings
from tests.raw_host import RawHost
from tests.stack import free_ports

Answer = Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Awaitable[bytes]]


@dataclass
class FakeTemporal(grpc.GenericRpcHandler):
    """Answers with nothing, or as ``answers`` says by method."""

    answers: dict[str, Answer] = field(default_factory=dict)
    seen: list[tuple[str, bytes, dict[str, str | bytes]]] = field(default_factory=list)
    """Method, request, metadata."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.rpartition("/")[2]

        async def call(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            self.seen.append((method, request, dict(details.invocation_metadata or ())))
            answer = self.answers.get(method)
            return await answer(request, context) if answer else b""

        return grpc.unary_unary_rpc_method_handler(call)


@dataclass
class FakeWorkflows:
    registered: list[HostRegistered] = field(default_factory=list)
    reported: list[EngineReport] = field(default_factory=list)
    unknown: list[EngineRef] = field(default_factory=list)
    ended: bool = False
    """No instance is there any more."""

    async def register_host(self, registered: HostRegistered, known: Host | None = None) -> None:
        self.registered.append(registered)

    async def report_engine(self, report: EngineReport) -> None:
        if self.ended:
            raise NotFound("there is no such instance")
        self.reported.append(report)

    async def engine_unknown(self, engine: EngineRef) -> None:
        self.unknown.append(engine)


@dataclass
class World:
    settings: Settings
    database: Database
    keys: authority.Authority
    relay: Relay
    temporal: FakeTemporal
    workflows: FakeWorkflows

    @property
    def url(self) -> str:
        return self.settings.relay_for_hosts

    def token(self, max_uses: int = 1, ttl_s: int = 600) -> str:
        new = join_tokens.new_token("test", ttl_s, max_uses)
        secret = new.secret
        self.database.write(lambda s: join_tokens.add(s, new.row))
        return str(JoinToken(secret=secret, pin=self.keys.ca.pin))

    async def host(self, name: str = "box", **registration: Any) -> RawHost:
        """Joined and registered."""
        host = await RawHost.join(self.url, await asyncio.to_thread(self.token), name)
        await host.register(**registration)
        return host

    def row(self, host_id: str) -> HostRow:
        return self.database.read(lambda s: s.get_one(HostRow, host_id))

    def change(self, host_id: str, **values: Any) -> None:
        def write(session: Any) -> None:
            row = session.get_one(HostRow, host_id)
            for name, value in values.items():
                setattr(row, name, value)
            session.add(row)

        self.database.write(write)

    async def audited(self, action: str, reason: str) -> AuditRow:
        """The entry, once it is written."""

        def find() -> AuditRow | None:
            query = select(AuditRow).where(AuditRow.action == action, AuditRow.reason == reason)
            return self.database.read(lambda s: s.exec(query).first())

        return await soon(lambda: asyncio.to_thread(find), what=f"{action} {reason} in the audit log")


async def soon(check: Callable[[], Awaitable[Any]], *, within: float = 10, what: str = "") -> Any:
    """The first true answer."""
    try:
        async with asyncio.timeout(within):
            while not (answer := await check()):
                await asyncio.sleep(0.02)
            return answer
    except TimeoutError:
        raise AssertionError(f"{what or check} not within {within} s") from None


@asynccontextmanager
async def new_world(folder: Path, database: Database) -> AsyncIterator[World]:
    temporal = FakeTemporal()
    upstream = grpc.aio.server(handlers=[temporal])
    port = upstream.add_insecure_port("127.0.0.1:0")
    await upstream.start()
    relay_port, internal_port = free_ports(2)
    settings = Settings(
        home=folder,
        temporal_address=f"127.0.0.1:{port}",
        temporal_namespace="models",
        relay_port=relay_port,
        relay_internal_port=internal_port,
    )
    keys = await asyncio.to_thread(authority.ensure, database, master_sealer_of(settings))
    workflows: Any = FakeWorkflows()
    relay = Relay(settings, database, keys, workflows)
    stop = asyncio.Event()
    serving = asyncio.create_task(relay.serve(listen("127.0.0.1", internal_port), stop))
    try:
        await soon(lambda: _listens(relay_port), what="the relay listens")
        yield World(settings, database, keys, relay, temporal, workflows)
    finally:
        stop.set()
        await serving
        await asyncio.wait_for(upstream.stop(None), 30)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
