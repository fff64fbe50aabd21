"""The controller process: a Temporal worker with all workflows and control-plane activities.

The composition root, and the only module of this package that may touch the database: it builds the activities with
what they need and hands them to the worker.
"""

import asyncio
import logging
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from activities.batch import BatchActivities
from activities.breaker import BreakerActivities
from activities.defragment import DefragmentActivities, DefragmentationStarter
from activities.fleet_state import FleetActivities
from activities.gateway_client import GatewayClient
from activities.gpus import GpuActivities
from activities.placement import PlacementActivities
from activities.preemption import RoomMaker
from activities.projections import ProjectionActivities
from activities.traffic import TrafficActivities
from activities.turns import Turns
from activities.waiting import WaitingInstances
from fleet import ids
from fleet.access.keys import master_sealer_of
from fleet.access.visitor import Visitor
from fleet.db.authority import ensure
from fleet.db.migrate import upgrade
from fleet.db.session import Database
from fleet.host_client import HostClient
from fleet.logs import configure_logging
from fleet.model_files import ModelFiles
from fleet.serving import run_until_told
from fleet.settings import Settings
from fleet.temporal import connect_patiently, ensure_search_attributes
from fleet.temporal_server import SEARCH_ATTRIBUTES
from workflows.registry import WORKFLOWS, workflow_runner

log = logging.getLogger("holdfast.controller")

_BATCH_ACTIVITIES = 64
"""At once: windows of batches hold a few hundred lines, and mostly wait."""


def build_worker(
    client: Client, database: Database, settings: Settings, hosts: HostClient, batch: BatchActivities
) -> Worker:
    waiting = WaitingInstances(database, client)
    starter = DefragmentationStarter(database, client, settings.timings, enabled=settings.defragment == "auto")
    room = RoomMaker(database, client, drain=settings.timings.drain, consider=starter.consider)
    placement = PlacementActivities(database, ModelFiles(hosts), master_sealer_of(settings), waiting, room)
    defragment = DefragmentActivities(database, placement.question, room, waiting)
    projections = ProjectionActivities(database)
    fleet = FleetActivities(database, client, waiting)
    gpus = GpuActivities(database)
    window = timedelta(seconds=settings.breaker_window_s)
    breaker = BreakerActivities(database, share=settings.breaker_share, window=window)
    traffic = TrafficActivities(database)
    return Worker(
        client,
        task_queue=ids.CONTROL_QUEUE,
        workflows=WORKFLOWS,
        activities=[
            placement.place_instance,
            placement.release_claim,
            projections.record_deployment,
            projections.forget_deployment,
            projections.record_instance,
            projections.forget_instance,
            projections.record_host,
            fleet.instances_on_host,
            fleet.ended_instances,
            fleet.announce_capacity,
            fleet.clean_up_instance,
            gpus.note_gpu_fault,
            breaker.may_replace,
            traffic.read_traffic,
            defragment.plan_defragmentation,
            defragment.begin_move,
            defragment.look_at_moves,
            defragment.end_moves,
            defragment.record_defragmentation,
            batch.record_batch,
        ],
        workflow_runner=workflow_runner(),
        max_cached_workflows=5000,
        # After a kill, the tasks of every workflow that this process had cached wait so long for it to come back.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        graceful_shutdown_timeout=timedelta(seconds=5),
    )


def build_batch_worker(client: Client, batch: BatchActivities) -> Worker:
    """Batches wait for spare capacity: they must not take the slots of what keeps the fleet alive."""
    return Worker(
        client,
        task_queue=ids.batch_queue(ids.CONTROL_QUEUE),
        activities=[batch.validate_batch, batch.run_batch_window, batch.assemble_batch, batch.clear_batch],
        max_concurrent_activities=_BATCH_ACTIVITIES,
        graceful_shutdown_timeout=timedelta(seconds=5),
    )


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set."""
    await asyncio.to_thread(upgrade, settings.effective_database_url)
    database = Database(settings.effective_database_url)
    authority = await asyncio.to_thread(ensure, database, master_sealer_of(settings))
    visitor = Visitor(authority.ca.certificate_pem, authority.tickets)
    hosts = HostClient(visitor)
    gateway = GatewayClient(settings.gateway_for_batches, visitor)
    try:
        client = await connect_patiently(settings)
        added = await ensure_search_attributes(client, SEARCH_ATTRIBUTES)
        if added:
            log.info("registered search attributes: %s", ", ".join(added))
        batch = BatchActivities(database, gateway, Turns())
        worker = build_worker(client, database, settings, hosts, batch)
        async with worker, build_batch_worker(client, batch):
            log.info("controller serves queue %s", ids.CONTROL_QUEUE)
            await stop.wait()
    finally:
        await hosts.aclose()
        await gateway.aclose()
        database.close()


def main(settings: Settings) -> int:
    configure_logging()
    run_until_told(lambda stop: run(settings, stop))
    return 0
