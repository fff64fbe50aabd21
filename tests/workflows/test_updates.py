"""What people may change, and what is refused."""

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from fleet.states import InstanceState
from tests.workflows.world import World


async def refusal(world: World, name: str, **wanted: object) -> str | None:
    """The type of the error; no trace of it stays in the history."""
    before = await updates_of(world, name)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await world.change(name, **wanted)
    assert isinstance(refused.value.cause, ApplicationError)
    assert await updates_of(world, name) == before
    return refused.value.cause.type


async def updates_of(world: World, name: str) -> int:
    events = world.deployment(name).fetch_history_events()
    return len([e async for e in events if e.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED])


async def test_change_is_answered_with_its_generation_and_projected(world: World) -> None:
    name = await world.deploy(0)
    assert await world.change(name, labels={"a": "b"}) == 2
    await world.until(lambda: world.fleet.deployments[name].generation == 2, "projection")


async def test_change_that_changes_nothing_keeps_the_generation(world: World) -> None:
    name = await world.deploy(0)
    assert await world.change(name, labels={"a": "b"}) == 2
    assert await world.change(name, labels={"a": "b"}) == 2
    assert await world.change(name) == 2
    assert await world.change(name, stopped=False) == 2


async def test_change_on_another_generation_is_refused_and_changes_nothing(world: World) -> None:
    name = await world.deploy(0)
    await world.change(name, labels={"a": "b"})
    assert await refusal(world, name, labels={"c": "d"}, if_generation=1) == "GenerationMoved"
    assert await world.change(name) == 2
    assert await world.change(name, labels={"c": "d"}, if_generation=2) == 3


async def test_change_of_what_is_being_deleted_is_refused(world: World) -> None:
    host = await world.add_host()
    host.looks = False
    name = await world.deploy_ready(1)
    await world.delete(name)
    await world.until(lambda: [i.state for i in world.fleet.of(name)] == [InstanceState.DRAINING], "draining")
    await world.until_phase(name, "deleting")
    assert await refusal(world, name, labels={"a": "b"}) == "Deleting"
    await world.until_stopped(host.engines[0])
    await world.until_gone(name)
