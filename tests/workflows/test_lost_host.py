"""The host of an instance is gone, or nobody knows: serve elsewhere, and never book its memory twice."""

import asyncio
from datetime import timedelta

from fleet.instances import EngineExit, EnginePhase, StopRequest
from fleet.states import InstanceState
from tests.workflows.world import QUICK, World
from workflows.instance import InstanceWorkflow


async def test_instance_of_a_lost_host_is_placed_elsewhere_under_a_higher_fence(world: World) -> None:
    first = await world.add_host()
    name = await world.deploy_ready(1)
    second = await world.add_host()
    await first.die()
    del world.fleet.room[first.host_id]
    await world.instance(world.fleet.of(name)[0].instance_id).signal(InstanceWorkflow.host_lost, first.host_id)
    await world.until(lambda: len(second.live) == 1, "engine elsewhere")
    await world.until_ready(name, 1)
    moved = world.fleet.of(name)[0]
    assert moved.placement is not None
    assert (moved.placement.host_id, moved.fence, moved.restarts) == (second.host_id, 2, 1)
    assert [(r.fence, r.engine_gone) for r in world.fleet.released] == [(1, False)]
    assert [(c.fence, c.state) for c in world.fleet.claims] == [(1, "releasing"), (2, "bound")]


async def test_host_that_comes_back_stops_what_was_placed_elsewhere_and_is_not_believed(world: World) -> None:
    first = await world.add_host()
    instance = await world.run_instance()
    old = await world.until_engine(instance, fence=1)
    await world.until_state(instance, InstanceState.READY)
    await first.die()
    second = await world.add_host()
    world.fleet.room[first.host_id] = 0
    await instance.signal(InstanceWorkflow.host_lost, first.host_id)
    new = await world.until_engine(instance, fence=2)
    await first.revive()
    await old.report(EnginePhase.READY, url="http://127.0.0.1:9")
    await world.until_stopped(old)
    await new.report(EnginePhase.READY, message="still me")
    await world.until(lambda: (i := world.recorded(instance)) and i.message == "still me", "report of the new one")
    assert all(i.endpoint != "http://127.0.0.1:9" for t in world.fleet.timeline.values() for i in t)
    assert new.running
    assert second.live == [new]
    world.fleet.room[first.host_id] = 1
    world.hosts_confirm_what_is_gone()
    assert [c.fence for c in world.fleet.claims] == [2]


async def test_loss_of_another_host_means_nothing(world: World) -> None:
    await world.add_host()
    instance = await world.run_instance()
    engine = await world.until_engine(instance, fence=1)
    await world.until_state(instance, InstanceState.READY)
    await instance.signal(InstanceWorkflow.host_lost, "another")
    await engine.report(EnginePhase.READY, message="here")
    await world.until(lambda: (i := world.recorded(instance)) and i.message == "here", "report")
    assert world.fleet.released == []


async def test_loss_of_a_host_is_not_missed_while_the_answer_that_names_it_is_on_its_way(world: World) -> None:
    lost = await world.add_host()
    await lost.die()
    world.fleet.answers.clear()
    instance = await world.run_instance()
    await world.until(lambda: world.fleet.claims, "claim on the host that dies")
    world.fleet.room[lost.host_id] = 1
    other = await world.add_host()
    await instance.signal(InstanceWorkflow.host_lost, lost.host_id)
    world.fleet.answers.set()
    await world.until_engine(instance, fence=2)
    await world.until_state(instance, InstanceState.READY)
    assert len(other.live) == 1
    assert [(r.fence, r.engine_gone) for r in world.fleet.released] == [(1, False)]


async def test_memory_is_free_once_the_host_says_that_the_engine_is_gone(world: World) -> None:
    await world.add_host()
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.READY)
    await instance.signal(InstanceWorkflow.stop, StopRequest(reason="test"))
    await asyncio.wait_for(instance.result(), 60)
    assert [r.engine_gone for r in world.fleet.released] == [True]


async def test_memory_stays_booked_when_a_host_falls_silent_before_it_has_stopped_the_engine(world: World) -> None:
    host = await world.add_host()
    instance = await world.run_instance(timings=QUICK.model_copy(update={"engine_heartbeat": timedelta(seconds=1)}))
    await world.until_state(instance, InstanceState.READY)
    await host.die()
    await instance.signal(InstanceWorkflow.stop, StopRequest(reason="test"))
    await asyncio.wait_for(instance.result(), 60)
    assert host.engines[0].running
    assert [r.engine_gone for r in world.fleet.released] == [False]


async def test_memory_stays_booked_when_nobody_has_answered_for_the_engine(world: World) -> None:
    host = await world.add_host()
    await host.die()
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.STARTING)
    await instance.signal(InstanceWorkflow.stop, StopRequest(reason="test"))
    await asyncio.wait_for(instance.result(), 60)
    assert [r.engine_gone for r in world.fleet.released] == [False]


async def test_memory_stays_booked_while_an_adopting_host_has_not_come_back(world: World) -> None:
    """The engine runs, its heartbeats stopped, and the next attempt waits for its host."""
    host = await world.add_host()
    instance = await world.run_instance(timings=QUICK.model_copy(update={"engine_heartbeat": timedelta(seconds=1)}))
    await world.until_state(instance, InstanceState.READY)
    await host.die()

    async def second_attempt() -> bool:
        description = await instance.describe()
        return any(a.attempt > 1 for a in description.raw_description.pending_activities)

    await world.until(second_attempt, "second attempt")
    await instance.signal(InstanceWorkflow.stop, StopRequest(reason="test"))
    await asyncio.wait_for(instance.result(), 60)
    assert host.engines[0].running
    assert [r.engine_gone for r in world.fleet.released] == [False]


async def test_host_lost_while_an_engine_is_being_stopped_ends_the_waiting(world: World) -> None:
    host = await world.add_host()
    host.looks = False
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.READY)
    await instance.signal(InstanceWorkflow.stop, StopRequest(reason="test"))
    await world.until_state(instance, InstanceState.DRAINING)
    await instance.signal(InstanceWorkflow.host_lost, host.host_id)
    await asyncio.wait_for(instance.result(), 60)
    assert [r.engine_gone for r in world.fleet.released] == [False]


async def test_engine_that_crashes_while_it_is_being_stopped_is_gone(world: World) -> None:
    host = await world.add_host()
    host.looks = False
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.READY)
    await instance.signal(InstanceWorkflow.stop, StopRequest(reason="test"))
    await world.until_state(instance, InstanceState.DRAINING)
    await host.engines[0].crash(EngineExit(exit_code=-9))
    await asyncio.wait_for(instance.result(), 60)
    assert [r.engine_gone for r in world.fleet.released] == [True]
