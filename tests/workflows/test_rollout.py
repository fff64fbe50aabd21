"""Replacing engines: one at a time, and only when something changed that they must know."""

import time
from datetime import timedelta

from fleet.deployments import ready_replicas
from fleet.states import InstanceState
from tests.workflows.world import QUICK, World


async def watch_from_now(world: World, name: str) -> None:
    world.fleet.fewest_ready[name] = ready_replicas(world.fleet.deployments[name])


async def replaced(world: World, name: str, old: set[str], replicas: int) -> None:
    await world.until(lambda: not old & {i.instance_id for i in world.fleet.of(name)}, "old ones gone")
    await world.until_ready(name, replicas)


async def test_new_revision_replaces_replicas_one_at_a_time(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(3)
    old = {i.instance_id for i in world.fleet.of(name)}
    await watch_from_now(world, name)
    spec = world.fleet.deployments[name].spec
    await world.change(name, spec=spec.model_copy(update={"engine_args": ["--flag"]}), engine_version="2")
    await replaced(world, name, old, 3)
    assert world.fleet.fewest_ready[name] == 2
    assert {e.launch.spec.args for e in world.live_engines(name)} == {("--flag",)}
    assert {e.launch.spec.engine_version for e in world.live_engines(name)} == {"2"}
    assert {i.revision for i in world.fleet.of(name)} == {2}
    assert len(world.fleet.claims) == 3


async def test_restart_replaces_replicas_one_at_a_time_with_the_same_revision(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    old = {i.instance_id for i in world.fleet.of(name)}
    await watch_from_now(world, name)
    assert await world.change(name, restart_of=1) == 2
    assert await world.change(name, restart_of=1) == 2, "asked twice before it began, it restarts once"
    await replaced(world, name, old, 2)
    assert world.fleet.fewest_ready[name] == 1
    assert {(i.revision, i.launch) for i in world.fleet.of(name)} == {(1, 2)}


async def test_rollout_goes_on_where_there_is_room_for_no_extra_replica(world: World) -> None:
    await world.add_host(room=2)
    name = await world.deploy_ready(2)
    old = {i.instance_id for i in world.fleet.of(name)}
    await watch_from_now(world, name)
    await world.change(name, restart_of=1)
    await replaced(world, name, old, 2)
    assert world.fleet.fewest_ready[name] == 1


async def test_rollout_that_does_not_become_ready_stops_at_the_first_replica(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(3)
    old = {i.instance_id for i in world.fleet.of(name)}
    host.makes_ready = False
    await world.change(name, restart_of=1)
    await world.until(lambda: len(host.engines) == 4 and len(host.live) == 3, "one replaced")
    for _ in range(3):  # whatever wakes the deployment, it goes no further
        await world.change(name, labels={"n": str(_)})
    assert len({e.launch.instance_id for e in host.live} & old) == 2
    assert ready_replicas(world.fleet.deployments[name]) == 2
    await host.engines[-1].become_ready()
    host.makes_ready = True
    await replaced(world, name, old, 3)


async def test_second_change_during_a_rollout_leads_to_the_second(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(2)
    host.makes_ready = False
    spec = world.fleet.deployments[name].spec
    await world.change(name, spec=spec.model_copy(update={"engine_args": ["--one"]}))
    await world.until(lambda: len(host.engines) == 3, "the first change has begun")
    host.makes_ready = True
    await world.change(name, spec=spec.model_copy(update={"engine_args": ["--two"]}))
    await world.until(lambda: {i.revision for i in world.fleet.of(name)} == {3}, "third revision")
    await world.until_ready(name, 2)
    assert {e.launch.spec.args for e in world.live_engines(name)} == {("--two",)}


async def test_endpoint_is_withdrawn_a_while_before_its_engine_is_stopped(world: World) -> None:
    host = await world.add_host()
    pause = timedelta(milliseconds=400)
    name = await world.deploy_ready(1, timings=QUICK.model_copy(update={"withdraw_pause": pause}))
    instance = world.instance(world.fleet.of(name)[0].instance_id)
    await world.scale(name, 0)
    await world.until_state(instance, InstanceState.DRAINING)
    withdrawn = time.monotonic()
    await host.engines[0].look()
    assert host.engines[0].running, "gateways may not know yet"
    await world.until_phase(name, "stopped")
    assert not host.engines[0].running
    assert time.monotonic() - withdrawn > pause.total_seconds() * 0.8
