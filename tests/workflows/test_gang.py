"""Instances that span two hosts: all or none."""

import asyncio
from datetime import timedelta

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory

from fleet.instances import EngineExit, EnginePhase, Instance, Remedy, StopRequest
from fleet.inventory import UnknownEngine
from fleet.states import InstanceState, Maintenance
from tests.workflows.hosts import FakeEngine, FakeHost
from tests.workflows.test_continue_as_new import make_history
from tests.workflows.test_maintenance import DRAIN, ask, until
from tests.workflows.world import QUICK, Handle, World
from workflows.instance import InstanceWorkflow

NO_MODEL = EngineExit(exit_code=None, failure_class="not_found", hint="no such file", remedy=Remedy.ELSEWHERE)


async def two_hosts(world: World, room: int = 10) -> tuple[FakeHost, FakeHost]:
    """Of which the first has more room, and leads."""
    world.fleet.hosts_per_replica = 2
    return await world.add_host(room + 1), await world.add_host(room)


def engine_on(host: FakeHost, fence: int) -> FakeEngine | None:
    return next((e for e in host.engines if e.launch.fence == fence), None)


async def serving(world: World, handle: Handle, fence: int) -> Instance:
    def is_serving() -> Instance | None:
        known = world.recorded(handle)
        return known if known and (known.state, known.fence) == (InstanceState.READY, fence) else None

    return await world.until(is_serving, f"serving under fence {fence}")


async def stopped(handle: Handle) -> None:
    await handle.signal(InstanceWorkflow.stop, StopRequest(reason="test"))
    await asyncio.wait_for(handle.result(), 60)


def states(world: World, handle: Handle) -> list[InstanceState]:
    return [i.state for i in world.fleet.timeline[handle.id.removeprefix("instance/")]]


async def test_all_hosts_accept_before_any_engine_is_started(world: World) -> None:
    leader, follower = await two_hosts(world)
    follower.answers.clear()
    gang = await world.run_instance()
    await world.until(lambda: leader.accepted and follower.accepted, "both asked")
    known = await world.until_state(gang, InstanceState.STARTING)
    assert known.message == "asks all hosts of the gang whether they can run their parts"
    assert (leader.engines, follower.engines) == ([], [])
    follower.answers.set()
    ready = await serving(world, gang, fence=1)
    assert [e.launch.rank for e in (*leader.live, *follower.live)] == [0, 1]
    assert ready.placement is not None
    assert ready.placement.hosts == (leader.host_id, follower.host_id)
    assert ready.endpoint == "http://127.0.0.1:1001"
    assert ready.pid == leader.live[0].launch.fence + 100


async def test_gang_is_ready_when_its_leader_is_and_says_for_whom_it_waits(world: World) -> None:
    leader, follower = await two_hosts(world)
    leader.makes_ready = follower.makes_ready = False
    gang = await world.run_instance()
    second = await world.until(lambda: engine_on(follower, 1), "follower's engine")
    first = await world.until(lambda: engine_on(leader, 1), "leader's engine")
    await first.report(EnginePhase.STARTING, message="loading the model")
    await second.report(EnginePhase.DOWNLOADING, message="pulling the image", progress=0.5)
    waits = f"waits for {follower.host_id} (pulling the image)"
    known = await world.until(lambda: (i := world.recorded(gang)) and i.message == waits and i, waits)
    assert (known.state, known.progress, known.endpoint) == (InstanceState.DOWNLOADING, 0.5, None)
    await second.become_ready()
    waits = f"waits for {leader.host_id} (loading the model)"
    known = await world.until(lambda: (i := world.recorded(gang)) and i.message == waits and i, waits)
    assert known.state is InstanceState.STARTING
    await first.become_ready()
    await serving(world, gang, fence=1)
    assert InstanceState.READY not in states(world, gang)[:-1]


async def test_host_that_refuses_is_blamed_and_nothing_has_begun(world: World) -> None:
    leader, follower = await two_hosts(world)
    follower.next_refusals = [NO_MODEL]
    third = await world.add_host(1)
    gang = await world.run_instance()
    ready = await serving(world, gang, fence=2)
    assert ready.placement is not None
    assert ready.placement.hosts == (leader.host_id, third.host_id)
    assert ready.excluded_hosts == (follower.host_id,)
    assert ready.host_failures == {follower.host_id: 1}
    [released] = world.fleet.released
    assert released.engine_gone or follower.host_id in released.hosts_gone, "it has said that it runs nothing"
    assert [e.launch.fence for h in world.hosts for e in h.engines] == [2, 2]
    failed = [i.message for i in world.fleet.timeline[ready.instance_id] if i.state is InstanceState.RECOVERING]
    assert failed == [f"{follower.host_id}: engine did not start (not_found)"]


async def test_host_that_never_answers_is_blamed_and_its_memory_stays_booked(world: World) -> None:
    leader, follower = await two_hosts(world)
    follower.answers.clear()
    third = await world.add_host(1)
    gang = await world.run_instance(timings=QUICK.model_copy(update={"accept": timedelta(seconds=1)}))
    ready = await serving(world, gang, fence=2)
    follower.answers.set()
    assert ready.excluded_hosts == (follower.host_id,)
    assert ready.placement is not None
    assert ready.placement.hosts == (leader.host_id, third.host_id)
    assert [(r.engine_gone, r.hosts_gone) for r in world.fleet.released] == [(False, (leader.host_id,))]
    world.hosts_confirm_what_is_gone()
    assert [c.fence for c in world.fleet.claims] == [2]


async def test_host_lost_while_it_is_asked_is_no_failure(world: World) -> None:
    _, follower = await two_hosts(world)
    follower.answers.clear()
    gang = await world.run_instance()
    await world.until(lambda: follower.accepted, "asked")
    await follower.die()
    del world.fleet.room[follower.host_id]
    await world.add_host(1)
    await gang.signal(InstanceWorkflow.host_lost, follower.host_id)
    ready = await serving(world, gang, fence=2)
    assert (ready.failures, ready.excluded_hosts, ready.restarts) == (0, (), 1)
    follower.answers.set()


async def test_follower_that_dies_takes_the_leader_with_it_and_all_start_again(world: World) -> None:
    leader, follower = await two_hosts(world)
    gang = await world.run_instance()
    await serving(world, gang, fence=1)
    await follower.live[0].crash()
    ready = await serving(world, gang, fence=2)
    assert [(e.launch.fence, e.running) for e in leader.engines] == [(1, False), (2, True)]
    assert [(e.launch.fence, e.running) for e in follower.engines] == [(1, False), (2, True)]
    assert [r.fence for r in leader.hurried] == [1], "its requests cannot finish"
    assert ready.host_failures == {follower.host_id: 1}
    assert [(r.fence, r.engine_gone) for r in world.fleet.released] == [(1, True)]
    assert [c.fence for c in world.fleet.claims] == [2]


async def test_leader_that_dies_takes_the_follower_with_it(world: World) -> None:
    leader, follower = await two_hosts(world)
    gang = await world.run_instance()
    await serving(world, gang, fence=1)
    follower.looks = False
    await leader.live[0].crash()
    known = await world.until_state(gang, InstanceState.RECOVERING)
    assert known.endpoint is None, "withdrawn before the others have ended"
    assert known.placement is not None, "its memory is in use"
    assert known.message == f"{leader.host_id} has failed: stops the other members"
    assert world.fleet.released == []
    await leader.engines[0].report(EnginePhase.READY, sequence=1000)
    await world.until_stopped(follower.engines[0])
    ready = await serving(world, gang, fence=2)
    assert ready.host_failures == {leader.host_id: 1}
    assert [(r.fence, r.engine_gone) for r in world.fleet.released] == [(1, True)]


async def test_member_that_says_more_is_the_cause_whoever_was_heard_first(world: World) -> None:
    leader, follower = await two_hosts(world)
    world.fleet.gpus[follower.host_id] = ("gpu-f",)
    gang = await world.run_instance()
    await serving(world, gang, fence=1)
    follower.looks = False
    await leader.live[0].crash()
    await world.until_state(gang, InstanceState.RECOVERING)
    broken = EngineExit(exit_code=1, failure_class="gpu_fault", gpu_fault="certain", served=True)
    await follower.live[0].crash(broken)
    ready = await serving(world, gang, fence=2)
    assert ready.host_failures == {follower.host_id: 1}
    assert [(f.gpu_uuids, held) for f, held in world.fleet.gpu_faults] == [(("gpu-f",), True)]


async def test_host_of_a_follower_is_lost(world: World) -> None:
    leader, follower = await two_hosts(world)
    gang = await world.run_instance()
    await serving(world, gang, fence=1)
    third = await world.add_host(5)
    await follower.die()
    world.fleet.room[follower.host_id] = 1
    await gang.signal(InstanceWorkflow.host_lost, follower.host_id)
    ready = await serving(world, gang, fence=2)
    assert ready.placement is not None
    assert ready.placement.hosts == (leader.host_id, third.host_id)
    assert (ready.failures, ready.excluded_hosts) == (0, ())
    assert [(r.engine_gone, r.hosts_gone) for r in world.fleet.released] == [(False, (leader.host_id,))]
    assert [c.gone_from for c in world.fleet.claims if c.fence == 1] == [{leader.host_id}]
    assert follower.engines[0].running, "nobody could stop it yet"


async def test_leader_that_crashes_because_a_host_vanished_is_not_blamed(world: World) -> None:
    leader, follower = await two_hosts(world)
    gang = await world.run_instance()
    await serving(world, gang, fence=1)
    await follower.die()
    await leader.live[0].crash()
    await world.until_state(gang, InstanceState.RECOVERING)
    await world.add_host(5)
    world.fleet.room[follower.host_id] = 1
    await gang.signal(InstanceWorkflow.host_lost, follower.host_id)
    ready = await serving(world, gang, fence=2)
    assert (ready.failures, ready.host_failures) == (0, {})
    assert [(r.engine_gone, r.hosts_gone) for r in world.fleet.released] == [(False, (leader.host_id,))]


async def test_stopping_drains_the_leader_before_the_follower_is_stopped(world: World) -> None:
    leader, follower = await two_hosts(world)
    gang = await world.run_instance()
    await serving(world, gang, fence=1)
    leader.looks = False  # it drains
    await gang.signal(InstanceWorkflow.stop, StopRequest(reason="test"))
    await world.until_state(gang, InstanceState.DRAINING)
    await follower.live[0].look()
    assert follower.live, "the leader needs it"
    await world.until_stopped(leader.engines[0])
    await asyncio.wait_for(gang.result(), 60)
    assert not follower.live
    assert [(r.fence, r.engine_gone) for r in world.fleet.released] == [(1, True)]
    assert world.fleet.claims == []


async def test_stopping_while_the_hosts_are_asked(world: World) -> None:
    leader, follower = await two_hosts(world)
    follower.answers.clear()
    gang = await world.run_instance()
    await world.until(lambda: leader.accepted and follower.accepted, "asked")
    await stopped(gang)
    follower.answers.set()
    assert (leader.engines, follower.engines) == ([], [])
    world.hosts_confirm_what_is_gone()
    assert world.fleet.claims == []


async def at_rest(handle: Handle) -> None:
    """It waits for something to happen. Cancelled in the middle of something, it leaves what runs to the hosts."""
    async with asyncio.timeout(60):
        while not _waits(await handle.fetch_history()):
            await asyncio.sleep(0.02)


def _waits(history: WorkflowHistory) -> bool:
    kinds = [event.event_type for event in history.events]
    tasks = [kind for kind in kinds if kind in _TASKS]
    told = kinds.count(EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED)
    heard = kinds.count(EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED)
    return told == heard and tasks[-1] == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED


_TASKS = (
    EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED,
    EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED,
    EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED,
)


async def test_cancelled_gang_is_stopped_in_order(world: World) -> None:
    leader, follower = await two_hosts(world)
    name = await world.deploy_ready(1)
    [known] = world.fleet.of(name)
    gang = world.instance(known.instance_id)
    await at_rest(gang)
    await gang.cancel()
    await asyncio.wait_for(gang.result(), 60)
    engines = [e for e in (*leader.live, *follower.live) if e.launch.instance_id == known.instance_id]
    assert engines == []
    assert [(r.fence, r.engine_gone) for r in world.fleet.released] == [(1, True)]


async def test_gang_goes_on_as_new_and_every_member_is_adopted(short_world: World) -> None:
    world = short_world
    leader, follower = await two_hosts(world)
    gang = await world.run_instance()
    await serving(world, gang, fence=1)
    await make_history(world, gang, leader.live[0])
    await world.until(lambda: (leader.live[0].asked_for, follower.live[0].asked_for) == (2, 2), "adopted")
    after = await serving(world, gang, fence=1)
    assert (after.restarts, len(leader.engines), len(follower.engines)) == (0, 1, 1)
    assert (len(leader.accepted), len(follower.accepted)) == (1, 1), "who runs it is not asked whether it can"
    await follower.live[0].crash()
    await serving(world, gang, fence=2)
    await stopped(gang)
    assert world.fleet.claims == []


async def test_controller_killed_with_a_gang_that_serves(world: World) -> None:
    leader, follower = await two_hosts(world)
    gang = await world.run_instance()
    await serving(world, gang, fence=1)
    await world.restart_controller()
    await leader.live[0].report(EnginePhase.READY, message="still here")
    await world.until(lambda: (i := world.recorded(gang)) and i.message == "still here", "heard")
    assert (leader.live[0].asked_for, follower.live[0].asked_for) == (1, 1)
    await follower.live[0].crash()
    await serving(world, gang, fence=2)


async def test_controller_killed_while_a_gang_is_broken_up(world: World) -> None:
    leader, follower = await two_hosts(world)
    gang = await world.run_instance()
    await serving(world, gang, fence=1)
    leader.looks = False
    await follower.live[0].crash()
    await world.until_state(gang, InstanceState.RECOVERING)
    await world.restart_controller()
    await world.until_stopped(leader.engines[0])
    await serving(world, gang, fence=2)
    assert [(r.fence, r.engine_gone) for r in world.fleet.released] == [(1, True)]


async def test_only_the_member_that_its_host_does_not_know_is_asked_for_again(world: World) -> None:
    leader, follower = await two_hosts(world)
    follower.makes_ready = False
    gang = await world.run_instance()
    first = await world.until(lambda: engine_on(follower, 1), "follower's engine")
    follower.engines.remove(first)  # the process that was to start it died before it knew
    word = UnknownEngine(instance_id=first.launch.instance_id, fence=1, host_id=follower.host_id)
    await gang.signal(InstanceWorkflow.engine_unknown, word)
    second = await world.until(lambda: engine_on(follower, 1), "asked again")
    await second.become_ready()
    ready = await serving(world, gang, fence=1)
    assert (ready.restarts, leader.live[0].asked_for) == (0, 1)


async def test_member_that_starts_anew_under_the_same_fence_breaks_the_gang(world: World) -> None:
    leader, follower = await two_hosts(world)
    gang = await world.run_instance()
    await serving(world, gang, fence=1)
    await world.until(lambda: world.fleet.instances[leader.live[0].launch.instance_id].members, "heard of both")
    follower.first_sequence = 1000
    old = follower.engines.pop()  # its host came up again, and remembers nothing
    word = UnknownEngine(instance_id=old.launch.instance_id, fence=1, host_id=follower.host_id)
    await gang.signal(InstanceWorkflow.engine_unknown, word)
    ready = await serving(world, gang, fence=2)
    assert [(e.launch.fence, e.running) for e in leader.engines] == [(1, False), (2, True)]
    assert (ready.host_failures, ready.failure_class) == ({}, ""), "nobody is to blame"


async def test_drained_host_of_a_follower_ends_empty(world: World) -> None:
    world.fleet.hosts_per_replica = 2
    hosts = [await world.add_host(2, registered=True) for _ in range(4)]
    name = await world.deploy_ready(1)
    before = world.fleet.of(name)[0].placement
    assert before is not None
    drained = next(h for h in hosts if h.host_id == before.followers[0].host_id)
    world.fleet.fewest_ready[name] = 1
    await ask(world, drained, DRAIN)
    await until(world, drained, Maintenance.DRAINED)
    await world.until_ready(name, 1)
    after = world.fleet.of(name)[0].placement
    assert after is not None
    assert drained.host_id not in after.hosts
    assert (drained.live, world.fleet.fewest_ready[name]) == ([], 1)
