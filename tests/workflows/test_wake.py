"""Gateways wake a deployment that has no replicas: once, however many of them ask."""

import asyncio

import pytest
from temporalio.api.enums.v1 import EventType

from api.temporal_client import WorkflowClient
from fleet.errors import Conflict, NotFound
from fleet.specs import AutoscalingSpec
from tests.workflows.world import World

WAKEABLE = AutoscalingSpec(wake_on_request=True)


async def wakes_of(world: World, name: str) -> int:
    events = world.deployment(name).fetch_history_events()
    return len([e async for e in events if e.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED])


async def test_many_gateways_wake_it_once(world: World) -> None:
    await world.add_host()
    name = await world.deploy(0, autoscaling=WAKEABLE)
    await world.until(lambda: name in world.fleet.deployments, "projection")
    gateways = [WorkflowClient(world.client) for _ in range(8)]
    await asyncio.gather(*(gateway.wake_deployment(name, 2) for gateway in gateways))
    await world.until_phase(name, "ready")
    projected = world.fleet.deployments[name]
    assert (projected.spec.replicas, projected.generation, len(projected.instances)) == (2, 2, 2)
    assert await wakes_of(world, name) == 1
    await gateways[0].wake_deployment(name, 5)
    assert (await wakes_of(world, name), world.fleet.deployments[name].spec.replicas) == (1, 2)


async def test_what_a_person_stopped_stays_stopped(world: World) -> None:
    name = await world.deploy(1, autoscaling=WAKEABLE)
    await world.change(name, stopped=True)
    with pytest.raises(Conflict, match="stopped by a person"):
        await WorkflowClient(world.client).wake_deployment(name)


async def test_what_is_not_there_or_not_set_so_is_not_woken(world: World) -> None:
    gateway = WorkflowClient(world.client)
    with pytest.raises(NotFound):
        await gateway.wake_deployment("nobody")
    name = await world.deploy(0)
    with pytest.raises(Conflict, match="wake_on_request"):
        await gateway.wake_deployment(name)
