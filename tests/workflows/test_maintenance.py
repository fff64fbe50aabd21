"""A person takes a host out of service: nothing new goes there, and what runs there leaves in order."""

import asyncio
from datetime import UTC, datetime, timedelta

from fleet.hosts import Host, Maintain, Upkeep
from fleet.states import HostState, Maintenance
from tests.workflows.hosts import FakeHost
from tests.workflows.world import QUICK, World
from workflows.host import HostWorkflow

DRAIN = Maintain(mode=Upkeep.DRAIN, reason="new disk")
CORDON = Maintain(mode=Upkeep.CORDON)
RESUME = Maintain()
LOOKS_OFTEN = QUICK.model_copy(update={"drain_look": timedelta(milliseconds=100)})


async def ask(world: World, host: FakeHost, level: Maintain) -> int:
    return (await world.host_workflow(host).execute_update(HostWorkflow.maintain, level)).generation


def known(world: World, host: FakeHost) -> Host:
    return world.fleet.hosts[host.host_id]


async def until(world: World, host: FakeHost, maintenance: Maintenance) -> None:
    await world.until(lambda: known(world, host).maintenance is maintenance, f"host {maintenance}")


async def test_drained_host_ends_empty_and_no_replica_was_missing(world: World) -> None:
    first = await world.add_host(registered=True)
    name = await world.deploy_ready(2)
    second = await world.add_host(registered=True)
    world.fleet.fewest_ready[name] = 2
    await ask(world, first, DRAIN)
    await until(world, first, Maintenance.DRAINED)
    await world.until_ready(name, 2)
    assert (len(first.live), len(second.live)) == (0, 2)
    assert world.fleet.fewest_ready[name] == 2
    assert known(world, first).maintenance_message == "new disk: nothing runs here any more"
    assert {r.engine_gone for r in world.fleet.released} == {True}
    assert (known(world, first).state, first.holds_lease, first.leases) == (HostState.READY, True, 1)


async def test_cordoned_host_keeps_what_it_has_and_takes_nothing_new(world: World) -> None:
    host = await world.add_host(registered=True)
    name = await world.deploy_ready(1)
    await ask(world, host, CORDON)
    await until(world, host, Maintenance.CORDONED)
    await world.scale(name, 2)
    await world.until(lambda: [i.state for i in world.fleet.of(name)] == ["ready", "pending"], "one waits")
    await ask(world, host, RESUME)
    await world.until_ready(name, 2)
    assert known(world, host).maintenance is Maintenance.NONE


async def test_drain_without_room_elsewhere_keeps_serving_and_says_why(world: World) -> None:
    host = await world.add_host()
    await world.register(host, LOOKS_OFTEN)
    await world.until(lambda: host.holds_lease, "lease")
    name = await world.deploy_ready(1)
    await ask(world, host, DRAIN)
    await world.until(lambda: "no host has room" in known(world, host).maintenance_message, "it says why")
    assert known(world, host).maintenance is Maintenance.DRAINING
    assert world.fleet.of(name)[0].instance_id in known(world, host).maintenance_message
    assert len(host.live) == 1
    other = await world.add_host(registered=True)
    await until(world, host, Maintenance.DRAINED)
    assert (len(host.live), len(other.live)) == (0, 1)


async def test_at_the_deadline_replicas_go_even_without_a_replacement(world: World) -> None:
    host = await world.add_host(registered=True)
    name = await world.deploy_ready(1)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    await ask(world, host, Maintain(mode=Upkeep.DRAIN, deadline=soon))
    await until(world, host, Maintenance.DRAINED)
    assert host.live == []
    await world.until_phase(name, "pending")


async def test_asking_twice_is_asking_once(world: World) -> None:
    first = await world.add_host(registered=True)
    name = await world.deploy_ready(1)
    await world.add_host(registered=True)
    assert [await ask(world, first, DRAIN), await ask(world, first, DRAIN)] == [1, 1]
    await until(world, first, Maintenance.DRAINED)
    assert await ask(world, first, DRAIN) == 1
    assert known(world, first).maintenance is Maintenance.DRAINED
    assert len(world.fleet.timeline) == 2, "one instance was replaced by one"
    await world.until_ready(name)


async def test_claim_made_in_the_moment_of_draining_leaves_too(world: World) -> None:
    first = await world.add_host(registered=True)
    world.fleet.answers.clear()
    name = await world.deploy(1)
    await world.until(lambda: world.fleet.claims, "claim whose owner does not know of it yet")
    second = await world.add_host(registered=True)
    await ask(world, first, DRAIN)
    await until(world, first, Maintenance.DRAINING)
    world.fleet.answers.set()
    await until(world, first, Maintenance.DRAINED)
    await world.until_ready(name)
    assert (len(first.live), len(second.live)) == (0, 1)


async def test_host_finds_out_by_itself_that_it_is_empty(world: World) -> None:
    """The word of claims that were given back was lost with a controller."""
    first = await world.add_host()
    await world.register(first, LOOKS_OFTEN)
    await world.until(lambda: first.holds_lease, "lease")
    await world.deploy_ready(1)
    second = await world.add_host(registered=True)
    world.fleet.tells_of_claims = False
    await ask(world, first, DRAIN)
    await world.until(lambda: second.live and not first.live, "moved")
    await until(world, first, Maintenance.DRAINED)


async def test_drained_host_that_is_resumed_serves_who_waits(world: World) -> None:
    host = await world.add_host(registered=True)
    await ask(world, host, DRAIN)
    await until(world, host, Maintenance.DRAINED)
    name = await world.deploy(1)
    await world.until(lambda: [i.state for i in world.fleet.of(name)] == ["pending"], "one that waits for word")
    await ask(world, host, RESUME)
    await world.until_ready(name)
    assert known(world, host).maintenance_message == ""


async def test_replicas_that_are_still_there_stay_when_the_host_is_resumed(world: World) -> None:
    host = await world.add_host(registered=True)
    name = await world.deploy_ready(2)
    before = {i.instance_id for i in world.fleet.of(name)}
    await ask(world, host, DRAIN)
    await world.until(lambda: len(world.fleet.of(name)) == 4, "their replacements wait for room")
    await ask(world, host, RESUME)
    await world.until_ready(name, 2)
    assert {i.instance_id for i in world.fleet.of(name)} == before


async def test_host_resumed_while_it_looks_who_is_left_is_not_drained_after_all(world: World) -> None:
    host = await world.add_host(registered=True)
    world.fleet.tells_hosts.clear()
    await ask(world, host, DRAIN)
    await until(world, host, Maintenance.DRAINING)
    await ask(world, host, RESUME)
    world.fleet.tells_hosts.set()
    await until(world, host, Maintenance.NONE)
    await world.deploy_ready(1)
    assert known(world, host).maintenance is Maintenance.NONE


async def test_host_lost_while_draining_is_lost_first_and_returns_cordoned(world: World) -> None:
    first = await world.add_host(registered=True)
    name = await world.deploy_ready(1)
    await ask(world, first, DRAIN)  # there is no room elsewhere
    await until(world, first, Maintenance.DRAINING)
    await first.die()
    await world.until(lambda: world.host_state(first) == "lost", "lost")
    assert known(world, first).maintenance is Maintenance.DRAINING
    await world.until(lambda: world.fleet.released, "given up")
    await first.revive()
    await world.register(first)
    await until(world, first, Maintenance.DRAINED)
    assert (world.host_state(first), world.fleet.phase_of(name)) == ("ready", "pending")
    await world.add_host(registered=True)
    await world.until_ready(name)


async def test_suspect_host_goes_on_draining_with_its_next_lease(world: World) -> None:
    first = await world.add_host(registered=True)
    await world.deploy_ready(1)
    await ask(world, first, DRAIN)
    first.stop_lease()
    await world.until(lambda: first.leases == 2, "second lease")
    await world.add_host(registered=True)
    await until(world, first, Maintenance.DRAINED)
    assert known(world, first).state is HostState.READY


async def test_lost_host_can_be_cordoned_before_it_returns(world: World) -> None:
    host = await world.add_host(registered=True)
    await host.die()
    await world.until(lambda: world.host_state(host) == "lost", "lost")
    await ask(world, host, CORDON)
    await until(world, host, Maintenance.CORDONED)
    await host.revive()
    await world.register(host)
    await world.until(lambda: world.host_state(host) == "ready" and host.holds_lease, "back")
    name = await world.deploy(1)
    await world.until_phase(name, "pending")


async def test_drain_survives_a_controller_that_is_killed_in_it(world: World) -> None:
    first = await world.add_host(registered=True)
    name = await world.deploy_ready(2)
    await world.add_host(registered=True)
    world.fleet.tells_hosts.clear()
    await ask(world, first, DRAIN)
    await world.until(lambda: world.fleet.asked_who_is_there == [first.host_id], "it looks who is left")
    await world.restart_controller()
    world.fleet.tells_hosts.set()
    await until(world, first, Maintenance.DRAINED)
    await world.until_ready(name, 2)
    assert len(world.fleet.timeline) == 4, "each was replaced once"


async def test_forgotten_host_does_not_drain_on(world: World) -> None:
    host = await world.add_host(registered=True)
    await world.deploy_ready(1)
    await ask(world, host, DRAIN)
    handle = world.host_workflow(host)
    await handle.execute_update(HostWorkflow.forget)
    await asyncio.wait_for(handle.result(), 60)
    await world.until(lambda: not host.holds_lease, "end of the lease")


async def test_drain_whose_deployment_was_terminated_says_so(world: World) -> None:
    host = await world.add_host(registered=True)
    name = await world.deploy_ready(1)
    await world.deployment(name).terminate()
    await ask(world, host, DRAIN)
    await world.until(lambda: "nobody looks after" in known(world, host).maintenance_message, "it says so")
    assert name in known(world, host).maintenance_message
    assert len(host.live) == 1


async def test_drain_goes_on_as_new_and_the_lease_is_taken_again(short_world: World) -> None:
    world = short_world
    first = await world.add_host()
    await world.register(first, QUICK)
    await world.until(lambda: first.holds_lease, "lease")
    name = await world.deploy_ready(1)
    handle = world.host_workflow(first)
    first_run = (await handle.describe()).run_id
    for n in range(60):
        await ask(world, first, DRAIN.model_copy(update={"reason": f"change {n}"}))
        if (await handle.describe()).run_id != first_run:
            break
    else:
        raise AssertionError("the workflow does not go on as new")
    await world.until(lambda: first.leases == 2, "lease of the next run")
    assert known(world, first).maintenance is Maintenance.DRAINING
    assert len(first.live) == 1
    await world.add_host(registered=True)
    await until(world, first, Maintenance.DRAINED)
    await world.until_ready(name)
