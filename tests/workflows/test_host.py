"""Is a host alive, and who must know when it is not."""

import asyncio

from fleet.states import HostState
from tests.workflows.world import QUICK, World
from workflows.host import HostWorkflow


async def host_is(world: World, state: str) -> None:
    await world.until(lambda: world.host_state(world.hosts[0]) == state, f"host {state}")


async def test_host_that_takes_its_lease_up_again_is_ready_as_before(world: World) -> None:
    host = await world.add_host(registered=True)
    name = await world.deploy_ready(1)
    host.stop_lease()
    await host_is(world, "suspect")
    await world.until(lambda: host.leases == 2, "second lease")
    await host_is(world, "ready")
    assert [(e.asked_for, e.running) for e in host.engines] == [(1, True)]
    assert world.fleet.phase_of(name) == "ready"


async def test_all_instances_of_a_lost_host_are_placed_elsewhere(world: World) -> None:
    first = await world.add_host(registered=True)
    name = await world.deploy_ready(3)
    second = await world.add_host()
    await first.die()
    await world.until(lambda: len(second.live) == 3, "all elsewhere")
    await world.until_ready(name, 3)
    assert world.host_state(first) == "lost"
    assert "Heartbeat" in world.fleet.hosts[first.host_id].message
    assert {r.engine_gone for r in world.fleet.released} == {False}
    assert world.fleet.hosts[first.host_id].state is HostState.LOST


async def test_lost_host_that_registers_again_is_ready_and_serves_who_waits(world: World) -> None:
    host = await world.add_host(registered=True)
    name = await world.deploy_ready(1)
    await host.die()
    await host_is(world, "lost")
    await world.until_phase(name, "pending")
    for engine in host.live:  # the janitor of the host, before it takes work
        await world.until_stopped(engine)
    world.hosts_confirm_what_is_gone()
    await host.revive()
    await world.register(host)
    await host_is(world, "ready")
    await world.until_ready(name, 1)
    assert [i.fence for i in world.fleet.of(name)] == [3], "2 found no room"


async def test_first_registration_of_a_host_serves_who_waits(world: World) -> None:
    name = await world.deploy(1)
    await world.until_phase(name, "pending")
    await world.add_host(registered=True)
    await world.until_ready(name, 1)


async def test_registration_that_arrives_while_being_declared_lost_is_not_missed(world: World) -> None:
    host = await world.add_host(registered=True)
    world.fleet.tells_hosts.clear()
    await host.die()
    await host_is(world, "lost")
    await host.revive()
    await world.register(host)
    world.fleet.tells_hosts.set()
    await host_is(world, "ready")
    await world.until(lambda: host.leases == 2, "lease")


async def test_host_that_registers_and_never_takes_work_is_lost(world: World) -> None:
    host = await world.add_host()
    await host.die()
    await world.register(host, QUICK.model_copy(update={"join_grace": QUICK.lease_grace}))
    await host_is(world, "lost")


async def test_registering_again_does_not_disturb_a_lease(world: World) -> None:
    host = await world.add_host(registered=True)
    assert (await world.register(host)).generation == 2
    assert (await world.host_workflow(host).query(HostWorkflow.state)).state is HostState.READY
    assert host.leases == 1


async def test_lost_host_is_forgotten(world: World) -> None:
    host = await world.add_host(registered=True)
    await host.die()
    await host_is(world, "lost")
    handle = world.host_workflow(host)
    await handle.execute_update(HostWorkflow.forget)
    await asyncio.wait_for(handle.result(), 60)
    assert world.host_state(host) == "gone"


async def test_forgotten_host_loses_its_lease(world: World) -> None:
    host = await world.add_host(registered=True)
    handle = world.host_workflow(host)
    await handle.execute_update(HostWorkflow.forget)
    await asyncio.wait_for(handle.result(), 60)
    await world.until(lambda: not host.holds_lease, "end of the lease")
    assert world.host_state(host) == "gone"
