"""The API process: management under FastAPI, inference straight past it."""

import asyncio
import logging
from datetime import timedelta
from typing import Any

import uvloop
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from api.app import create_app
from api.batch_starter import BatchStarter
from api.gateway.app import Gateway
from api.gateway.operation import is_inference
from api.gateway.quick import quick_http
from api.gateway.tracing import tracing_for
from api.gateway.usage_log import UsageLog
from api.limits import BodyLimit
from api.management import evaluations
from api.management.access import ensure_admin_key
from api.openai_files import FilesAndBatches
from api.state import Services
from api.temporal_client import WorkflowClient
from fleet.access.keys import admin_key, master_sealer_of
from fleet.access.visitor import Visitor
from fleet.db.audit import AuditLog
from fleet.db.authority import ensure
from fleet.db.migrate import upgrade
from fleet.db.session import Database
from fleet.host_client import HostClient
from fleet.logs import configure_logging
from fleet.model_files import ModelFiles
from fleet.serving import CannotListen, listen, run_until_told, serving
from fleet.settings import Settings
from fleet.temporal import connect

log = logging.getLogger("holdfast.api")

MANAGEMENT_BODY_LIMIT = 1 << 20
"""Bytes. Specs are small; only inference takes large bodies."""


class FrontDoor:
    """ASGI: inference goes to the gateway before any framework sees it, everything else to the management API."""

    def __init__(self, gateway: Any, management: Any) -> None:
        self._gateway = gateway
        self._management = management

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        await (self._gateway if is_inference(path) else self._management)(scope, receive, send)


async def build_services(settings: Settings, database: Database, gateway_metrics: CollectorRegistry) -> Services:
    master = master_sealer_of(settings)
    authority = await asyncio.to_thread(ensure, database, master)
    hosts = HostClient(Visitor(authority.ca.certificate_pem, authority.tickets))
    return Services(
        settings=settings,
        database=database,
        workflows=WorkflowClient(await connect(settings, lazy=True), settings.timings),
        hosts=hosts,
        files=ModelFiles(hosts),
        master=master,
        authority=authority,
        audit=AuditLog(
            database,
            gateway_metrics,
            keep=timedelta(days=settings.audit_keep_days),
            keep_rows=settings.audit_keep_rows,
        ),
        gateway_metrics=gateway_metrics,
    )


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set. Raises CannotListen."""
    listening = listen(settings.bind, settings.port)
    await asyncio.to_thread(upgrade, settings.effective_database_url)
    database = Database(settings.effective_database_url)
    master = master_sealer_of(settings)

    async def wake(name: str, replicas: int) -> None:
        await services.workflows.wake_deployment(name, replicas)  # they are there before the first request

    async def start_batch(batch_id: str) -> None:
        await batches.start(batch_id)

    async def cancel_batch(batch_id: str) -> None:
        await batches.cancel(batch_id)

    gateway = Gateway(
        database,
        keys=lambda: ensure(database, master),
        wake=wake,
        open_sealed=master.open,
        usage=UsageLog(database, settings.home / "usage-spool", keep=timedelta(days=settings.usage_keep_days)),
        tracing=tracing_for(settings.otlp_endpoint, settings.otlp_ratio),
        kept=FilesAndBatches(database, start_batch, cancel_batch),
    )
    services = await build_services(settings, database, gateway.metrics.registry)
    batches = BatchStarter(database, services.workflows, settings.timings)
    await ensure_admin_key(services, admin_key(settings))
    app: FastAPI = create_app(services)
    await gateway.start()
    upkeep = [asyncio.create_task(services.audit.run()), asyncio.create_task(batches.run())]
    try:
        front = FrontDoor(gateway, BodyLimit(app, MANAGEMENT_BODY_LIMIT))
        async with serving(front, listening, lifespan="off", loop="uvloop", http=quick_http(gateway)):
            log.info("API on http://%s:%d", settings.bind, settings.port)
            await stop.wait()
    finally:
        for task in upkeep:
            task.cancel()
        await asyncio.wait(upkeep)
        await gateway.stop()
        await evaluations.close(app)
        await services.hosts.aclose()
        database.close()


def main(settings: Settings) -> int:
    configure_logging()
    try:
        run_until_told(lambda stop: run(settings, stop), uvloop.new_event_loop)
    except CannotListen as error:
        log.error("%s: set HOLDFAST_PORT or HOLDFAST_BIND", error)
        return 1
    return 0
