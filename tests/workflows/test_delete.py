"""Whatever a deployment is doing, deleting it ends everything."""

from datetime import timedelta

from fleet.instances import EngineExit, Remedy
from fleet.states import InstanceState
from tests.workflows.world import QUICK, World
from workflows.instance import InstanceWorkflow


async def assert_nothing_left(world: World, name: str) -> None:
    await world.until_gone(name)
    assert world.live_engines(name) == []
    assert world.fleet.instances == {}


async def test_deleting_ends_the_workflow_and_all_projections(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    await world.delete(name)
    await assert_nothing_left(world, name)
    assert world.fleet.claims == []


async def test_deleted_name_can_be_used_again(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(1)
    await world.delete(name)
    await world.until_gone(name)
    await world.deploy_ready(2, name=name)


async def test_deleting_before_anything_was_started(world: World) -> None:
    name = await world.deploy(0)
    await world.delete(name)
    await assert_nothing_left(world, name)


async def test_deleting_while_an_instance_is_being_placed(world: World) -> None:
    host = await world.add_host()
    world.fleet.answers.clear()
    name = await world.deploy(1)
    await world.until(lambda: world.fleet.placements, "asked for a place")
    await world.delete(name)
    instance_id = world.fleet.placements[0].instance_id
    await world.until(lambda: _stopping(world, instance_id), "told to stop")
    world.fleet.answers.set()
    await assert_nothing_left(world, name)
    assert host.engines == []
    world.hosts_confirm_what_is_gone()
    assert world.fleet.claims == []


async def test_deleting_while_an_engine_is_starting(world: World) -> None:
    host = await world.add_host()
    host.makes_ready = False
    name = await world.deploy(1)
    await world.until(lambda: host.live, "started")
    await world.delete(name)
    await assert_nothing_left(world, name)
    assert world.fleet.claims == []


async def test_deleting_while_an_instance_backs_off(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [EngineExit(exit_code=1)] * 5
    name = await world.deploy(1, timings=QUICK.model_copy(update={"first_back_off": timedelta(hours=1)}))
    await world.until(lambda: _states(world, name) == {InstanceState.RECOVERING}, "backs off")
    await world.until(lambda: world.fleet.claims == [] and len(host.engines) == 2, "second failure")
    await world.delete(name)
    await assert_nothing_left(world, name)


async def test_deleting_while_nothing_has_room(world: World) -> None:
    name = await world.deploy(1)
    await world.until(lambda: _states(world, name) == {InstanceState.PENDING}, "unplaceable")
    await world.delete(name)
    await assert_nothing_left(world, name)


async def test_deleting_what_has_failed(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [EngineExit(exit_code=1, remedy=Remedy.NEVER)]
    name = await world.deploy(1)
    await world.until_phase(name, "failed")
    await world.delete(name)
    await assert_nothing_left(world, name)


async def test_deleting_while_the_host_is_dead_ends_once_the_host_is_lost(world: World) -> None:
    host = await world.add_host(registered=True)
    name = await world.deploy_ready(1)
    await host.die()
    await world.delete(name)
    await world.until_gone(name)
    assert [c.state for c in world.fleet.claims] == ["releasing"], "the engine may still run there"
    assert [r.engine_gone for r in world.fleet.released] == [False]


async def test_deleting_twice_is_harmless(world: World) -> None:
    host = await world.add_host()
    host.looks = False
    name = await world.deploy_ready(1)
    await world.delete(name)
    await world.delete(name)
    await world.until(lambda: _states(world, name) == {InstanceState.DRAINING}, "draining")
    assert world.fleet.deployments[name].generation == 2
    await world.until_stopped(host.engines[0])
    await assert_nothing_left(world, name)


async def test_deleting_many_of_which_half_were_started(world: World) -> None:
    await world.add_host(room=8)
    name = await world.deploy(8)
    await world.until(lambda: len(world.fleet.of(name)) >= 4, "half of them recorded")
    await world.delete(name)
    await assert_nothing_left(world, name)


async def _stopping(world: World, instance_id: str) -> bool:
    state = await world.instance(instance_id).query(InstanceWorkflow.state)
    return state.stopping


def _states(world: World, name: str) -> set[InstanceState]:
    return {i.state for i in world.fleet.of(name)}
