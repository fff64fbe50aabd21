"""Finding room: waiting for it, being woken, and never missing the word."""

from datetime import timedelta

from fleet.instances import EnginePhase, StopRequest
from fleet.placement.request import Placement
from fleet.states import InstanceState
from tests.workflows.ledger import Claim
from tests.workflows.world import World
from workflows.instance import InstanceWorkflow


async def test_unplaceable_instance_waits_and_is_woken_when_there_is_room(world: World) -> None:
    instance = await world.run_instance()
    waiting = await world.until_state(instance, InstanceState.PENDING)
    assert waiting.message == "no host has room"
    await world.add_host()
    await world.fleet.wake()
    served = await world.until_state(instance, InstanceState.READY)
    assert served.message == ""
    assert len(world.fleet.placements) == 2


async def test_unplaceable_instance_asks_again_by_itself(world: World) -> None:
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.PENDING)
    await world.add_host()
    await world.fast_forward(instance, timedelta(minutes=59))
    assert len(world.fleet.placements) == 1
    await world.fast_forward(instance, timedelta(minutes=1))
    await world.until_state(instance, InstanceState.READY)


async def test_instance_that_was_woken_in_vain_waits_again(world: World) -> None:
    instance = await world.run_instance()
    await world.until_state(instance, InstanceState.PENDING)
    await world.fleet.wake()
    await world.until(lambda: len(world.fleet.placements) == 2, "asked again")
    await world.fast_forward(instance, timedelta(minutes=59))
    assert len(world.fleet.placements) == 2


async def test_room_given_back_by_one_deployment_serves_another(world: World) -> None:
    await world.add_host(room=1)
    first = await world.deploy_ready(1)
    second = await world.deploy(1)
    await world.until_phase(second, "pending")
    await world.delete(first)
    await world.until_ready(second, 1)


async def test_word_of_new_room_that_comes_while_asking_is_not_lost(world: World) -> None:
    world.fleet.answers.clear()
    instance = await world.run_instance()
    await world.until(lambda: world.fleet.placements, "asked for a place")
    await world.add_host()
    await instance.signal(InstanceWorkflow.capacity_changed)
    world.fleet.answers.set()  # with what was true when it was asked
    await world.until_state(instance, InstanceState.READY)
    assert len(world.fleet.placements) == 2


async def test_fence_of_a_newer_placement_is_gone_above(world: World) -> None:
    host = await world.add_host()
    instance = await world.run_instance()  # as after a reset to its beginning
    world.fleet.room[host.host_id] = 10
    await world.until_state(instance, InstanceState.READY)
    assert [p.fence for p in world.fleet.placements] == [1]
    instance_id = world.fleet.placements[0].instance_id
    world.fleet.claims.append(Claim(instance_id, 7, Placement(host_id=host.host_id)))
    await host.engines[0].crash()
    await world.until_engine(instance, fence=8)
    assert [p.fence for p in world.fleet.placements] == [1, 2, 8]


async def test_reports_of_another_fence_or_from_the_past_are_not_believed(world: World) -> None:
    await world.add_host()
    instance = await world.run_instance()
    engine = await world.until_engine(instance, fence=1)
    await world.until_state(instance, InstanceState.READY)
    for stale in ({"fence": 0}, {"fence": 2}, {"sequence": 2}, {"sequence": 1}):
        await engine.report(EnginePhase.STARTING, message="not so", **stale)
        state = await instance.query(InstanceWorkflow.state)
        assert (state.state, state.message) == (InstanceState.READY, ""), stale
    await engine.report(EnginePhase.READY, message="believed")
    await world.until(lambda: (i := world.recorded(instance)) and i.message == "believed", "last report")


async def test_instance_told_to_stop_while_being_placed_gives_its_claim_up(world: World) -> None:
    host = await world.add_host()
    world.fleet.answers.clear()
    instance = await world.run_instance()
    await world.until(lambda: world.fleet.placements, "asked for a place")
    await instance.signal(InstanceWorkflow.stop, StopRequest(reason="test"))
    world.fleet.answers.set()
    await instance.result()
    assert host.engines == []
    world.hosts_confirm_what_is_gone()
    assert world.fleet.claims == []


async def test_progress_of_a_starting_engine_is_recorded(world: World) -> None:
    host = await world.add_host()
    host.makes_ready = False
    instance = await world.run_instance()
    engine = await world.until_engine(instance, fence=1)
    await engine.report(EnginePhase.DOWNLOADING, progress=0.5, message="half of it")
    downloading = await world.until_state(instance, InstanceState.DOWNLOADING)
    assert (downloading.progress, downloading.message, downloading.endpoint) == (0.5, "half of it", None)
    await engine.become_ready()
    ready = await world.until_state(instance, InstanceState.READY)
    assert (ready.endpoint, ready.pid) == ("http://127.0.0.1:1001", 101)


async def test_instance_whose_claim_expired_before_it_was_bound_asks_again(world: World) -> None:
    host = await world.add_host()
    world.fleet.answers.clear()
    instance = await world.run_instance()
    await world.until(lambda: world.fleet.claims, "claim")
    world.fleet.claims.clear()
    world.fleet.answers.set()
    await world.until_engine(instance, fence=2)
    await world.until_state(instance, InstanceState.READY)
    assert [e.launch.fence for e in host.engines] == [2], "no engine runs on room that is somebody else's"
