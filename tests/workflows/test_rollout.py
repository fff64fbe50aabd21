"""Replacing engines: new ones first where there is room, and back again when the new ones do not work."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from fleet.deployment_status import ready_replicas, traffic
from fleet.deployments import InstancesLeave
from fleet.instances import EngineExit, Remedy
from fleet.policy.canary import Reading
from fleet.rollouts import Stage, Steer, Steering
from fleet.specs import CanarySpec, DeploymentSpec, RolloutSpec
from fleet.states import InstanceState
from tests.workflows.world import QUICK, World
from workflows.deployment import DeploymentWorkflow


async def watch_from_now(world: World, name: str) -> None:
    world.fleet.fewest_ready[name] = ready_replicas(world.fleet.deployments[name])


def _ids(world: World, name: str) -> set[str]:
    return {i.instance_id for i in world.fleet.of(name)}


async def replaced(world: World, name: str, old: set[str], replicas: int) -> None:
    await world.until(lambda: not old & {i.instance_id for i in world.fleet.of(name)}, "old ones gone")
    await world.until_ready(name, replicas)


async def test_new_revision_replaces_replicas_and_none_is_missing_meanwhile(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(3)
    old = {i.instance_id for i in world.fleet.of(name)}
    await watch_from_now(world, name)
    spec = world.fleet.deployments[name].spec
    await world.change(name, spec=spec.model_copy(update={"engine_args": ["--flag"]}), engine_version="2")
    await replaced(world, name, old, 3)
    assert world.fleet.fewest_ready[name] == 3
    assert {e.launch.spec.args for e in world.live_engines(name)} == {("--flag",)}
    assert {e.launch.spec.engine_version for e in world.live_engines(name)} == {"2"}
    assert {i.revision for i in world.fleet.of(name)} == {2}
    assert len(world.fleet.claims) == 3


async def test_restart_replaces_replicas_with_the_same_revision(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    old = {i.instance_id for i in world.fleet.of(name)}
    await watch_from_now(world, name)
    assert await world.change(name, restart_of=1) == 2
    assert await world.change(name, restart_of=1) == 2, "asked twice before it began, it restarts once"
    await replaced(world, name, old, 2)
    assert world.fleet.fewest_ready[name] == 2
    assert {(i.revision, i.launch) for i in world.fleet.of(name)} == {(1, 2)}


async def test_rollout_goes_on_where_there_is_room_for_no_extra_replica(world: World) -> None:
    await world.add_host(room=2)
    name = await world.deploy_ready(2)
    old = {i.instance_id for i in world.fleet.of(name)}
    await watch_from_now(world, name)
    await world.change(name, restart_of=1)
    seen: set[str] = set()
    await world.until(lambda: seen.update([world.fleet.message_of(name)]) or not old & _ids(world, name), "replaced")
    await replaced(world, name, old, 2)
    assert world.fleet.fewest_ready[name] == 1
    assert any("recreating, 1 at a time" in message for message in seen)


async def test_rollout_that_does_not_become_ready_stops_at_the_first_replica(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(3)
    old = {i.instance_id for i in world.fleet.of(name)}
    host.makes_ready = False
    await world.change(name, restart_of=1)
    await world.until(lambda: len(host.engines) == 4, "the first new one")
    for _ in range(3):  # whatever wakes the deployment, it goes no further
        await world.change(name, labels={"n": str(_)})
    assert old <= {e.launch.instance_id for e in host.live}
    assert len(host.engines) == 4
    assert ready_replicas(world.fleet.deployments[name]) == 3
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


def changed(world: World, name: str, **fields: Any) -> DeploymentSpec:
    """Its spec with another argument for the engine, and ``fields``."""
    return world.fleet.deployments[name].spec.model_copy(update={"engine_args": ["--new"], **fields})


CANARY = RolloutSpec(strategy="canary", bake_s=3600, canary=CanarySpec(replicas=1, weight=10, min_requests=10))


async def test_a_new_revision_that_fails_is_rolled_back_and_nobody_notices(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(3)
    old = _ids(world, name)
    await watch_from_now(world, name)
    host.next_exits = [EngineExit(exit_code=1, failure_class="bad_flag", hint="drop it", remedy=Remedy.NEVER)]
    await world.change(name, spec=changed(world, name))
    await world.until(lambda: world.fleet.deployments[name].given_up is not None, "given up")
    await world.until_ready(name, 3)
    d = world.fleet.deployments[name]
    assert (d.revision, d.launch, d.spec.engine_args, _ids(world, name)) == (1, 1, [], old)
    assert world.fleet.fewest_ready[name] == 3
    assert "revision 2 failed" in world.fleet.message_of(name)


async def test_canary_that_answers_badly_is_rolled_back(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    old = _ids(world, name)
    await watch_from_now(world, name)
    timings = world.fleet.deployments[name].timings
    assert timings.canary_checks > 1
    bake = CANARY.model_copy(update={"bake_s": 30})
    await world.change(name, spec=changed(world, name, rollout=bake))
    assert traffic(world.fleet.deployments[name]) in ({}, {"2": 10, "1": 90})
    await world.until(lambda: _stage(world, name) is Stage.BAKING, "baking")
    await world.until(lambda: _baselined(world, name), "the first look")
    world.fleet.traffic[name, 1] = Reading(requests=500)
    world.fleet.traffic[name, 2] = Reading(requests=50, errors=40)
    await world.until(lambda: world.fleet.deployments[name].given_up is not None, "given up")
    await world.until_ready(name, 2)
    d = world.fleet.deployments[name]
    assert (d.revision, _ids(world, name), world.fleet.fewest_ready[name]) == (1, old, 2)
    assert d.given_up is not None
    assert "40 of" in d.given_up.reason


async def test_good_canary_is_promoted_when_it_has_baked(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    await watch_from_now(world, name)
    bake = CANARY.model_copy(update={"bake_s": 1})
    await world.change(name, spec=changed(world, name, rollout=bake))
    await world.until(lambda: {i.revision for i in world.fleet.of(name)} == {2}, "promoted")
    await world.until_ready(name, 2)
    assert world.fleet.fewest_ready[name] == 2


@pytest.mark.parametrize("action", [Steering.PROMOTE, Steering.ABORT])
async def test_baking_canary_survives_a_restart_of_everything_and_obeys_a_person(
    world: World, action: Steering
) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    old = _ids(world, name)
    await world.change(name, spec=changed(world, name, rollout=CANARY))
    await world.until(lambda: _stage(world, name) is Stage.BAKING, "baking")
    await world.restart_controller()
    assert old < _ids(world, name)
    await world.deployment(name).execute_update(DeploymentWorkflow.steer_rollout, Steer(action=action))
    wanted = {2} if action is Steering.PROMOTE else {1}
    await world.until(lambda: {i.revision for i in world.fleet.of(name)} == wanted, "as the person said")
    await world.until_ready(name, 2)
    assert (_ids(world, name) == old) == (action is Steering.ABORT)


async def test_blue_green_switches_all_requests_at_once(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(2)
    host.makes_ready = False
    rollout = RolloutSpec(strategy="blue_green", bake_s=3600)
    await world.change(name, spec=changed(world, name, rollout=rollout))
    await world.until(lambda: len(host.engines) == 4, "a second set")
    assert traffic(world.fleet.deployments[name]) == {"2": 0, "1": 100}
    await host.engines[2].become_ready()
    await world.until(lambda: ready_replicas(world.fleet.deployments[name]) == 3, "half of it")
    assert traffic(world.fleet.deployments[name]) == {"2": 0, "1": 100}
    await host.engines[3].become_ready()
    await world.until(lambda: traffic(world.fleet.deployments[name]) == {"2": 100, "1": 0}, "switched")
    assert len(world.live_engines(name)) == 4
    await world.deployment(name).execute_update(DeploymentWorkflow.steer_rollout, Steer(action=Steering.PROMOTE))
    await world.until_ready(name, 2)
    assert {i.revision for i in world.fleet.of(name)} == {2}


async def test_recreate_never_runs_two_revisions_at_once(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(2)
    await world.change(name, spec=changed(world, name, rollout=RolloutSpec(strategy="recreate")))
    together: list[set[int]] = []

    def done() -> bool:
        together.append({len(e.launch.spec.args) for e in host.live})
        return {i.revision for i in world.fleet.of(name)} == {2}

    await world.until(done, "recreated")
    await world.until_ready(name, 2)
    assert all(len(kinds) <= 1 for kinds in together)


async def test_paused_rollout_stays_until_it_is_resumed(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(3)
    host.makes_ready = False
    await world.change(name, spec=changed(world, name))
    await world.until(lambda: len(host.engines) == 4, "it has begun")
    await world.deployment(name).execute_update(DeploymentWorkflow.steer_rollout, Steer(action=Steering.PAUSE))
    host.makes_ready = True
    await host.engines[-1].become_ready()
    await world.until(lambda: ready_replicas(world.fleet.deployments[name]) == 4, "one new replica is ready")
    await world.restart_controller()
    await world.change(name, labels={"wakes": "it"})
    assert (len(host.engines), world.fleet.phase_of(name)) == (4, "deploying")
    await world.deployment(name).execute_update(DeploymentWorkflow.steer_rollout, Steer(action=Steering.RESUME))
    await world.until(lambda: {i.revision for i in world.fleet.of(name)} == {2}, "second revision")
    await world.until_ready(name, 3)


async def test_steering_what_does_not_move_is_refused(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(1)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await world.deployment(name).execute_update(DeploymentWorkflow.steer_rollout, Steer(action=Steering.ABORT))
    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.type == "CannotSteer"


async def test_replacing_an_instance_starts_the_new_one_first(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(1)
    [leaving] = _ids(world, name)
    await watch_from_now(world, name)
    host.makes_ready = False
    wanted = InstancesLeave(instance_ids=(leaving,), reason="drained by a person")
    await world.deployment(name).execute_update(DeploymentWorkflow.replace_instances, wanted)
    await world.until(lambda: len(host.engines) == 2, "its replacement")
    assert host.engines[0].running
    await host.engines[1].become_ready()
    await world.until(lambda: leaving not in _ids(world, name), "gone")
    await world.until_ready(name, 1)
    assert world.fleet.fewest_ready[name] == 1
    unknown = InstancesLeave(instance_ids=("none/1-x",), reason="drained by a person")
    with pytest.raises(WorkflowUpdateFailedError):
        await world.deployment(name).execute_update(DeploymentWorkflow.replace_instances, unknown)


async def test_instance_without_room_elsewhere_stays_until_its_deadline(world: World) -> None:
    await world.add_host(room=1)
    name = await world.deploy_ready(1)
    [leaving] = _ids(world, name)
    by = datetime.now(UTC) + timedelta(seconds=1)
    wanted = InstancesLeave(instance_ids=(leaving,), reason="drained by a person", by=by)
    await world.deployment(name).execute_update(DeploymentWorkflow.replace_instances, wanted)
    await world.until(lambda: len(_ids(world, name)) == 2, "its replacement waits for room")
    assert world.fleet.instances[leaving].state is InstanceState.READY
    await world.until(lambda: leaving not in _ids(world, name), "gone at the deadline")
    assert datetime.now(UTC) >= by
    await world.until_ready(name, 1)


def _stage(world: World, name: str) -> Stage | None:
    rollout = world.fleet.deployments[name].rollout
    return rollout.stage if rollout is not None else None


def _baselined(world: World, name: str) -> bool:
    rollout = world.fleet.deployments[name].rollout
    return rollout is not None and rollout.new_baseline is not None


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
