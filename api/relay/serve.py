"""The relay process: the one port that hosts dial, and the internal one for what goes through their tunnels."""

import asyncio
import gc
import logging
import socket
from collections.abc import Awaitable
from datetime import timedelta

import grpc.aio
import uvloop
from prometheus_client import CollectorRegistry

from api.relay.authenticate import Authenticator
from api.relay.certificate import RelayCertificate
from api.relay.connect_proxy import ConnectProxy
from api.relay.directory import HostDirectory
from api.relay.hosts import Hosts
from api.relay.ownership import TaskTokens
from api.relay.passing import Temporal
from api.relay.reach import Reach
from api.relay.refusal import Doorbook, Metrics
from api.relay.server import Door, new_server
from api.relay.tunnels import Tunnels
from api.relay.upstream import Upstream
from api.temporal_client import WorkflowClient
from fleet.access.keys import master_sealer_of, master_secret
from fleet.access.tickets import TicketReader
from fleet.db import authority
from fleet.db.audit import AuditLog
from fleet.db.authority import Authority
from fleet.db.gpu_status import apply_status
from fleet.db.migrate import upgrade
from fleet.db.session import Database
from fleet.db.telemetry import StatusLog
from fleet.logs import configure_logging
from fleet.serving import CannotListen, listen, run_until_told
from fleet.settings import Settings
from fleet.temporal import connect

log = logging.getLogger("holdfast.relay")

_STOP_S = 10.0
_GRACE_S = 1.0
"""For calls that are being answered when the process ends; polls are cut, and made again elsewhere."""


class Relay:
    """All parts of one process."""

    def __init__(self, settings: Settings, database: Database, keys: Authority, workflows: WorkflowClient) -> None:
        metrics = Metrics()
        audit = audit_log(settings, database, metrics.registry)
        statuses = StatusLog(database, audit, metrics.registry, apply=apply_status)
        book = Doorbook(audit, metrics)
        self.directory = directory = HostDirectory(database)
        self.keys = keys
        self.tunnels = Tunnels(metrics)
        self.upstream = Upstream(settings)
        self.reach = Reach(database, directory, self.tunnels, keys.ca.certificate_pem, settings.relay_for_gateways)
        hosts = Hosts(
            database=database,
            workflows=workflows,
            directory=directory,
            statuses=statuses,
            doorbook=book,
            reach=self.reach,
            ca=keys.ca,
            ticket_keys=[keys.tickets.public_key],
            namespace=settings.temporal_namespace,
        )
        temporal = Temporal(self.upstream, TaskTokens(master_secret(settings)), settings.temporal_namespace)
        self.door = Door(Authenticator(directory), temporal, hosts, self.tunnels, book)
        self.proxy = ConnectProxy(self.tunnels, TicketReader([keys.tickets.public_key]), book)
        self._settings = settings
        self._background = (directory.run, audit.run, statuses.run, self.reach.run)

    async def serve(self, internal: socket.socket, stop: asyncio.Event) -> None:
        """Until ``stop`` is set. ``internal``: where gateways come in. Raises CannotListen."""
        settings = self._settings
        server = new_server(self.door)
        _listen_for_hosts(server, settings, RelayCertificate(self.keys.ca))
        proxy = await asyncio.start_server(self.proxy.serve, sock=internal)
        background = [asyncio.create_task(work()) for work in self._background]
        await server.start()
        gc.collect()
        gc.freeze()  # what is there by now stays: looking through it for garbage took a tenth of all work
        log.info("relay on %s, for gateways on %s", settings.relay_for_hosts, settings.relay_for_gateways)
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({stopping, *background}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            ended = [task for task in background if task.done()]
            await _at_most(server.stop(_GRACE_S), _GRACE_S + _STOP_S)
            proxy.close()
            await _cancel(background)
            await self.reach.forget_all()
            await _at_most(self.upstream.aclose(), _STOP_S)
        for task in ended:
            task.result()


def audit_log(settings: Settings, database: Database, registry: CollectorRegistry) -> AuditLog:
    keep = timedelta(days=settings.audit_keep_days)
    return AuditLog(database, registry, keep=keep, keep_rows=settings.audit_keep_rows)


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set. Raises CannotListen."""
    listening = listen(settings.relay_internal_bind, settings.relay_internal_port)
    await asyncio.to_thread(upgrade, settings.effective_database_url)
    database = Database(settings.effective_database_url)
    keys = await asyncio.to_thread(authority.ensure, database, master_sealer_of(settings))
    workflows = WorkflowClient(await connect(settings, lazy=True), settings.timings)
    try:
        await Relay(settings, database, keys, workflows).serve(listening, stop)
    finally:
        database.close()


def _listen_for_hosts(server: grpc.aio.Server, settings: Settings, certificate: RelayCertificate) -> None:
    bind = settings.relay_bind or settings.bind
    address = f"[{bind}]:{settings.relay_port}" if ":" in bind else f"{bind}:{settings.relay_port}"
    # gRPC says only that it failed: this says why.
    listen(bind, settings.relay_port).close()
    try:
        server.add_secure_port(address, certificate.credentials())
    except RuntimeError as error:
        raise CannotListen(f"cannot listen on {address}: {error}") from error


async def _at_most(ending: Awaitable[object], seconds: float) -> None:
    """gRPC was seen never to come to its end; the process has nothing to lose by then."""
    try:
        await asyncio.wait_for(ending, seconds)
    except TimeoutError:
        log.warning("gRPC did not end within %.0f s, and is left", seconds)


async def _cancel(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main(settings: Settings) -> int:
    configure_logging()
    try:
        run_until_told(lambda stop: run(settings, stop), uvloop.new_event_loop)
    except CannotListen as error:
        log.error("%s: set HOLDFAST_RELAY_PORT, HOLDFAST_RELAY_BIND or HOLDFAST_RELAY_INTERNAL_PORT", error)
        return 1
    return 0
