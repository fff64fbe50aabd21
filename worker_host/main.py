"""The host process: joins, adopts, registers, and then runs engines for its queue ``host-<id>``."""

import asyncio
import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import httpx
import uvloop
from temporalio.client import Client

from fleet.access.sealing import host_sealer
from fleet.access.secrets import digest
from fleet.access.tickets import TicketReader
from fleet.inventory import EngineRef, Inventory, Registration
from fleet.join import Identity, StatusAnswer
from fleet.logs import configure_logging
from fleet.serving import CannotListen, run_until_told, until_done_or
from fleet.settings import Settings, in_url
from fleet.telemetry import Refusal
from worker_host.address import HostAddress, door, listen_again
from worker_host.certificate import HostCertificate
from worker_host.control_plane import ControlPlane, Gone, VersionRefused
from worker_host.detect import machine
from worker_host.engine_log import EngineLogs
from worker_host.gpu_owners import OwnEngine
from worker_host.identity import CannotJoin, host_folder, identify, identity_path, only_one, relay_address
from worker_host.install import Engines
from worker_host.lease import LeaseKeeper
from worker_host.link import Link
from worker_host.log_reader import LogReader
from worker_host.own_engines import own_engine
from worker_host.records import Records
from worker_host.runtime.choice import runtimes_of
from worker_host.server import HostServer, open_door
from worker_host.starting import Starter
from worker_host.status import StatusLoop
from worker_host.supervised import HostParts
from worker_host.supervisor import JANITOR_S, Supervisor
from worker_host.telemetry import Sources, Telemetry
from worker_host.ticket_keys import TicketKeys
from worker_host.tunnel import Tunnel
from worker_host.work import Work

log = logging.getLogger("holdfast.host")

_REGISTER_AGAIN_S = 5.0
"""While there is no lease."""
_LET_FINISH_S = 10.0
"""Answers that engines are giving when this process is told to end may go on for so long."""


class HostProcess:
    """Everything that runs while this process lives."""

    def __init__(self, settings: Settings, identity: Identity, link: Link, client: Client) -> None:
        """Blocks for as long as drivers take to say what cards there are."""
        folder = host_folder(settings)
        self._settings = settings
        self._identity = identity
        self._link = link
        self._client = client
        self._address = HostAddress(settings, link.address)
        self._records = Records(folder)
        self._records.begin_boot(machine.boot_id())
        self._logs = EngineLogs(settings.home / "logs" / "engines")
        self._sealer = host_sealer(digest(identity.credential))
        tickets = TicketReader((), clock=link.clock.now)
        self._ticket_keys = TicketKeys(folder / "ticket_keys.json", tickets)
        self._certificate = HostCertificate(identity, identity_path(settings))
        self._control_plane = ControlPlane(link)
        self._http = httpx.AsyncClient(trust_env=False)
        self._lease = LeaseKeeper(client, self._records)
        sources = Sources(
            engines=self._own_engines,
            refusals=self._refusals,
            address=lambda: self._address.current,
        )
        self._telemetry = Telemetry(settings, identity.name, folder, sources)
        self._runtimes = runtimes_of(settings, identity.host_id, folder)
        self._supervisor = Supervisor(self._parts(self._telemetry.inventory()))
        self._server = HostServer(
            host_id=identity.host_id,
            tickets=tickets,
            models=settings.home / "models",
            log_reader=LogReader(self._logs, self._sealer),
            running=self._supervisor.where,
            metrics_of=self._supervisor.metrics,
            metrics=self._telemetry.metrics,
        )
        self._status = StatusLoop(self._control_plane, self._telemetry, self._address, self._heard, self._register)
        self._work = Work(link, identity.host_id, self._supervisor, self._lease)
        self._registering = asyncio.Lock()
        self._fresh = True
        self._port = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``; then the engines are left to the next process, or suspended if so configured.

        Raises CannotListen, Gone, VersionRefused.
        """
        bind = self._address.bind()
        listening = listen_again(bind, self._settings.host_port, host_folder(self._settings) / "port")
        self._port = int(listening.getsockname()[1])
        tunnel = Tunnel(self._link, lambda: door(bind, self._port))
        # What comes through the tunnel may finish, too: it ends after the server.
        ways_in = [asyncio.create_task(tunnel.run()), asyncio.create_task(self._link.keep_fresh())]
        try:
            tls = self._certificate.context
            through = self._server.hand_through
            async with open_door(self._server, through, listening, tls, grace_s=_LET_FINISH_S):
                self._lease.resume()
                self._supervisor.resume()
                await self._serve(stop)
        finally:
            await _end(ways_in)
        await self._lease.aclose()
        await self._runtimes.aclose()
        await self._link.aclose()
        await self._http.aclose()

    async def _serve(self, stop: asyncio.Event) -> None:
        stopping = asyncio.create_task(stop.wait())
        background = [
            # What does not belong here any more is stopped before new work is taken.
            asyncio.create_task(self._work.take(self._register)),
            asyncio.create_task(self._stay_registered()),
            asyncio.create_task(self._clean()),
            asyncio.create_task(self._status.run()),
            asyncio.create_task(self._certificate.keep(self._control_plane)),
        ]
        try:
            await asyncio.wait({stopping, *background}, return_when=asyncio.FIRST_COMPLETED)
            broken = [task for task in background if task.done()]
        finally:
            await _end([stopping, *background])
        if self._settings.host_stop_engines_on_exit and stop.is_set():
            await self._supervisor.suspend()
        else:
            await self._supervisor.let_go()
        for task in broken:
            task.result()

    async def _register(self) -> None:
        async with self._registering:
            inventory = await asyncio.to_thread(self._telemetry.inventory)
            running = await asyncio.to_thread(self._supervisor.running)
            registration = Registration(
                inventory=inventory,
                address=self._address.current,
                http_port=self._port,
                version=version("holdfast"),
                engines=tuple(running),
                fresh=self._fresh,
                reach=self._settings.host_reach,
            )
            answer = await self._control_plane.register(registration)
            self._fresh = False
            await asyncio.to_thread(self._ticket_keys.trust, answer.ticket_keys)
            self._status.registered = (registration.address, inventory.fingerprint())
            wanted = set(answer.engines)
            await self._supervisor.keep_only(wanted, at_once=True)
            if set(running) - wanted:  # the memory of what was stopped is free now
                await self._control_plane.confirm(await asyncio.to_thread(self._supervisor.running))

    async def _stay_registered(self) -> None:
        """Whenever the lease is missing: say that we are here, until somebody gives us one."""
        while True:
            await asyncio.sleep(_REGISTER_AGAIN_S)  # one is on its way to whoever has just registered
            await self._lease.missing.wait()
            await self._register()

    async def _clean(self) -> None:
        while True:
            await asyncio.sleep(JANITOR_S)
            running = await asyncio.to_thread(self._supervisor.running)
            await self._supervisor.keep_only(await self._control_plane.confirm(running))

    def _heard(self, answer: StatusAnswer) -> None:
        self._ticket_keys.trust(answer.ticket_keys)

    def _refusals(self) -> Sequence[Refusal]:
        return self._server.take_refusals()

    def _in_flight(self, engine: EngineRef) -> int:
        load = self._server.loads().get(engine)
        return load.in_flight if load is not None else 0

    def _own_engines(self) -> Sequence[OwnEngine]:
        loads = self._server.loads()
        return [own_engine(record, loads.get(record.ref)) for record in self._supervisor.records()]

    def _parts(self, inventory: Inventory) -> HostParts:
        starter = Starter(
            runtimes=self._runtimes,
            engines=Engines(self._settings.home / "engines", inventory.engines),
            logs=self._logs,
            sealer=self._sealer,
            gpus=lambda: self._telemetry.gpus,
            cpu_count=inventory.cpu_count,
            models=self._settings.home / "models",
        )
        return HostParts(
            client=self._client,
            control_plane=self._control_plane,
            records=self._records,
            runtimes=self._runtimes,
            starter=starter,
            logs=self._logs,
            sealer=self._sealer,
            http=self._http,
            in_flight=self._in_flight,
            door=lambda: f"https://{in_url(self._address.current)}:{self._port}",
        )


async def _end(tasks: Sequence["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Serve as a host until ``stop`` is set.

    Raises CannotJoin, CannotListen, VersionRefused; Gone when the host was forgotten.
    """
    (settings.home / "models").mkdir(parents=True, exist_ok=True)
    lock = await until_done_or(stop, only_one(settings))
    if lock is None:
        return
    with lock:
        process = await until_done_or(stop, _prepare(settings))
        if process is not None:
            await process.run(stop)


async def _prepare(settings: Settings) -> HostProcess:
    identity = await identify(settings)
    link = Link(identity, relay_address(settings, identity.server), machine.boot_id())
    client = await link.temporal(lazy=True)  # engines are looked after while the relay is away, too
    return await asyncio.to_thread(HostProcess, settings, identity, link, client)


def main(settings: Settings) -> int:
    configure_logging()

    try:
        run_until_told(lambda stop: run(settings, stop), uvloop.new_event_loop)
    except (CannotJoin, CannotListen) as error:
        log.error("%s", error)
        return 1
    except VersionRefused as error:
        log.error("the control plane does not work with this version of a host; its engines run on: %s", error)
        return 1
    except Gone as error:
        log.error(
            "the control plane does not know this host any more (%s): delete %s and join with a new token",
            error,
            host_folder(settings),
        )
        return 1
    return 0
