"""Who may stop an engine, who takes it over, and what a host does with those that nobody wants."""

import asyncio
import os
import signal
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from fleet.instances import EngineExit, EnginePhase, Remedy
from fleet.inventory import EngineRef
from tests.unit.host.fake_temporal import DOWN, GONE, NOT_OURS, WANTED, not_wanted
from tests.unit.host.waiting import beats_pass, eventually
from tests.unit.host.world import INSTANCE, TOKEN, World
from worker_host.runtime.process import ProcessRuntime
from worker_host.runtime.protocol import Job

SECOND = b"second token"


def sleeper(engine: EngineRef, world: World) -> Job:
    """A process that pretends to be ``engine`` and does not say where it listens."""
    log = world.folder / "stray.log"
    return Job(engine=engine, attempt=1, argv=("/bin/sleep", "60"), env={}, port=0, log=log)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            pytest.param(not_wanted(reason), id=reason)
            for reason in ("paused", "reset", "timed_out", "worker_shutdown", "not_found")
        ),
        pytest.param(DOWN, id="temporal is down"),
    ],
)
async def test_nothing_but_a_wanted_cancellation_stops_an_engine(world: World, answer: Exception) -> None:
    process = await world.serving()
    world.temporal.answers[TOKEN] = answer
    await beats_pass(lambda: world.temporal.beaten(TOKEN))
    assert world.alive(process)
    assert world.temporal.cancellations == []
    record = world.record()
    assert record is not None
    assert record.token is not None, "it is still answered for"


@pytest.mark.parametrize("answer", [GONE, NOT_OURS])
async def test_engine_whose_token_is_void_serves_on_and_is_adopted_by_the_next(world: World, answer: Exception) -> None:
    process = await world.serving()
    world.temporal.answers[TOKEN] = answer
    await eventually(lambda: (r := world.record()) and r.token is None, what="the token is given up")
    heard = len(world.control_plane.reports)
    await world.take(token=SECOND)
    await beats_pass(lambda: world.temporal.beaten(SECOND))
    assert world.alive(process)
    assert world.starts() == [process.pid]
    report = await eventually(lambda: world.control_plane.reports[heard:], what="it says again where it is")
    assert (report[0].phase, report[0].pid) == (EnginePhase.READY, process.pid)


async def test_taking_the_same_engine_twice_is_one_process(world: World) -> None:
    await world.take()
    await world.take(token=SECOND)
    process = await world.ready()
    await beats_pass(lambda: world.temporal.beaten(SECOND))
    before = world.temporal.beaten(TOKEN)
    await beats_pass(lambda: world.temporal.beaten(SECOND))
    assert world.temporal.beaten(TOKEN) == before, "the old token is of no use any more"
    assert world.starts() == [process.pid]


async def test_higher_fence_replaces_the_engine(world: World) -> None:
    old = await world.serving()
    world.temporal.answers[TOKEN] = WANTED
    new = await world.serving(token=SECOND, fence=2)
    assert not world.alive(old)
    assert world.alive(new)
    assert [engine.fence for engine, _ in world.running()] == [2]


async def test_higher_fence_replaces_an_engine_that_nobody_cancelled(world: World) -> None:
    """Temporal refuses a cancellation that nobody asked for; the open activity must end all the same."""
    await world.serving()
    await world.serving(token=SECOND, fence=2)
    [error] = world.temporal.failures[TOKEN]
    exit_ = EngineExit.model_validate(error.details[0])
    assert (exit_.failure_class, exit_.remedy, exit_.served) == ("unwanted", Remedy.HERE, True)
    assert exit_.summary == "engine ended (unwanted)"


async def test_lower_fence_is_refused_for_good(world: World) -> None:
    process = await world.serving(fence=2)
    with pytest.raises(ApplicationError, match="fence 2 already") as refused:
        await world.take(token=SECOND, fence=1)
    assert (refused.value.type, refused.value.non_retryable) == ("StaleFence", True)
    assert world.alive(process)
    assert world.temporal.beaten(SECOND) == 0


async def test_engine_that_is_not_here_can_be_looked_at(world: World) -> None:
    await world.supervisor.look(EngineRef(instance_id="nobody/1", fence=1))
    assert world.supervisor.running() == []


# -- after a crash of the host process ----------------------------------------------------------------------------


async def test_next_host_process_goes_on_with_engine_and_token(world: World) -> None:
    process = await world.serving()
    await world.restart()
    await beats_pass(lambda: world.temporal.beaten(TOKEN))
    assert await world.ready() == process
    assert world.starts() == [process.pid]
    sequences = [r.sequence for r in world.control_plane.reports]
    assert sequences == sorted(set(sequences))
    world.temporal.answers[TOKEN] = WANTED
    await world.gone()
    assert world.temporal.cancellations == [TOKEN]


async def test_engine_that_was_still_loading_is_adopted_and_waited_for(world: World) -> None:
    await world.take("loading")
    [pid] = await eventually(world.starts)
    await world.restart()
    assert (await world.ready()).pid == pid
    assert world.starts() == [pid]


async def test_engine_that_is_busy_is_not_asked_to_prove_itself_again(world: World) -> None:
    process = await world.serving()
    world.be_busy(busy=True)
    await world.restart()
    await eventually(lambda: world.control_plane.phases()[-1] is EnginePhase.READY)
    assert world.alive(process)


async def test_death_while_no_host_process_ran_is_reported_by_the_next(world: World) -> None:
    process = await world.serving()
    await world.supervisor.let_go()
    os.kill(process.pid, signal.SIGKILL)
    await eventually(lambda: not world.alive(process))
    await world.restart()
    [error] = await eventually(lambda: world.temporal.failures[TOKEN])
    exit_ = EngineExit.model_validate(error.details[0])
    assert (exit_.exit_code, exit_.served) == (None, True)
    assert "did not start" not in exit_.summary
    await world.gone()


async def test_death_that_temporal_has_not_heard_of_is_on_disk(world: World) -> None:
    world.temporal.answers[TOKEN] = DOWN
    await world.take("unknown")
    await eventually(lambda: (r := world.record()) and r.ended)
    await world.restart()
    del world.temporal.answers[TOKEN]
    [error] = await eventually(lambda: world.temporal.failures[TOKEN])
    assert EngineExit.model_validate(error.details[0]).failure_class == "unsupported_arch"
    assert len(world.starts()) == 1, "it is not started a second time"
    await world.gone()


async def test_death_is_told_to_the_next_attempt_when_the_token_is_void(world: World) -> None:
    world.temporal.answers[TOKEN] = GONE
    await world.take("unknown")
    await eventually(lambda: (r := world.record()) and r.ended and r.token is None)
    await world.take("unknown", SECOND)
    [error] = await eventually(lambda: world.temporal.failures[SECOND])
    assert error.type == "EngineExited"
    await world.gone()


async def test_crash_between_starting_a_process_and_writing_it_down_loses_nothing(world: World) -> None:
    process = await world.serving()
    await world.supervisor.let_go()
    record = world.record()
    assert record is not None
    world.records.save(record.with_(process=None, ready_since=None))
    await world.restart()
    assert await world.ready() == process
    assert world.starts() == [process.pid]


async def test_crash_before_the_process_was_started_starts_it(world: World) -> None:
    await world.take()
    await world.supervisor.let_go()
    record = world.record()
    assert record is not None
    for _, process in world.running():
        runtime = ProcessRuntime(world.host_id)
        await runtime.kill(process)
        await runtime.wait(process)
    world.records.save(record.with_(process=None, attempt=1))
    await world.restart()
    assert world.alive(await world.ready())


@pytest.mark.parametrize("garbage", [b"", b"{", b"\xff\xfe\x00garbage", b'{"launch": 1}'])
async def test_record_that_cannot_be_read_costs_neither_the_engine_nor_the_host(world: World, garbage: bytes) -> None:
    old = await world.serving()
    await eventually(lambda: world.control_plane.phases()[-1:] == [EnginePhase.READY])
    await world.supervisor.let_go()
    heard = max(r.sequence for r in world.control_plane.reports)
    url = world.control_plane.reports[-1].url
    [path] = (world.folder / "host" / "engines").glob("*.json")
    path.write_bytes(garbage)
    await world.restart()
    assert not path.exists()
    assert world.supervisor.running() == [EngineRef(instance_id=INSTANCE, fence=1)], "its memory is in use"
    assert await world.serving(token=SECOND) == old
    assert world.starts() == [old.pid]
    report = await eventually(lambda: [r for r in world.control_plane.reports if r.sequence > heard])
    assert (report[-1].phase, report[-1].pid, report[-1].url) == (EnginePhase.READY, old.pid, url)
    os.kill(old.pid, signal.SIGKILL)
    [error] = await eventually(lambda: world.temporal.failures[SECOND], what="it is watched as any other")
    assert "loading fine" in EngineExit.model_validate(error.details[0]).log_tail


# -- suspended: this host was told to end, and its engines with it -------------------------------------------------


async def test_suspended_engine_is_withdrawn_and_finishes_its_requests_first(world: World) -> None:
    process = await world.serving()
    await eventually(lambda: world.control_plane.phases()[-1:] == [EnginePhase.READY])
    world.be_busy(busy=True)
    suspending = asyncio.create_task(world.supervisor.suspend())
    report = await eventually(lambda: world.control_plane.reports[2:])
    assert (report[0].phase, report[0].url) == (EnginePhase.STARTING, None)
    done, _ = await asyncio.wait({suspending}, timeout=0.2)
    assert not done
    assert world.alive(process)
    world.be_busy(busy=False)
    await suspending
    assert not world.alive(process)


async def test_suspended_engine_starts_again_once_it_is_confirmed(world: World) -> None:
    old = await world.serving()
    await world.supervisor.suspend()
    assert not world.alive(old)
    world.temporal.answers[TOKEN] = DOWN
    await world.restart()
    await beats_pass(lambda: world.temporal.beaten(TOKEN))
    assert world.starts() == [old.pid], "it may not be wanted any more"
    del world.temporal.answers[TOKEN]
    await eventually(lambda: len(world.starts()) == 2)
    new = await world.ready()
    assert new != old
    assert world.temporal.failures[TOKEN] == []


async def test_suspended_engine_that_is_not_wanted_any_more_stays_down(world: World) -> None:
    old = await world.serving()
    await world.supervisor.suspend()
    world.temporal.answers[TOKEN] = WANTED
    await world.restart()
    await world.gone()
    assert world.temporal.cancellations == [TOKEN]
    assert world.starts() == [old.pid]


async def test_suspended_engine_is_confirmed_by_a_new_attempt(world: World) -> None:
    await world.serving()
    await world.supervisor.suspend()
    world.temporal.answers[TOKEN] = GONE
    await world.restart()
    await eventually(lambda: (r := world.record()) and r.token is None)
    await world.take(token=SECOND)
    await eventually(lambda: len(world.starts()) == 2)
    await world.ready()


async def test_crash_while_suspending_adopts_what_still_runs(world: World) -> None:
    process = await world.serving()
    await world.supervisor.let_go()
    record = world.record()
    assert record is not None
    world.records.save(record.with_(suspended=True, ready_since=None))
    await world.restart()
    assert await world.ready() == process
    assert world.starts() == [process.pid]


# -- the janitor ---------------------------------------------------------------------------------------------------


async def test_janitor_stops_an_unknown_engine_in_its_second_round(world: World) -> None:
    process = await world.serving()
    await world.supervisor.keep_only(set())
    assert world.alive(process)
    await world.supervisor.keep_only(set())
    assert not world.alive(process)
    [error] = world.temporal.failures[TOKEN]
    assert error.type == "EngineExited"
    assert world.record() is None


async def test_engine_that_is_known_again_in_time_stays(world: World) -> None:
    process = await world.serving()
    wanted = {EngineRef(instance_id=INSTANCE, fence=1)}
    for keep in (set[EngineRef](), wanted, set[EngineRef](), wanted):
        await world.supervisor.keep_only(keep)
    assert world.alive(process)


async def test_returning_host_stops_at_once_what_is_not_its_own_any_more(world: World) -> None:
    await world.serving()
    world.temporal.answers[TOKEN] = GONE
    await world.supervisor.keep_only({EngineRef(instance_id=INSTANCE, fence=2)}, at_once=True)
    assert world.running() == []
    assert world.record() is None


async def test_janitor_does_not_wait_for_requests_even_while_the_engine_drains(world: World) -> None:
    await world.serving()
    world.be_busy(busy=True)
    world.temporal.answers[TOKEN] = WANTED
    await beats_pass(lambda: world.temporal.beaten(TOKEN))
    assert world.running()
    await world.supervisor.keep_only(set(), at_once=True)
    assert world.running() == []


async def test_strays_that_no_record_speaks_of_are_seen_and_stopped(world: World, runtime: ProcessRuntime) -> None:
    stray = EngineRef(instance_id="other/1-b", fence=7)
    process = await runtime.start(sleeper(stray, world))
    await eventually(lambda: world.supervisor.running() == [stray])
    await world.supervisor.keep_only({stray}, at_once=True)
    assert await runtime.alive(process)
    await world.supervisor.keep_only(set(), at_once=True)
    assert not await runtime.alive(process)


async def test_stray_whose_port_nobody_knows_is_replaced(world: World, runtime: ProcessRuntime) -> None:
    same = EngineRef(instance_id=INSTANCE, fence=1)
    stray = await runtime.start(sleeper(same, world))
    await eventually(lambda: runtime.find(same))
    new = await world.serving()
    assert not await runtime.alive(stray)
    assert [process for _, process in world.running()] == [new]


async def test_stray_under_an_older_fence_is_stopped_before_the_new_engine_starts(
    world: World, runtime: ProcessRuntime
) -> None:
    old = EngineRef(instance_id=INSTANCE, fence=1)
    process = await runtime.start(sleeper(old, world))
    await eventually(lambda: runtime.find(old))
    await world.take(fence=2)
    assert not await runtime.alive(process)
    await world.ready(fence=2)


async def test_engines_may_come_and_go_while_they_are_counted(world: World) -> None:
    await world.serving()
    [known] = world.supervisor._engines.values()

    class Coming:
        """While it is asked, another engine is taken on."""

        @property
        def record(self) -> Any:
            world.supervisor._engines["another/1"] = known
            return known.record

    world.supervisor._engines["coming/1"] = Coming()  # type: ignore[assignment]
    assert world.supervisor.running() == [known.record.ref]
    del world.supervisor._engines["coming/1"]
    del world.supervisor._engines["another/1"]
