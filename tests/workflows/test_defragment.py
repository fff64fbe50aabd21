"""Room is there in pieces: others are moved, a few at a time, until a replica that waits has its place."""

import asyncio
from datetime import timedelta

from temporalio.client import WorkflowHandle

from fleet.defragmentations import StopDefragmenting
from fleet.states import InstanceState
from tests.workflows.world import QUICK, World
from workflows.defragment import DefragmentWorkflow

Handle = WorkflowHandle[DefragmentWorkflow, str]


async def in_pieces(world: World, size: int = 2) -> tuple[list[str], str]:
    """``size`` hosts of ``size`` places with a replica of one place on each; and one that waits for a whole host."""
    small: list[str] = []
    for n in range(size):
        for host in world.hosts:
            world.fleet.room[host.host_id] = 0
        await world.add_host(room=size)
        small.append(await world.deploy_ready(1, name=f"{world.queue}-small{n}"))
    for host in world.hosts:
        world.fleet.room[host.host_id] = size
    big = f"{world.queue}-big"
    world.fleet.sizes[big] = size
    await world.deploy(1, name=big)
    await world.until(lambda: any(i.unplaceable for i in world.fleet.of(big)), "it finds no room")
    return small, big


async def ended(handle: Handle) -> str:
    return await asyncio.wait_for(handle.result(), 60)


async def test_a_replica_is_moved_and_the_one_that_waits_gets_the_whole_host(world: World) -> None:
    small, big = await in_pieces(world)
    for name in small:
        world.fleet.fewest_ready[name] = 1
    handle = await world.defragment(big)
    assert await ended(handle) == "it has its room, after 1 moves"
    await world.until_ready(big)
    for name in small:
        await world.until_ready(name)
        assert world.fleet.fewest_ready[name] == 1, "it served all the time"
    assert len(world.defragmenter.begun) == 1
    assert world.defragmenter.last.ended


async def test_moves_are_made_one_after_the_other(world: World) -> None:
    small, big = await in_pieces(world, size=3)
    extra = await world.deploy_ready(1, name=f"{world.queue}-extra")  # now some host has two to move
    assert await ended(await world.defragment(big)) == "it has its room, after 1 moves"
    await world.until_ready(big)
    assert world.defragmenter.most_under_way == 1
    for name in (*small, extra):
        await world.until_ready(name)


async def test_nobody_waits_so_nothing_is_done(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(1)
    assert await ended(await world.defragment(name)) == "no replica of it waits for room"
    assert world.defragmenter.begun == []


async def test_without_a_plan_it_says_why_and_keeps_nothing(world: World) -> None:
    await world.add_host(room=1)
    big = f"{world.queue}-big"
    world.fleet.sizes[big] = 2
    await world.deploy(1, name=big)
    await world.until(lambda: any(i.unplaceable for i in world.fleet.of(big)), "it finds no room")
    assert await ended(await world.defragment(big)) == "no moves would make room: nothing can go elsewhere"
    assert world.defragmenter.begun == []


async def test_a_person_stops_it_and_who_was_moving_stays(world: World) -> None:
    small, big = await in_pieces(world)
    for host in world.hosts:
        host.makes_ready = False  # the replacement takes its time
    before = {i.instance_id for name in small for i in world.fleet.of(name)}
    handle = await world.defragment(big)
    await world.until(lambda: world.defragmenter.begun, "a move")
    for _ in range(2):
        await handle.execute_update(DefragmentWorkflow.stop, StopDefragmenting(reason="not today"))
    assert await ended(handle) == "not today"
    assert world.defragmenter.called_off == world.defragmenter.begun
    assert [name for name in world.defragmenter.let_go if name] != []
    for name in small:
        await world.until_ready(name)
    assert {i.instance_id for name in small for i in world.fleet.of(name)} == before


async def test_cancelled_in_temporals_ui_it_stops_in_order(world: World) -> None:
    small, big = await in_pieces(world)
    for host in world.hosts:
        host.makes_ready = False
    handle = await world.defragment(big)
    await world.until(lambda: world.defragmenter.under_way, "a move")
    await handle.cancel()
    assert await ended(handle) == "cancelled"
    assert world.defragmenter.called_off == world.defragmenter.begun
    for name in small:
        await world.until_ready(name)


async def test_a_move_that_takes_too_long_is_called_off_and_another_one_tried(world: World) -> None:
    _, big = await in_pieces(world)
    for host in world.hosts:
        host.makes_ready = False
    hasty = QUICK.model_copy(update={"move_deadline": timedelta(milliseconds=200), "move_pause": timedelta(seconds=1)})
    handle = await world.defragment(big, hasty)
    assert (await ended(handle)).startswith("no moves would make room")
    assert len(world.defragmenter.called_off) == 2, "each of the two was tried"
    assert set(world.defragmenter.last.given_up) == set(world.defragmenter.called_off)


async def test_it_ends_when_the_replica_finds_room_elsewhere(world: World) -> None:
    _, big = await in_pieces(world)
    for host in world.hosts:
        host.makes_ready = False
    handle = await world.defragment(big)
    await world.until(lambda: world.defragmenter.under_way, "a move")
    await world.add_host(room=2)
    await world.fleet.wake()
    assert await ended(handle) == "it has its room"
    assert world.defragmenter.called_off == world.defragmenter.begun


async def test_one_that_has_moved_on_by_itself_is_planned_for_anew(world: World) -> None:
    small, big = await in_pieces(world)
    [first] = world.fleet.of(small[0])
    [second] = world.fleet.of(small[1])
    world.defragmenter.moved_on = {first.instance_id, second.instance_id}
    handle = await world.defragment(big)
    await world.until(lambda: len([r for r in world.defragmenter.recorded if r.planned]) > 1, "it plans again")
    assert world.defragmenter.begun == []
    world.defragmenter.moved_on.clear()
    assert await ended(handle) == "it has its room, after 1 moves"


async def test_a_controller_that_is_killed_in_the_middle_is_no_matter(world: World) -> None:
    small, big = await in_pieces(world)
    for host in world.hosts:
        host.makes_ready = False
    handle = await world.defragment(big)
    await world.until(lambda: world.defragmenter.under_way, "a move")
    await world.restart_controller()
    [engine] = await world.until(
        lambda: [e for name in small for e in world.live_engines(name) if e.ready_since is None], "replacement"
    )
    for host in world.hosts:
        host.makes_ready = True
    await engine.become_ready()
    assert await ended(handle) == "it has its room, after 1 moves"
    assert len(world.defragmenter.begun) == 1
    await world.until_ready(big)


async def test_it_goes_on_as_new_with_its_moves_under_way(short_world: World) -> None:
    world = short_world
    small, big = await in_pieces(world)
    for host in world.hosts:
        host.makes_ready = False
    handle = await world.defragment(big)
    first_run = (await handle.describe()).run_id

    async def next_run() -> bool:
        return (await handle.describe()).run_id != first_run

    await world.until(next_run, "it goes on as new")
    assert world.defragmenter.under_way
    [engine] = [e for name in small for e in world.live_engines(name) if e.ready_since is None]
    for host in world.hosts:
        host.makes_ready = True
    await engine.become_ready()
    assert await ended(world.client.get_workflow_handle_for(DefragmentWorkflow.run, handle.id)) == (
        "it has its room, after 1 moves"
    )
    assert len(world.defragmenter.begun) == 1


async def test_a_person_can_read_what_it_does(world: World) -> None:
    _, big = await in_pieces(world)
    for host in world.hosts:
        host.makes_ready = False
    handle = await world.defragment(big)
    await world.until(lambda: world.defragmenter.under_way, "a move")
    state = await handle.query(DefragmentWorkflow.state)
    assert state.message.startswith(f"moves {world.defragmenter.begun[0]} from ")
    waits = [i for i in world.fleet.of(big) if i.state is InstanceState.PENDING]
    assert state.waiting is not None
    assert state.waiting.instance_id == waits[0].instance_id
    await handle.execute_update(DefragmentWorkflow.stop, StopDefragmenting())
    assert await ended(handle) == "a person stopped it"
