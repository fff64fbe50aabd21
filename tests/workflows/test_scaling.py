"""How many instances there are, and which go first."""

from datetime import timedelta

from fleet.deployment_status import ready_replicas
from tests.workflows.world import QUICK, World


async def test_deployment_of_several_replicas_becomes_ready(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(3)
    assert len(world.live_engines(name)) == 3
    assert [i.slot for i in world.fleet.of(name)] == [1, 2, 3]
    assert {c.placement.host_id for c in world.fleet.claims} == {host.host_id}


async def test_scaling_up_adds_and_scaling_down_removes_the_newest_slots(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(1)
    first = world.fleet.of(name)[0].instance_id
    await world.scale(name, 3)
    await world.until_ready(name, 3)
    await world.scale(name, 1)
    await world.until_ready(name, 1)
    assert [i.instance_id for i in world.fleet.of(name)] == [first]
    assert [e.asked_for for e in world.live_engines(name)] == [1]
    assert len(world.fleet.claims) == 1
    assert all(r.engine_gone for r in world.fleet.released)


async def test_replica_that_does_not_serve_goes_before_one_that_does(world: World) -> None:
    host = await world.add_host()
    host.makes_ready = False
    name = await world.deploy(2)
    await world.until(lambda: len(host.engines) == 2, "two engines")
    later = next(e for e in host.engines if "/2-" in e.launch.instance_id)
    await later.become_ready()
    await world.until(lambda: ready_replicas(world.fleet.deployments[name]) == 1, "one ready")
    await world.scale(name, 1)
    await world.until_ready(name, 1)
    assert world.fleet.of(name)[0].instance_id == later.launch.instance_id


async def test_changing_labels_or_replicas_leaves_engines_alone(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    before = {e.launch.instance_id for e in world.live_engines(name)}
    await world.change(name, labels={"team": "a"})
    await world.scale(name, 3)
    await world.until_ready(name, 3)
    kept = [e for e in world.live_engines(name) if e.launch.instance_id in before]
    assert [e.asked_for for e in kept] == [1, 1]
    assert world.fleet.deployments[name].labels == {"team": "a"}
    assert world.fleet.deployments[name].revision == 1
    assert world.fleet.released == []


async def test_scaled_to_nothing_is_stopped_and_can_come_back(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    await world.scale(name, 0)
    await world.until_phase(name, "stopped")
    assert world.live_engines(name) == []
    assert world.fleet.claims == []
    await world.scale(name, 1)
    await world.until_ready(name, 1)


async def test_stopped_deployment_holds_nothing_and_starts_again_with_as_many(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    await world.change(name, stopped=True)
    await world.until_phase(name, "stopped")
    assert (world.fleet.claims, world.live_engines(name)) == ([], [])
    await world.change(name, stopped=False)
    await world.until_ready(name, 2)


async def test_replica_terminated_by_a_person_is_cleaned_up_and_replaced(world: World) -> None:
    await world.add_host()
    timings = QUICK.model_copy(update={"resync": timedelta(milliseconds=100)})
    name = await world.deploy_ready(2, timings=timings)
    victim = world.fleet.of(name)[0].instance_id
    await world.instance(victim).terminate("by hand")
    await world.until(lambda: world.fleet.cleaned_up, "clean-up")
    await world.until_ready(name, 2)
    assert world.fleet.cleaned_up == [victim]
    assert victim not in {i.instance_id for i in world.fleet.of(name)}


async def test_replica_terminated_by_a_person_is_missed_at_once_when_it_should_stop(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    victim = world.fleet.of(name)[1].instance_id
    await world.instance(victim).terminate("by hand")
    await world.scale(name, 1)
    await world.until_ready(name, 1)
    assert world.fleet.cleaned_up == [victim]
