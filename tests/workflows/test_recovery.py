"""An engine ends by itself: when it is tried again, and when not."""

from datetime import UTC, datetime, timedelta

from fleet.instances import EngineExit, EnginePhase, Instance
from fleet.states import InstanceState
from tests.workflows.world import QUICK, World
from workflows.instance import InstanceWorkflow

CRASH = EngineExit(exit_code=-11, failure_class="crashed", hint="see the log")
SLOW = QUICK.model_copy(update={"first_back_off": timedelta(minutes=10), "longest_back_off": timedelta(minutes=30)})


async def test_crashed_engine_is_started_again_at_once_under_a_higher_fence(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(1, timings=SLOW)
    await host.engines[0].crash()
    await world.until(lambda: len(host.live) == 1, "second engine")
    await world.until_ready(name, 1)
    assert [e.launch.fence for e in host.engines] == [1, 2]
    assert [(r.fence, r.engine_gone) for r in world.fleet.released] == [(1, True)]
    assert world.fleet.of(name)[0].restarts == 1
    assert len(world.fleet.claims) == 1


async def test_pauses_between_failures_double_up_to_the_longest(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [CRASH] * 5
    instance = await world.run_instance(timings=SLOW)
    pauses = {2: 10, 3: 20, 4: 30, 5: 30}
    for failures, minutes in pauses.items():
        await until_backing_off(world, failures)
        assert len(host.engines) == failures
        pause = timedelta(minutes=minutes)
        await world.fast_forward(instance, pause - timedelta(seconds=10))
        assert _failures(world) == [failures], "not yet"
        await world.fast_forward(instance, timedelta(seconds=10))
    recovered = await world.until_state(instance, InstanceState.READY)
    assert (recovered.fence, recovered.restarts) == (6, 5)


async def until_backing_off(world: World, failures: int) -> None:
    await world.until(lambda: _failures(world) == [failures], f"failure {failures}")


def _failures(world: World) -> list[int]:
    return [i.failures for i in world.fleet.instances.values() if i.state is InstanceState.RECOVERING]


async def test_failure_that_cannot_pass_stays_with_its_hint_until_a_restart_replaces_it(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [EngineExit(exit_code=1, failure_class="model_not_found", hint="copy the file", remedy=Remedy.NEVER)]
    name = await world.deploy(1)
    await world.until_phase(name, "failed")
    failed = world.fleet.of(name)[0]
    assert (failed.message, failed.hint) == ("engine exited with 1 (model_not_found)", "copy the file")
    assert world.fleet.deployments[name].instances[failed.instance_id].hint == "copy the file"
    await world.until(lambda: world.fleet.claims == [], "room given back")
    instance = world.instance(failed.instance_id)
    await instance.signal(InstanceWorkflow.capacity_changed)
    await world.fast_forward(instance, timedelta(days=1))
    assert len(host.engines) == 1, "nothing but a person helps"
    await world.change(name, restart_of=1)
    await world.until_ready(name, 1)
    assert world.fleet.of(name)[0].instance_id != failed.instance_id


async def test_record_is_clean_after_serving_long_enough(world: World) -> None:
    host = await world.add_host()
    instance = await world.run_instance(timings=SLOW, failures=7)
    engine = await world.until_engine(instance, fence=1)
    await world.until_state(instance, InstanceState.READY)
    engine.ready_since = datetime.now(UTC) - SLOW.stable_after
    await engine.report(EnginePhase.READY)
    await engine.crash()
    recovered = await world.until(lambda: _again(world, fence=2), "serves again")
    assert recovered[0].failures == 1
    assert len(host.engines) == 2


async def test_record_is_not_clean_after_serving_for_a_moment(world: World) -> None:
    await world.add_host()
    instance = await world.run_instance(timings=SLOW, failures=1)
    engine = await world.until_engine(instance, fence=1)
    await world.until_state(instance, InstanceState.READY)
    await engine.crash()
    waiting = await world.until_state(instance, InstanceState.RECOVERING)
    assert waiting.failures == 2
    assert waiting.retry_at is not None
    assert waiting.endpoint is None


def _again(world: World, fence: int) -> list[Instance]:
    return [i for i in world.fleet.instances.values() if i.state is InstanceState.READY and i.fence == fence]


async def test_instance_told_to_stop_while_it_backs_off_ends_at_once(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [CRASH] * 2
    name = await world.deploy(1, timings=SLOW)
    await until_backing_off(world, 2)
    await world.scale(name, 0)
    await world.until_phase(name, "stopped")
    assert host.live == []


async def test_engine_is_undisturbed_by_a_new_controller_process(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(2)
    await world.restart_controller()
    await world.scale(name, 1)
    await world.until_ready(name, 1)
    assert [e.asked_for for e in host.engines] == [1, 1]
    assert [e.launch.instance_id for e in host.live] == [world.fleet.of(name)[0].instance_id]


async def test_deployment_with_a_troubled_replica_is_degraded_and_says_why(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(2, timings=SLOW)
    host.next_exits = [CRASH]
    await host.engines[0].crash(CRASH)
    await world.until_phase(name, "degraded")
    troubled = [i for i in world.fleet.deployments[name].instances.values() if i.message]
    assert [(i.state, i.hint) for i in troubled] == [("recovering", "see the log")]
