"""An engine ends by itself: when it is tried again, and when not."""

from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from fleet.instances import EngineExit, EnginePhase, Instance, Remedy
from fleet.specs import RestartSpec
from fleet.states import InstanceState
from tests.workflows.hosts import FakeHost
from tests.workflows.world import QUICK, Handle, World
from workflows.instance import InstanceWorkflow

CRASH = EngineExit(exit_code=-11, failure_class="crashed", hint="see the log")
UNHELPFUL = EngineExit(exit_code=1, failure_class="not_found", hint="Copy the file.", remedy=Remedy.NEVER)
BROKEN = EngineExit(exit_code=1, failure_class="gpu_fault", hint="Xid 79", remedy=Remedy.ELSEWHERE, gpu_fault="certain")
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


async def test_pauses_between_failures_grow_fourfold_up_to_the_longest(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [CRASH] * 5
    instance = await world.run_instance(timings=SLOW)
    pauses = {2: 10, 3: 30, 4: 30, 5: 30}
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
    host.next_exits = [UNHELPFUL]
    name = await world.deploy(1)
    await world.until_phase(name, "failed")
    failed = world.fleet.of(name)[0]
    assert failed.message == "engine exited with 1 (not_found)"
    assert failed.hint == f"Copy the file. When the cause is gone: `holdfast retry {failed.deployment}`."
    assert world.fleet.deployments[name].instances[failed.instance_id].hint == failed.hint
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


# -- the budget, and a person --------------------------------------------------------------------------------------


async def spent(world: World, host: FakeHost, failures: int = 3) -> Handle:
    """An instance that has given up."""
    host.next_exits = [CRASH] * failures
    restart = RestartSpec(max_failures=failures - 1, window_s=100 * 3600)
    instance = await world.run_instance(timings=SLOW, restart=restart)
    for count in range(2, failures):
        await until_backing_off(world, count)
        await world.fast_forward(instance, SLOW.longest_back_off)
    await world.until_state(instance, InstanceState.FAILED)
    await world.until(lambda: world.fleet.claims == [], "room given back")
    return instance


async def test_engine_that_keeps_failing_is_given_up_when_its_budget_is_spent(world: World) -> None:
    host = await world.add_host()
    instance = await spent(world, host, failures=4)
    known = world.recorded(instance)
    assert known is not None
    assert known.message == "gave up after 4 failures in 100 hours: engine exited with -11 (crashed)"
    assert known.hint == f"see the log When the cause is gone: `holdfast retry {known.deployment}`."
    await world.fast_forward(instance, timedelta(days=30))
    assert len(host.engines) == 4, "time alone does not help"


async def test_approval_tries_at_once_with_a_clean_record(world: World) -> None:
    host = await world.add_host()
    instance = await spent(world, host)
    host.next_exits = [CRASH]
    await instance.execute_update(InstanceWorkflow.approve_retry)
    ready = await world.until_state(instance, InstanceState.READY)
    assert (ready.fence, ready.failures, len(ready.failed_at)) == (5, 1, 1)
    assert (ready.excluded_hosts, ready.hint) == ((), "")


async def test_approval_survives_a_new_controller_and_budget_counts_anew_after_it(world: World) -> None:
    host = await world.add_host()
    instance = await spent(world, host)
    await world.restart_controller()
    host.next_exits = [CRASH] * 3
    await instance.execute_update(InstanceWorkflow.approve_retry)
    await until_backing_off(world, 2)
    await world.fast_forward(instance, SLOW.longest_back_off)
    await world.until_state(instance, InstanceState.FAILED)
    assert len(host.engines) == 6


async def test_instance_that_has_not_failed_needs_no_approval(world: World) -> None:
    await world.add_host()
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.READY)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await instance.execute_update(InstanceWorkflow.approve_retry)
    cause = refused.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "NotFailed"
    assert "is ready, not failed" in cause.message


async def test_hopeless_failure_can_be_approved_too(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [UNHELPFUL]
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.FAILED)
    await instance.execute_update(InstanceWorkflow.approve_retry)
    await world.until_state(instance, InstanceState.READY)


async def test_approved_replica_makes_its_deployment_ready_again(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [UNHELPFUL]
    name = await world.deploy(1)
    await world.until_phase(name, "failed")
    failed = world.fleet.of(name)[0]
    await world.instance(failed.instance_id).execute_update(InstanceWorkflow.approve_retry)
    await world.until_ready(name, 1)
    assert world.fleet.of(name)[0].instance_id == failed.instance_id


async def test_host_that_was_lost_costs_nothing_of_the_budget(world: World) -> None:
    hosts = [await world.add_host(registered=True) for _ in range(2)]
    instance = await world.run_instance(restart=RestartSpec(max_failures=0))
    first = await world.until_engine(instance, fence=1)
    await world.until_state(instance, InstanceState.READY)
    await next(h for h in hosts if first in h.engines).die()
    await world.until_engine(instance, fence=2)
    again = await world.until_state(instance, InstanceState.READY)
    assert (again.failures, again.failed_at, again.host_failures) == (0, (), {})


# -- elsewhere -----------------------------------------------------------------------------------------------------


async def test_host_on_which_it_keeps_failing_is_left_for_another(world: World) -> None:
    first, second = await world.add_host(room=10), await world.add_host(room=5)
    first.next_exits = [CRASH] * 2
    instance = await world.run_instance(timings=QUICK.model_copy(update={"first_back_off": timedelta(0)}))
    ready = await world.until_state(instance, InstanceState.READY)
    assert ready.placement is not None
    assert (ready.placement.host_id, ready.excluded_hosts) == (second.host_id, (first.host_id,))
    assert [p.excluded_hosts for p in world.fleet.placements] == [(), (), (first.host_id,)]


async def test_failure_that_only_another_host_can_help_goes_there_at_once(world: World) -> None:
    first, second = await world.add_host(room=10), await world.add_host(room=5)
    first.next_exits = [EngineExit(exit_code=1, failure_class="disk_full", remedy=Remedy.ELSEWHERE)]
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.READY)
    assert (len(first.engines), len(second.engines)) == (1, 1)


async def test_excluded_host_stays_excluded_over_continue_as_new(short_world: World) -> None:
    first, second = await short_world.add_host(room=10), await short_world.add_host(room=5)
    first.next_exits = [EngineExit(exit_code=1, failure_class="disk_full", remedy=Remedy.ELSEWHERE)]
    instance = await short_world.run_instance()
    engine = await short_world.until_engine(instance, fence=2)
    await short_world.until_state(instance, InstanceState.READY)
    run_id = (await instance.describe()).run_id

    async def went_on() -> bool:
        await engine.report(EnginePhase.READY, message=f"report {engine.sequence}")
        return (await instance.describe()).run_id != run_id

    await short_world.until(went_on, "continued as new")
    await short_world.until(lambda: engine.asked_for > 1, "adopted by the new run")
    await engine.crash()
    await short_world.until_engine(instance, fence=3)
    assert len(second.engines) == 2
    known = short_world.recorded(instance)
    assert known is not None
    assert known.host_failures == {first.host_id: 1, second.host_id: 1}


# -- with another parameter, and without the GPU -------------------------------------------------------------------


async def test_context_that_fits_is_used_and_stays_visible(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [
        EngineExit(exit_code=1, failure_class="oom_kv", hint="too long", remedy=Remedy.CHANGED, max_model_len=32640)
    ]
    name = await world.deploy_ready(1, max_model_len=40960)
    assert [e.launch.spec.max_model_len for e in host.engines] == [40960, 32640]
    [ready] = world.fleet.of(name)
    assert ready.hint == "Runs with max_model_len 32640 instead of 40960, because more did not fit (oom_kv)."
    assert world.fleet.placements[-1].spec.max_model_len == 32640


async def test_gpu_fault_is_noted_before_its_room_is_given_back(world: World) -> None:
    host = await world.add_host()
    world.fleet.gpus[host.host_id] = ("GPU-1",)
    host.next_exits = [BROKEN]
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.READY)
    [(fault, held)] = world.fleet.gpu_faults
    assert (fault.gpu_uuids, fault.fence, fault.certain, fault.reason) == (("GPU-1",), 1, True, "Xid 79")
    assert held, "nobody could have claimed the GPU yet"


async def test_engine_on_no_gpu_blames_none(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [BROKEN]
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.READY)
    assert world.fleet.gpu_faults == []
