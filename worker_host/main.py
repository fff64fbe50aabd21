"""The host process: joins, adopts, registers, and then runs engines for its queue ``host-<id>``."""

import asyncio
import logging
from datetime import timedelta
from importlib.metadata import version

import httpx
from starlette.applications import Starlette
from temporalio.client import Client
from temporalio.worker import Worker

from activities.engine import EngineActivities
from activities.host import HostActivities
from fleet import ids
from fleet.access.sealing import host_sealer
from fleet.access.secrets import digest
from fleet.inventory import Inventory, Registration
from fleet.join import Identity
from fleet.logs import configure_logging
from fleet.serving import CannotListen, listen, run_until_told, serving, until_done_or
from fleet.settings import Settings
from fleet.temporal import connect_patiently
from worker_host.control_plane import ControlPlane, Gone
from worker_host.detect.inventory import take_inventory
from worker_host.engine_log import EngineLogs
from worker_host.identity import CannotJoin, host_folder, identify
from worker_host.install import Engines
from worker_host.lease import LeaseKeeper
from worker_host.log_reader import LogReader
from worker_host.records import Records
from worker_host.runtime.choice import runtimes_of
from worker_host.server import HostServer
from worker_host.starting import Starter
from worker_host.supervised import HostParts
from worker_host.supervisor import JANITOR_S, Supervisor

log = logging.getLogger("holdfast.host")

_REGISTER_AGAIN_S = 5.0
"""While there is no lease."""


class HostProcess:
    """Everything that runs while this process lives."""

    def __init__(self, settings: Settings, identity: Identity, inventory: Inventory, client: Client) -> None:
        folder = host_folder(settings)
        self._settings = settings
        self._identity = identity
        self._inventory = inventory
        self._client = client
        self._records = Records(folder)
        self._logs = EngineLogs(settings.home / "logs" / "engines")
        self._control_plane = ControlPlane(identity, settings.server)
        self._http = httpx.AsyncClient(trust_env=False)
        self._lease = LeaseKeeper(client, self._records)
        self._supervisor = Supervisor(self._parts())
        self._http_port = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``; then the engines are left to the next process, or suspended if so configured."""
        listening = listen(self._settings.host_address, self._settings.host_port)
        self._http_port = int(listening.getsockname()[1])
        async with serving(self._app(), listening, grace_s=1.0, lifespan="off"):
            self._lease.resume()
            self._supervisor.resume()
            background = [asyncio.create_task(self._stay_registered()), asyncio.create_task(self._clean())]
            try:
                await self._serve(stop, background)
            finally:
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
        await self._lease.aclose()
        await self._control_plane.aclose()
        await self._http.aclose()

    async def _serve(self, stop: asyncio.Event, background: list[asyncio.Task[None]]) -> None:
        stopping = asyncio.create_task(stop.wait())
        # What does not belong here any more is stopped before new work is taken.
        first = asyncio.create_task(self._register(fresh=True))
        done, _ = await asyncio.wait({stopping, first, *background}, return_when=asyncio.FIRST_COMPLETED)
        if first in done:
            first.result()
            async with self._worker():
                log.info("host %s serves %s", self._identity.name, ids.host_queue(self._identity.host_id))
                await asyncio.wait({stopping, *background}, return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
        stopping.cancel()
        if self._settings.host_stop_engines_on_exit and stop.is_set():
            await self._supervisor.suspend()
        else:
            await self._supervisor.let_go()
        for task in background:
            if task.done() and not task.cancelled():
                task.result()

    def _worker(self) -> Worker:
        engines = EngineActivities(self._supervisor)
        host = HostActivities(self._lease)
        return Worker(
            self._client,
            task_queue=ids.host_queue(self._identity.host_id),
            activities=[engines.run_engine, engines.look_at_engine, host.hold_lease, host.answer_roll_call],
            max_concurrent_activity_task_polls=2,
            graceful_shutdown_timeout=timedelta(seconds=5),
        )

    async def _register(self, *, fresh: bool = False) -> None:
        running = await asyncio.to_thread(self._supervisor.running)
        registration = Registration(
            inventory=self._inventory,
            address=self._settings.host_address,
            http_port=self._http_port,
            version=version("holdfast"),
            engines=tuple(running),
            fresh=fresh,
        )
        wanted = await self._control_plane.register(registration)
        await self._supervisor.keep_only(wanted, at_once=True)
        if set(running) - wanted:  # the memory of what was stopped is free now
            await self._control_plane.confirm(await asyncio.to_thread(self._supervisor.running))

    async def _stay_registered(self) -> None:
        """Whenever the lease is missing: say that we are here, until somebody gives us one."""
        while True:
            await self._lease.missing.wait()
            await asyncio.sleep(_REGISTER_AGAIN_S)
            if self._lease.missing.is_set():
                await self._register()

    async def _clean(self) -> None:
        while True:
            await asyncio.sleep(JANITOR_S)
            running = await asyncio.to_thread(self._supervisor.running)
            await self._supervisor.keep_only(await self._control_plane.confirm(running))

    def _parts(self) -> HostParts:
        sealer = host_sealer(digest(self._identity.credential))
        runtimes = runtimes_of(self._settings, self._identity.host_id, host_folder(self._settings))
        starter = Starter(
            runtimes=runtimes,
            engines=Engines(self._settings.home / "engines", self._inventory.engines),
            logs=self._logs,
            sealer=sealer,
            gpus=lambda: self._inventory.gpus,
            cpu_count=self._inventory.cpu_count,
        )
        return HostParts(
            client=self._client,
            control_plane=self._control_plane,
            records=self._records,
            runtimes=runtimes,
            starter=starter,
            logs=self._logs,
            sealer=sealer,
            http=self._http,
        )

    def _app(self) -> Starlette:
        return HostServer(
            identity=self._identity,
            models=self._settings.home / "models",
            log_reader=LogReader(self._logs, host_sealer(digest(self._identity.credential))),
            running=lambda: len(self._supervisor.running()),
            metrics_of=self._supervisor.metrics,
        ).app()


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Serve as a host until ``stop`` is set. Raises CannotJoin; Gone when the host was forgotten."""
    (settings.home / "models").mkdir(parents=True, exist_ok=True)
    process = await until_done_or(stop, _prepare(settings))
    if process is not None:
        await process.run(stop)


async def _prepare(settings: Settings) -> HostProcess:
    identity = await identify(settings)
    inventory = await asyncio.to_thread(take_inventory, settings, identity.name)
    reachable = settings.model_copy(
        update={
            "temporal_address": settings.temporal_address or identity.temporal.address,
            "temporal_namespace": identity.temporal.namespace,
        }
    )
    return HostProcess(settings, identity, inventory, await connect_patiently(reachable))


def main(settings: Settings) -> int:
    configure_logging()

    try:
        run_until_told(lambda stop: run(settings, stop))
    except (CannotJoin, CannotListen) as error:
        log.error("%s", error)
        return 1
    except Gone as error:
        log.error(
            "the control plane does not know this host any more (%s): delete %s and join with a new token",
            error,
            host_folder(settings),
        )
        return 1
    return 0
