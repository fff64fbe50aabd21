"""A batch is worked off window by window, and ends in order however it ends."""

import asyncio
from datetime import timedelta

from temporalio.client import WorkflowHandle

from fleet.batches import COMPLETION_WINDOW, BatchStatus, CancelBatch, CheckedBatch, EndReason, PauseBatch
from tests.workflows.world import QUICK, World
from workflows.batch import BatchWorkflow

Handle = WorkflowHandle[BatchWorkflow, str]


async def ended(handle: Handle) -> str:
    return await asyncio.wait_for(handle.result(), 60)


async def held(world: World, lasts: timedelta = COMPLETION_WINDOW) -> Handle:
    """One of which two windows are under way, and stay so."""
    world.batcher.holding = True
    handle = await world.batch(lasts=lasts)
    await world.until(lambda: world.batcher.under_way == 2, "two windows")
    return handle


async def test_a_batch_is_worked_off_window_by_window_and_completed(world: World) -> None:
    assert await ended(await world.batch()) == "completed"
    batcher = world.batcher
    assert sorted(batcher.begun) == [0, 1, 2, 3, 4], "each window once"
    assert batcher.most_at_once <= 2
    assert (batcher.last.completed, batcher.last.failed) == (45, 5)
    assert (batcher.last.output_file_id, batcher.last.error_file_id) == ("file-o", "file-e")
    assert batcher.cleared == 1
    seen = list(dict.fromkeys(b.status for b in batcher.recorded))
    assert seen == [BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.COMPLETED]
    numbers = [b.projection for b in batcher.recorded]
    assert numbers == sorted(set(numbers)), "each row replaces the one before"


async def test_an_input_with_mistakes_fails_and_nothing_of_it_is_asked(world: World) -> None:
    world.batcher.found = CheckedBatch(total=50, windows=5, errors=3)
    assert await ended(await world.batch()) == "failed"
    assert world.batcher.begun == []
    assert world.batcher.assembled == [EndReason.INVALID]
    assert world.batcher.last.end_message == "the input file has 3 mistakes"


async def test_cancelling_calls_back_what_is_under_way_and_keeps_what_was_answered(world: World) -> None:
    handle = await held(world)
    for _ in range(2):
        await handle.execute_update(BatchWorkflow.cancel, CancelBatch())
    assert await ended(handle) == "cancelled"
    assert sorted(world.batcher.called_back) == [0, 1]
    assert world.batcher.assembled == [EndReason.CANCELLED]
    assert world.batcher.last.cancelling_at is not None
    assert world.batcher.last.last_error == "429 overloaded"


async def test_cancelled_in_temporals_ui_it_ends_in_order_too(world: World) -> None:
    handle = await held(world)
    await handle.cancel()
    assert await ended(handle) == "cancelled"
    assert sorted(world.batcher.called_back) == [0, 1]


async def test_a_wish_to_cancel_that_only_the_database_knows_is_heard(world: World) -> None:
    world.batcher.wants_cancel = True
    assert await ended(await world.batch()) == "cancelled"
    assert len(world.batcher.begun) <= 3


async def test_out_of_time_the_rest_is_expired(world: World) -> None:
    handle = await held(world, lasts=timedelta(seconds=2))
    assert await ended(handle) == "expired"
    assert sorted(world.batcher.called_back) == [0, 1]
    assert world.batcher.assembled == [EndReason.EXPIRED]
    assert world.batcher.last.failed == 50


async def test_paused_it_sends_nothing_and_resumed_it_goes_on_where_it_was(world: World) -> None:
    handle = await held(world)
    await handle.execute_update(BatchWorkflow.pause, PauseBatch(paused=True))
    await world.until(lambda: world.batcher.last.again and not world.batcher.under_way, "called back")
    assert (await handle.query(BatchWorkflow.state)).paused
    world.batcher.holding = False
    begun = len(world.batcher.begun)
    await handle.execute_update(BatchWorkflow.pause, PauseBatch(paused=True))
    assert len(world.batcher.begun) == begun
    await handle.execute_update(BatchWorkflow.pause, PauseBatch(paused=False))
    assert await ended(handle) == "completed"
    assert world.batcher.through == {0, 1, 2, 3, 4}


async def test_cancelled_while_paused_it_ends(world: World) -> None:
    handle = await held(world)
    await handle.execute_update(BatchWorkflow.pause, PauseBatch(paused=True))
    await world.until(lambda: world.batcher.last.again and not world.batcher.under_way, "called back")
    await handle.execute_update(BatchWorkflow.cancel, CancelBatch(reason="not needed"))
    assert await ended(handle) == "cancelled"
    assert world.batcher.last.end_message == "not needed"


async def test_a_lost_input_fails_it(world: World) -> None:
    world.batcher.gone = True
    assert await ended(await world.batch()) == "failed"
    assert world.batcher.assembled == [EndReason.INPUT_GONE]
    assert world.batcher.last.end_message == "the input file is gone"


async def test_a_controller_that_is_restarted_in_the_middle_is_no_matter(world: World) -> None:
    handle = await held(world)
    await world.restart_controller()
    await world.until(lambda: world.batcher.under_way == 2, "two windows again")
    world.batcher.holding = False
    assert await ended(handle) == "completed"
    assert world.batcher.through == {0, 1, 2, 3, 4}
    assert (world.batcher.last.completed, world.batcher.last.failed) == (45, 5)


async def test_it_goes_on_as_new_between_two_windows(short_world: World) -> None:
    world = short_world
    world.batcher.found = CheckedBatch(total=400, windows=40, model="m")
    handle = await world.batch()
    first_run = (await handle.describe()).run_id
    latest = world.client.get_workflow_handle_for(BatchWorkflow.run, handle.id)
    assert await ended(latest) == "completed"
    assert (await latest.describe()).run_id != first_run
    assert sorted(world.batcher.begun) == list(range(40)), "each window once"
    assert (world.batcher.last.completed, world.batcher.last.failed) == (360, 40)


async def test_a_person_can_read_what_it_does(world: World) -> None:
    handle = await held(world)

    async def listed() -> bool:
        query = f"HoldfastKind = 'batch' AND HoldfastState = 'in_progress' AND WorkflowId = '{handle.id}'"
        return [w.id async for w in world.client.list_workflows(query)] == [handle.id]

    await world.until(listed, "in lists")
    state = await handle.query(BatchWorkflow.state)
    assert state.under_way == (0, 1)
    assert state.timings == QUICK
    await handle.execute_update(BatchWorkflow.cancel, CancelBatch())
    assert await ended(handle) == "cancelled"
