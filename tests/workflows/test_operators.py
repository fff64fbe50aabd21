"""What a person does in Temporal's UI, and work that was lost on its way to a host."""

from fleet import ids
from fleet.inventory import EngineRef
from fleet.states import InstanceState
from tests.workflows.hosts import FakeEngine, FakeHost
from tests.workflows.world import World
from workflows.instance import InstanceWorkflow


async def test_cancelled_instance_is_stopped_in_order_and_replaced(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(1)
    cancelled = world.fleet.of(name)[0].instance_id
    await world.instance(cancelled).cancel()
    await world.until(lambda: cancelled not in {i.instance_id for i in world.fleet.of(name)}, "the cancelled one gone")
    await world.until_ready(name, 1)
    assert [r.engine_gone for r in world.fleet.released] == [True]
    assert len(world.live_engines(name)) == 1


async def test_instance_cancelled_while_it_looks_for_room_is_replaced(world: World) -> None:
    name = await world.deploy(1)
    await world.until(lambda: world.fleet.of(name) and world.fleet.of(name)[0].state is InstanceState.PENDING)
    cancelled = world.fleet.of(name)[0].instance_id
    await world.instance(cancelled).cancel()
    await world.until(lambda: cancelled not in {i.instance_id for i in world.fleet.of(name)}, "the cancelled one gone")
    await world.add_host()
    await world.until(lambda: len(world.fleet.of(name)) == 1, "its replacement")
    await world.instance(world.fleet.of(name)[0].instance_id).signal(InstanceWorkflow.capacity_changed)
    await world.until_ready(name, 1)


async def test_cancelling_a_deployment_changes_nothing(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(1)
    engine = world.live_engines(name)[0]
    await world.deployment(name).cancel()
    await world.scale(name, 2)
    await world.until_ready(name, 2)
    assert engine.running
    await world.delete(name)
    await world.until_gone(name)


async def test_cancelling_a_host_changes_nothing(world: World) -> None:
    host = await world.add_host(registered=True)
    await world.host_workflow(host).cancel()
    await world.until(lambda: host.leases >= 1 and host.holds_lease, "a lease")
    name = await world.deploy_ready(1)
    assert world.live_engines(name)
    assert world.host_state(host) == "ready"


async def test_start_that_was_lost_with_a_host_process_is_asked_for_again(world: World) -> None:
    host, lost = await _host_that_loses_the_next_start(world)
    instance = await world.run_instance()
    await world.until(lambda: len(lost) == 1, "a start that is lost")
    ref = EngineRef(instance_id=instance.id.removeprefix("instance/"), fence=1)
    await instance.signal(ids.ENGINE_UNKNOWN_SIGNAL, ref.model_copy(update={"fence": 7}))
    await instance.signal(ids.ENGINE_UNKNOWN_SIGNAL, ref)
    engine = await world.until_engine(instance, fence=1)
    await world.until_state(instance, InstanceState.READY)
    assert host.live == [engine]
    assert world.fleet.released == [], "it keeps its room"


async def test_stop_of_what_never_reached_its_host_does_not_wait_for_it(world: World) -> None:
    _, lost = await _host_that_loses_the_next_start(world)
    name = await world.deploy(1)
    await world.until(lambda: len(lost) == 1, "a start that is lost")
    instance_id = world.fleet.of(name)[0].instance_id
    await world.delete(name)
    await world.until(lambda: world.fleet.of(name)[0].state is InstanceState.DRAINING, "draining")
    ref = EngineRef(instance_id=instance_id, fence=1)
    await world.instance(instance_id).signal(ids.ENGINE_UNKNOWN_SIGNAL, ref)
    await world.until_gone(name)
    assert [r.engine_gone for r in world.fleet.released] == [True]


async def _host_that_loses_the_next_start(world: World) -> tuple[FakeHost, list[FakeEngine]]:
    """It takes the task from Temporal and dies before it has written anything down."""
    host = await world.add_host()
    lost: list[FakeEngine] = []
    start = host._start

    async def lose_first(launch: object, token: bytes) -> None:
        if not lost:
            lost.append(FakeEngine(world.client, launch, token))  # type: ignore[arg-type]
        else:
            await start(launch, token)  # type: ignore[arg-type]

    host._start = lose_first  # type: ignore[method-assign]
    return host, lost
