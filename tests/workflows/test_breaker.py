"""Too many hosts fall silent at once: nothing is replaced until a person approves, or it has passed."""

import asyncio
from datetime import timedelta

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from fleet.hosts import Host, Maintain, Upkeep
from fleet.policy.breaker import HostHealth
from fleet.states import HostState, Maintenance
from fleet.timings import Timings
from tests.workflows.hosts import FakeHost
from tests.workflows.world import QUICK, World
from workflows.host import HostWorkflow

SUSPECT = HostHealth(HostState.SUSPECT)
ASKS_OFTEN = QUICK.model_copy(update={"breaker_pause": timedelta(milliseconds=200)})


async def lost_with_another(world: World, timings: Timings = QUICK) -> tuple[FakeHost, FakeHost, str]:
    """(the lost host, whose replacement is paused; one with room; a deployment with a replica on the first)."""
    lost = await world.add_host()
    await world.register(lost, timings)
    await world.until(lambda: lost.holds_lease, "lease")
    name = await world.deploy_ready(1)
    other = await world.add_host()
    world.fleet.others = [SUSPECT]
    await lost.die()
    await world.until(lambda: known(world, lost).replacement_paused, "replacement paused")
    return lost, other, name


def known(world: World, host: FakeHost) -> Host:
    return world.fleet.hosts[host.host_id]


async def approve(world: World, host: FakeHost) -> None:
    await world.host_workflow(host).execute_update(HostWorkflow.approve_replacement)


async def test_replicas_of_a_host_that_is_lost_with_too_many_others_wait_for_approval(world: World) -> None:
    lost, other, name = await lost_with_another(world)
    paused = known(world, lost)
    assert (paused.state, paused.lost_at is not None) == (HostState.LOST, True)
    assert "2 of 2 hosts" in paused.summary
    assert f"holdfast approve-replacement {lost.host_id}" in paused.summary
    assert (other.engines, world.fleet.released) == ([], [])
    assert world.fleet.phase_of(name) == "ready", "its instance was not told"
    await approve(world, lost)
    await world.until(lambda: len(other.live) == 1, "engine elsewhere")
    await world.until_ready(name)
    await world.until(lambda: not known(world, lost).replacement_paused, "no pause any more")
    assert known(world, lost).state is HostState.LOST


async def test_host_that_returns_before_anybody_approved_goes_on_as_if_nothing_had_happened(world: World) -> None:
    lost, other, name = await lost_with_another(world)
    before = world.fleet.of(name)
    await lost.revive()
    await world.register(lost)
    await world.until(lambda: world.host_state(lost) == "ready" and lost.holds_lease, "ready again")
    back = known(world, lost)
    assert (back.replacement_paused, back.summary, back.lost_at) == (False, "", None)
    assert (world.fleet.of(name), world.fleet.released, other.engines) == (before, [], [])
    assert [e.running for e in lost.engines] == [True]


async def test_host_that_alone_stays_away_when_the_others_are_back_is_replaced_without_approval(world: World) -> None:
    lost, other, name = await lost_with_another(world, ASKS_OFTEN)
    await world.until(lambda: len(world.fleet.asked_the_breaker) > 2, "asked again")
    assert other.engines == []
    world.fleet.others = [HostHealth(HostState.READY)]
    await world.until(lambda: len(other.live) == 1, "engine elsewhere")
    await world.until_ready(name)
    assert not known(world, lost).replacement_paused


async def test_approval_is_refused_when_nothing_waits_for_it(world: World) -> None:
    host = await world.add_host(registered=True)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await approve(world, host)
    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.type == "NothingToApprove"


async def test_second_loss_asks_for_a_second_approval(world: World) -> None:
    lost, other, name = await lost_with_another(world)
    await approve(world, lost)
    await world.until(lambda: len(other.live) == 1, "engine elsewhere")
    await world.until_ready(name)
    for engine in lost.live:
        await world.until_stopped(engine)
    world.hosts_confirm_what_is_gone()
    await lost.revive()
    await world.register(lost)
    await world.until(lambda: world.host_state(lost) == "ready" and lost.holds_lease, "ready again")
    world.fleet.room[other.host_id] = 1
    await world.deploy_ready(1)
    await lost.die()
    await world.until(lambda: known(world, lost).replacement_paused, "paused again")
    assert not known(world, lost).replacement_approved


async def test_lost_host_on_which_nothing_runs_asks_nobody(world: World) -> None:
    host = await world.add_host(registered=True)
    world.fleet.others = [SUSPECT] * 9
    await host.die()
    await world.until(lambda: world.host_state(host) == "lost" and not known(world, host).untold, "lost")
    assert not known(world, host).replacement_paused
    assert world.fleet.asked_the_breaker == []


async def test_waiting_host_can_be_forgotten(world: World) -> None:
    lost, _, _ = await lost_with_another(world)
    handle = world.host_workflow(lost)
    await handle.execute_update(HostWorkflow.forget)
    await asyncio.wait_for(handle.result(), 60)
    assert world.host_state(lost) == "gone"


async def test_pause_and_approval_survive_the_controller(world: World) -> None:
    lost, other, _ = await lost_with_another(world)
    await world.restart_controller()
    assert (await world.host_workflow(lost).query(HostWorkflow.state)).replacement_paused
    assert other.engines == []
    await approve(world, lost)
    await world.until(lambda: len(other.live) == 1, "engine elsewhere")


async def test_pause_survives_going_on_as_new(short_world: World) -> None:
    world = short_world
    lost, other, _ = await lost_with_another(world)
    handle = world.host_workflow(lost)
    first_run = (await handle.describe()).run_id
    for n in range(60):
        level = Maintain(mode=Upkeep.CORDON, reason=f"change {n}")
        await handle.execute_update(HostWorkflow.maintain, level)
        if (await handle.describe()).run_id != first_run:
            break
    else:
        raise AssertionError("the workflow does not go on as new")
    state = await handle.query(HostWorkflow.state)
    assert (state.state, state.replacement_paused, state.untold) == (HostState.LOST, True, True)
    assert state.maintenance is Maintenance.CORDONED
    assert other.engines == []
    await approve(world, lost)
    await world.until(lambda: len(other.live) == 1, "engine elsewhere")
