"""Engines that live but do not work, and those that only look like it."""

import asyncio
import os
import signal
import time

import psutil

from fleet.instances import EngineExit, EnginePhase, Remedy
from tests.unit.host.fake_temporal import WANTED
from tests.unit.host.waiting import beats_pass, eventually
from tests.unit.host.world import TOKEN, World
from worker_host.runtime.protocol import ProcessRef


def stop(process: ProcessRef) -> None:
    os.kill(process.pid, signal.SIGSTOP)


async def phase(world: World, wanted: EnginePhase, within: float = 10) -> None:
    await eventually(lambda: world.control_plane.phases()[-1:] == [wanted], within, what=f"it is {wanted}")


async def hung(world: World) -> EngineExit:
    [error] = await eventually(lambda: world.temporal.failures[TOKEN], what="Temporal is told")
    exit_ = EngineExit.model_validate(error.details[0])
    assert (exit_.failure_class, exit_.exit_code, exit_.served, exit_.remedy) == ("hung", None, True, Remedy.HERE)
    assert exit_.summary == "engine ended (hung)"
    assert world.running() == []
    await world.gone()
    return exit_


async def looks_pass(world: World, seconds: float = 2.0) -> None:
    """Long enough for everything that the watch of this test does to have happened several times."""
    start = time.monotonic()
    await beats_pass(lambda: int((time.monotonic() - start) * 10), more=int(seconds * 10))


async def test_engine_that_does_not_answer_is_suspect_and_keeps_its_address(world: World) -> None:
    process = await world.serving()
    await phase(world, EnginePhase.READY)
    ready = world.control_plane.reports[-1]
    stop(process)
    await phase(world, EnginePhase.SUSPECT)
    suspect = world.control_plane.reports[-1]
    assert (suspect.url, suspect.pid, suspect.ready_since) == (ready.url, ready.pid, ready.ready_since)
    assert "not answered its health check" in suspect.message


async def test_engine_that_answers_again_is_ready_again(world: World) -> None:
    process = await world.serving()
    await phase(world, EnginePhase.READY)
    stop(process)
    await phase(world, EnginePhase.SUSPECT)
    os.kill(process.pid, signal.SIGCONT)
    await phase(world, EnginePhase.READY)
    assert world.alive(process)
    assert world.control_plane.phases().count(EnginePhase.READY) == 2


async def test_stopped_engine_is_killed_and_ends_as_hung(world: World) -> None:
    process = await world.serving(unresponsive_timeout_s=1)
    stop(process)
    exit_ = await hung(world)
    assert "not answered its health check" in exit_.hint
    assert "loading fine" in exit_.log_tail
    assert not psutil.pid_exists(process.pid) or not world.alive(process)


async def test_everything_that_a_hung_engine_has_started_is_killed_with_it(world: World) -> None:
    process = await world.serving("parent", unresponsive_timeout_s=1)
    [child] = psutil.Process(process.pid).children()
    stop(process)
    await hung(world)
    await eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


async def test_requests_that_do_not_get_on_end_the_engine(world: World) -> None:
    world.be("busy")
    await world.serving(stall_timeout_s=1)
    assert "have not got on" in (await hung(world)).hint
    assert EnginePhase.SUSPECT not in world.control_plane.phases()


async def test_busy_engine_that_gets_on_is_left_alone(world: World) -> None:
    world.be("busy")
    process = await world.serving(stall_timeout_s=1, idle_probe_s=1)
    for _ in range(30):
        world.get_on()
        await looks_pass(world, 0.1)
    assert world.alive(process)
    assert world.temporal.failures[TOKEN] == []


async def test_engine_that_gives_no_metrics_is_left_alone(world: World) -> None:
    world.be("dumb")
    world.be("busy")
    process = await world.serving(stall_timeout_s=1, idle_probe_s=1)
    await looks_pass(world, 3)
    assert world.alive(process)
    assert set(world.control_plane.phases()) == {EnginePhase.STARTING, EnginePhase.READY}


async def test_idle_engine_that_manages_no_token_ends_as_hung(world: World) -> None:
    await world.serving(idle_probe_s=1)
    world.be("stuck")
    assert "one-token requests" in (await hung(world)).hint


async def test_idle_engine_that_manages_one_token_is_left_alone(world: World) -> None:
    process = await world.serving(idle_probe_s=1)
    await looks_pass(world, 3)
    assert world.alive(process)


async def test_dead_engine_is_not_taken_for_a_hung_one(world: World) -> None:
    process = await world.serving()
    os.kill(process.pid, signal.SIGKILL)
    [error] = await eventually(lambda: world.temporal.failures[TOKEN])
    assert EngineExit.model_validate(error.details[0]).failure_class == "killed"


# -- together with the rest of its life ------------------------------------------------------------------------------


async def test_watch_goes_on_after_a_restart_of_the_host_process(world: World) -> None:
    process = await world.serving(unresponsive_timeout_s=2)
    await world.restart()
    stop(process)
    await phase(world, EnginePhase.SUSPECT)
    await hung(world)


async def test_suspect_engine_is_adopted_as_suspect_until_it_answers(world: World) -> None:
    process = await world.serving()
    stop(process)
    await phase(world, EnginePhase.SUSPECT)
    await world.supervisor.let_go()
    heard = len(world.control_plane.reports)
    await world.restart()
    await eventually(lambda: len(world.control_plane.reports) > heard)
    await world.take(token=b"second token")
    os.kill(process.pid, signal.SIGCONT)
    await phase(world, EnginePhase.READY)
    phases = world.control_plane.phases()[heard:]
    assert phases[0] is EnginePhase.SUSPECT
    assert phases.count(EnginePhase.READY) == 1, "nobody called it ready before it answered"
    assert world.starts() == [process.pid]


async def test_stop_of_a_suspect_engine_waits_for_nothing(world: World) -> None:
    world.be("busy")
    process = await world.serving()
    stop(process)
    await phase(world, EnginePhase.SUSPECT)
    world.temporal.answers[TOKEN] = WANTED
    began = time.monotonic()
    await world.gone()
    assert time.monotonic() - began < 4, "neither for its requests (20 s) nor for its manners (5 s)"
    assert world.temporal.cancellations == [TOKEN]


async def test_engine_that_hangs_while_it_drains_does_not_hold_up_the_stop(world: World) -> None:
    world.be("busy")
    process = await world.serving()
    world.temporal.answers[TOKEN] = WANTED
    await beats_pass(lambda: world.temporal.beaten(TOKEN))
    stop(process)
    await asyncio.wait_for(world.gone(), 14)


async def test_late_metrics_do_not_cut_a_drain_short(world: World) -> None:
    world.be("busy")
    process = await world.serving()
    world.be("dumb")
    world.temporal.answers[TOKEN] = WANTED
    await looks_pass(world, 3)
    assert world.alive(process), "it works so hard that it has no time for metrics"
    world.be("dumb", False)
    world.be("busy", False)
    await world.gone()
