"""A host's part of a gang: what it promises, and how it runs a follower."""

import socket
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from fleet.gangs import Acceptance
from fleet.instances import EngineLaunch, EnginePhase
from fleet.inventory import AcceleratorKind, EngineRef, Gpu
from fleet.placement.request import Member
from tests.unit.host.fake_temporal import WANTED
from tests.unit.host.waiting import eventually
from tests.unit.host.world import INSTANCE, SEALER, World

GPU = Gpu(uuid="GPU-1", kind=AcceleratorKind.NVIDIA, name="H100", memory_bytes=1 << 30, index=0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def part(world: World, rank: int = 1, fence: int = 1, model: str = "fine", **member: Any) -> EngineLaunch:
    """Of a gang that has another host, which leads (``rank`` 1) or follows (0)."""
    (world.models / "fine").touch()
    path = str(world.models / model)
    mine = {"ports": (free_port(),), "address": "127.0.0.1", "model_path": path, **member}
    here = Member(host_id=world.host_id, env_for_host={"TOKEN": SEALER.seal("a-secret-value")}, **mine)
    other = Member(host_id="another", ports=(free_port(),), address="127.0.0.1", model_path=path)
    leader, follower = (other, here) if rank else (here, other)
    launch = world.launch(model, fence)
    placement = launch.placement.model_copy(update={**dict(leader), "followers": (follower,)})
    return launch.model_copy(update={"placement": placement, "rank": rank})


def lends_its_cards(world: World) -> None:
    """A stand-in for the program of followers: it opens its port, and that is all."""
    program = world.engines.binary.with_name("ggml-rpc-server")
    serve = "import socket, sys, time\nflags = dict(zip(sys.argv[1:], [*sys.argv[2:], '']))\n"
    serve += "listening = socket.create_server((flags['-H'], int(flags['-p'])))\ntime.sleep(1000)\n"
    program.write_text(f"{world.engines.binary.read_text().splitlines()[0]}\n{serve}")
    program.chmod(0o755)


def refusal(answer: Acceptance) -> tuple[str, str]:
    assert answer.refusal is not None
    return answer.refusal.failure_class, answer.refusal.log_tail


async def test_a_host_that_can_says_so_and_starts_nothing(world: World) -> None:
    lends_its_cards(world)
    assert await world.supervisor.accept(part(world)) == Acceptance()
    assert world.supervisor.running() == []
    assert world.record() is None


async def test_what_is_missing_is_installed_and_told_meanwhile(world: World) -> None:
    lends_its_cards(world)
    world.engines.here = False
    assert await world.supervisor.accept(part(world)) == Acceptance()
    world.engines.broken = "no network"
    assert "no network" in refusal(await world.supervisor.accept(part(world)))[1]


@pytest.mark.parametrize("rank", [0, 1])
async def test_reasons_to_say_no(world: World, rank: int) -> None:
    lends_its_cards(world)
    assert refusal(await world.supervisor.accept(part(world, rank, model="none")))[0] == "not_found"
    gone = part(world, rank, gpu_uuids=("GPU-1",))
    assert refusal(await world.supervisor.accept(gone))[0] == "no_device"
    world.gpus = (GPU.model_copy(update={"healthy": False, "reason": "fell off the bus"}),)
    assert "GPU-1 is not healthy: fell off the bus" in refusal(await world.supervisor.accept(gone))[1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        name, why = refusal(await world.supervisor.accept(part(world, rank, ports=(port,))))
    assert (name, str(port) in why) == ("port", True)


async def test_a_build_that_cannot_follow_says_no_and_can_still_lead(world: World) -> None:
    assert "ggml-rpc-server" in refusal(await world.supervisor.accept(part(world, rank=1)))[1]
    assert await world.supervisor.accept(part(world, rank=0)) == Acceptance()


async def test_after_a_promise_nothing_older_is_taken(world: World) -> None:
    lends_its_cards(world)
    await world.supervisor.accept(part(world, fence=3))
    with pytest.raises(ApplicationError) as refused:
        await world.supervisor.take(part(world, fence=2), b"token")
    assert refused.value.type == "StaleFence"
    with pytest.raises(ApplicationError):
        await world.supervisor.accept(part(world, fence=2))
    await world.supervisor.take(part(world, fence=3), b"token")
    await world.ready(fence=3)
    assert await world.supervisor.accept(part(world, fence=3)) == Acceptance(runs=True)


async def test_a_follower_is_ready_when_its_port_accepts_and_answers_no_requests(world: World) -> None:
    lends_its_cards(world)
    launch = part(world)
    await world.supervisor.take(launch, b"token")
    process = await world.ready()
    reports = await eventually(
        lambda: [r for r in world.control_plane.reports if r.phase is EnginePhase.READY], what="reported"
    )
    assert [(r.rank, r.url) for r in reports] == [(1, None)]
    assert world.supervisor.where(INSTANCE) is None
    assert await world.supervisor.metrics(INSTANCE) is None
    record = world.record()
    assert record is not None
    assert record.port == launch.here.ports[0]
    assert world.alive(process)


async def test_a_follower_is_adopted_by_the_next_process_and_stopped_when_it_is_not_wanted(world: World) -> None:
    lends_its_cards(world)
    await world.supervisor.take(part(world), b"token")
    process = await world.ready()
    await world.restart()
    await world.supervisor.take(part(world), b"second")
    assert await world.ready() == process
    world.temporal.answers[b"second"] = WANTED
    await world.supervisor.look(EngineRef(instance_id=INSTANCE, fence=1))
    await world.gone()
    assert not world.alive(process)


async def test_a_leader_that_would_go_on_alone_is_started_when_its_followers_can_be_reached(world: World) -> None:
    launch = part(world, rank=0)
    follower = launch.placement.followers[0]
    await world.supervisor.take(launch, b"token")
    waits = f"waiting for {follower.host_id}"
    await eventually(lambda: waits in [r.message for r in world.control_plane.reports], what=waits)
    assert world.starts() == []
    with socket.create_server((follower.address, follower.ports[0])):
        assert world.alive(await world.ready())


async def test_a_leader_whose_gang_is_broken_is_stopped_without_waiting_for_its_requests(world: World) -> None:
    launch = part(world, rank=0)
    world.be_busy(busy=True)
    follower = launch.placement.followers[0]
    with socket.create_server((follower.address, follower.ports[0])):
        await world.supervisor.take(launch, b"token")
        process = await world.ready()
    world.temporal.answers[b"token"] = WANTED
    await world.supervisor.hurry(EngineRef(instance_id=INSTANCE, fence=1))
    await world.gone()
    assert not world.alive(process)
