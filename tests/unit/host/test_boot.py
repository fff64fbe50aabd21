"""What a host takes up again after its process, or its machine, was started anew."""

from tests.unit.host.waiting import eventually
from tests.unit.host.world import TOKEN, World


async def test_engine_of_the_same_boot_is_taken_up_with_its_token(world: World) -> None:
    world.records.begin_boot("first")
    process = await world.serving()
    world.records.begin_boot("first")
    await world.restart()
    before = world.temporal.beaten(TOKEN)
    await eventually(lambda: world.temporal.beaten(TOKEN) > before)
    assert world.alive(process)


async def test_token_of_an_earlier_boot_is_not_used_and_what_runs_is_found(world: World) -> None:
    world.records.begin_boot("first")
    process = await world.serving()
    await world.supervisor.let_go()
    beaten = world.temporal.beaten(TOKEN)
    world.records.begin_boot("second")
    await world.restart()
    assert world.record() is None
    assert [ref.instance_id for ref in world.supervisor.running()] == ["chat/1-abcdef"]
    await world.take(token=b"second token")
    await eventually(lambda: world.temporal.beaten(b"second token"))
    assert world.temporal.beaten(TOKEN) == beaten
    assert world.alive(process)


async def test_an_engine_that_loads_is_nowhere_for_requests(world: World) -> None:
    await world.take("cold")
    await eventually(world.starts)
    assert world.supervisor.where("chat/1-abcdef") is None
    await world.take(fence=2)
    await world.ready(fence=2)
    where = world.supervisor.where("chat/1-abcdef")
    assert where is not None
    assert where.fence == 2
