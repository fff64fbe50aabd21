"""Workflows shed their history; nobody notices. The server here suggests it after 60 events."""

import asyncio

from temporalio.client import WorkflowExecutionStatus

from fleet.deployments import Deployment
from fleet.instances import EngineExit, EnginePhase, InstanceNews, StopRequest
from fleet.states import InstanceState
from tests.workflows.hosts import FakeEngine, FakeHost
from tests.workflows.ledger import Projected
from tests.workflows.world import Handle, World
from workflows.deployment import DeploymentWorkflow
from workflows.host import HostWorkflow
from workflows.instance import InstanceWorkflow


async def continued(handle: Handle, first_run: str) -> bool:
    return (await handle.describe()).run_id != first_run


async def make_history(world: World, instance: Handle, engine: FakeEngine) -> None:
    """Report until the workflow has gone on as new."""
    first_run = (await instance.describe()).run_id
    for n in range(60):
        await engine.report(EnginePhase.READY, message=f"report {n}")
        if await continued(instance, first_run):
            return
    raise AssertionError("the workflow does not go on as new")


async def test_engine_goes_on_under_the_same_fence_and_is_adopted(short_world: World) -> None:
    world = short_world
    host = await world.add_host()
    instance = await world.run_instance()
    engine = await world.until_engine(instance, fence=1)
    await world.until_state(instance, InstanceState.READY)
    await make_history(world, instance, engine)
    await world.until(lambda: engine.asked_for == 2, "adopted by the next run")
    after = await world.until_state(instance, InstanceState.READY)
    assert (after.fence, after.restarts, host.live) == (1, 0, [engine])
    assert (world.fleet.released, len(world.fleet.placements)) == ([], 1)
    states = [i.state for i in world.fleet.timeline[after.instance_id]]
    assert set(states[states.index(InstanceState.READY) :]) == {InstanceState.READY}, "gateways never saw it away"
    await instance.signal(InstanceWorkflow.stop, StopRequest(reason="test"))
    await asyncio.wait_for(instance.result(), 60)
    assert not engine.running
    assert world.fleet.claims == []


async def test_engine_that_ended_between_two_runs_is_not_taken_for_running(short_world: World) -> None:
    world = short_world
    host = await world.add_host()
    instance = await world.run_instance()
    engine = await world.until_engine(instance, fence=1)
    await world.until_state(instance, InstanceState.READY)
    await host.die()  # it hears nothing of the next run
    await make_history(world, instance, engine)
    await engine.crash(EngineExit(exit_code=-9))
    await host.revive()
    await world.until_engine(instance, fence=2)
    after = await world.until_state(instance, InstanceState.READY)
    assert after.restarts == 1
    assert [r.engine_gone for r in world.fleet.released] == [True]


async def test_host_lost_just_before_going_on_as_new_is_not_forgotten(short_world: World) -> None:
    world = short_world
    lost = await world.add_host()
    await lost.die()
    world.fleet.answers.clear()
    instance = await world.run_instance()
    await world.until(lambda: world.fleet.claims, "claim on the host that dies")
    for _ in range(30):  # the next chance to go on as new comes with the answer
        await instance.signal(InstanceWorkflow.capacity_changed)
    await instance.signal(InstanceWorkflow.host_lost, lost.host_id)
    world.fleet.room[lost.host_id] = 1
    await world.add_host()
    world.fleet.answers.set()
    await world.until_engine(instance, fence=2)
    await world.until_state(instance, InstanceState.READY)
    assert [(r.fence, r.engine_gone) for r in world.fleet.released] == [(1, False)]


async def test_deployment_goes_on_and_its_instances_survive(short_world: World) -> None:
    world = short_world
    host = await world.add_host()
    name = await world.deploy_ready(2)
    deployment = world.deployment(name)
    first_run = (await deployment.describe()).run_id
    runs = {i.instance_id: (await world.instance(i.instance_id).describe()).run_id for i in world.fleet.of(name)}
    generation = 1
    while not await continued(deployment, first_run):
        generation = await world.change(name, labels={"n": str(generation)})
        assert generation < 60, "the workflow does not go on as new"
    for instance_id, run in runs.items():
        description = await world.instance(instance_id).describe()
        assert (description.run_id, description.status) == (run, WorkflowExecutionStatus.RUNNING)
    assert [e.asked_for for e in host.engines] == [1, 1]
    assert await world.scale(name, 1) == generation + 1
    await world.until_ready(name, 1)
    await host.live[0].crash()
    await world.until(lambda: [i.fence for i in world.fleet.of(name)] == [2], "recovered")
    await world.until_ready(name, 1)
    await world.delete(name)
    await world.until_gone(name)


async def lose_lease(world: World, host: FakeHost) -> None:
    """And get the next one."""
    known = host.leases
    host.stop_lease()
    await world.until(lambda: host.leases > known, "next lease")


async def test_nothing_recorded_is_lost_when_news_comes_just_when_going_on_as_new(short_world: World) -> None:
    """Then Temporal discards the task in which it was recorded, and the next one records more under another number."""
    world = short_world
    await world.add_host()
    name = await world.deploy_ready(1)
    instance_id = world.fleet.of(name)[0].instance_id
    news = iter(range(1, 21))
    told: list[asyncio.Task[None]] = []

    async def tell_more(row: Projected) -> None:
        if isinstance(row, Deployment) and (n := next(news, None)):
            word = InstanceNews(instance_id=instance_id, state=InstanceState.READY, message=f"news {n}")
            telling = asyncio.create_task(world.deployment(name).signal(DeploymentWorkflow.instance_news, word))
            # Once a task was discarded, the server keeps news back until the next one has ended: do not wait for that.
            await asyncio.wait({telling}, timeout=0.2)
            told.append(telling)

    world.fleet.after_record = tell_more
    await world.change(name, labels={"a": "b"})
    await world.until(lambda: world.fleet.deployments[name].instances[instance_id].message == "news 20", "last news")
    await asyncio.gather(*told)


async def test_host_goes_on_and_takes_a_lease_again(short_world: World) -> None:
    world = short_world
    host = await world.add_host(registered=True)
    handle = world.host_workflow(host)
    first_run = (await handle.describe()).run_id
    while not await continued(handle, first_run):
        assert host.leases < 20, "the workflow does not go on as new"
        await lose_lease(world, host)
    await world.until(lambda: world.host_state(host) == "ready", "ready")
    assert (await handle.query(HostWorkflow.state)).registrations == 1
    await handle.execute_update(HostWorkflow.forget)
    await asyncio.wait_for(handle.result(), 60)


async def test_registration_just_before_a_host_goes_on_as_new_is_not_forgotten(short_world: World) -> None:
    world = short_world
    host = await world.add_host(registered=True)
    world.fleet.tells_hosts.clear()
    await host.die()
    await world.until(lambda: world.host_state(host) == "lost", "being declared lost")
    await host.revive()
    for _ in range(20):  # the next chance to go on as new comes when all instances are told
        await world.register(host)
    world.fleet.tells_hosts.set()
    await world.until(lambda: world.host_state(host) == "ready", "ready")
    await world.until(lambda: host.leases == 2, "lease")
