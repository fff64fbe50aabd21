"""One engine from its start to its end, and what the control plane and Temporal hear of it."""

import asyncio
import os
import signal
from datetime import timedelta
from typing import Any

import psutil
import pytest

from fleet.engines.llama_cpp import LlamaCpp
from fleet.instances import EngineExit, EnginePhase, Remedy
from tests.unit.host.fake_temporal import DOWN, WANTED
from tests.unit.host.waiting import beats_pass, eventually
from tests.unit.host.world import INSTANCE, TOKEN, World
from worker_host.proxy import Running


async def failure(world: World, token: bytes = TOKEN) -> EngineExit:
    """What Temporal is told when the engine has ended by itself."""
    [error] = await eventually(lambda: world.temporal.failures[token], what="Temporal is told")
    assert error.type == "EngineExited"
    assert error.non_retryable
    [details] = error.details
    exit_ = EngineExit.model_validate(details)
    assert str(error) == f"EngineExited: {exit_.summary}"
    return exit_


async def test_engine_starts_becomes_ready_and_says_where_it_is(world: World) -> None:
    process = await world.serving("loading")
    await eventually(lambda: world.control_plane.phases()[-1:] == [EnginePhase.READY])
    reports = world.control_plane.reports
    assert [r.phase for r in reports] == [EnginePhase.STARTING, EnginePhase.READY]
    assert [r.sequence for r in reports] == sorted({r.sequence for r in reports})
    starting, ready = reports
    assert (starting.url, starting.pid, starting.ready_since) == (None, process.pid, None)
    record = world.record()
    assert record is not None
    assert ready.url == f"https://127.0.0.1:7/engines/{INSTANCE}"
    assert world.supervisor.where(INSTANCE) == Running(1, record.port)
    assert world.supervisor.where("chat/2-x") is None
    assert (ready.pid, ready.fence, ready.ready_since) == (process.pid, 1, record.ready_since)
    assert f"--port {record.port} " in " ".join(psutil.Process(process.pid).cmdline())


async def test_heartbeats_carry_how_the_engine_is(world: World) -> None:
    process = await world.serving()
    await eventually(lambda: ({"pid": process.pid, "ready": True},) in world.temporal.beats[TOKEN])


async def test_metrics_of_an_engine_can_be_read_while_it_serves(world: World) -> None:
    assert await world.supervisor.metrics(INSTANCE) is None
    await world.serving()
    assert "llamacpp:requests_processing 0" in (await world.supervisor.metrics(INSTANCE) or "")


async def test_secrets_are_opened_for_the_engine_only_and_never_shown(world: World) -> None:
    await world.take("unknown")
    exit_ = await failure(world)
    assert "with token a-secret-value" in world.log()
    assert "with token ********" in exit_.log_tail
    assert "a-secret-value" not in exit_.model_dump_json()
    kept = [path.read_text() for path in (world.folder / "host").rglob("*.json")]
    assert not [text for text in kept if "a-secret-value" in text]


async def test_engine_that_is_installed_first_says_so(world: World) -> None:
    world.engines.here = False
    await world.serving()
    await eventually(lambda: EnginePhase.READY in world.control_plane.phases())
    assert EnginePhase.DOWNLOADING in world.control_plane.phases() or world.starts()


async def test_engine_that_cannot_be_installed_fails_with_the_installers_words(world: World) -> None:
    world.engines.here, world.engines.broken = False, "pip: [Errno 28] No space left on device"
    await world.take()
    exit_ = await failure(world)
    assert (exit_.exit_code, exit_.failure_class) == (None, "disk_full")
    assert exit_.log_tail == world.engines.broken
    assert exit_.summary == "engine did not start (disk_full)"
    await world.gone()


async def test_binary_that_is_not_there_fails_the_start(world: World) -> None:
    world.engines.binary = world.folder / "nonexistent"
    await world.take()
    assert "nonexistent" in (await failure(world)).log_tail
    await world.gone()


async def test_argument_that_no_process_can_be_given_fails_the_start(world: World) -> None:
    await world.take(args=("--chat-template", "a\0b"))
    exit_ = await failure(world)
    assert "null byte" in exit_.log_tail
    assert world.starts() == []
    await world.gone()


async def test_value_sealed_for_another_host_fails_the_start(world: World) -> None:
    launch = world.launch()
    placement = launch.placement.model_copy(update={"env_for_host": {"TOKEN": "sealed:v1:AAAA"}})
    await world.supervisor.take(launch.model_copy(update={"placement": placement}), TOKEN)
    assert "sealed with another" in (await failure(world)).log_tail
    await world.gone()


async def test_engine_that_crashes_while_loading_is_classified_by_its_log(world: World) -> None:
    await world.take("unknown")
    exit_ = await failure(world)
    assert (exit_.exit_code, exit_.failure_class, exit_.remedy, exit_.served) == (
        1,
        "unsupported_arch",
        Remedy.NEVER,
        False,
    )
    assert "qwen99" in exit_.log_tail
    await world.gone()


async def test_engine_that_says_nothing_is_classified_by_its_exit(world: World) -> None:
    await world.take("silent")
    exit_ = await failure(world)
    assert (exit_.exit_code, exit_.failure_class, exit_.remedy) == (3, "unknown", Remedy.HERE)


async def test_engine_that_is_killed_while_serving_is_reported_at_once(world: World) -> None:
    process = await world.serving()
    os.kill(process.pid, signal.SIGKILL)
    exit_ = await failure(world)
    assert (exit_.exit_code, exit_.failure_class, exit_.served, exit_.remedy) == (-9, "killed", True, Remedy.HERE)
    assert exit_.summary == "engine exited with -9 (killed)"
    await world.gone()


@pytest.mark.parametrize(
    ("model", "stage"), [("hang", "does not answer yet"), ("stuck", "does not answer yet"), ("cold", "says 503")]
)
async def test_engine_that_is_not_ready_in_time_is_killed_as_slow(world: World, model: str, stage: str) -> None:
    await world.take(model, start_timeout_s=1)
    exit_ = await asyncio.wait_for(failure(world), 10)
    assert (exit_.failure_class, exit_.exit_code, exit_.remedy) == ("slow", None, Remedy.HERE)
    assert "not ready after 1 s" in exit_.hint
    assert stage in exit_.hint
    assert not world.running()
    await world.gone()


async def test_engine_that_refuses_its_first_request_fails_with_its_words_instead_of_waiting(world: World) -> None:
    await world.take("picky", start_timeout_s=600)
    exit_ = await asyncio.wait_for(failure(world), 10)
    assert (exit_.failure_class, exit_.remedy) == ("refused", Remedy.NEVER)
    assert "this model has no words" in exit_.hint
    assert not world.running()
    await world.gone()


async def test_wanted_cancellation_stops_the_engine_and_is_answered(world: World) -> None:
    process = await world.serving()
    world.temporal.answers[TOKEN] = WANTED
    await eventually(lambda: world.temporal.cancellations == [TOKEN], what="the cancellation is answered")
    assert not world.alive(process)
    await world.gone()
    assert world.temporal.failures[TOKEN] == []


async def test_cancellation_lets_running_requests_finish(world: World) -> None:
    process = await world.serving()
    world.be_busy(busy=True)
    world.temporal.answers[TOKEN] = WANTED
    await beats_pass(lambda: world.temporal.beaten(TOKEN), more=10)
    assert world.alive(process)
    world.be_busy(busy=False)
    await world.gone()
    assert world.temporal.cancellations == [TOKEN]


async def test_an_engine_that_leaves_finishes_what_is_on_its_way_and_gets_nothing_new(world: World) -> None:
    process = await world.serving()
    assert world.supervisor.where(INSTANCE) is not None
    world.in_flight = 1  # the engine has not noticed it yet
    world.temporal.answers[TOKEN] = WANTED
    await eventually(lambda: world.supervisor.where(INSTANCE) is None)
    await beats_pass(lambda: world.temporal.beaten(TOKEN), more=10)
    assert world.alive(process)
    world.in_flight = 0
    await world.gone()


async def test_requests_that_never_finish_are_cut_off_after_the_drain(world: World) -> None:
    launch = world.launch()
    world.be_busy(busy=True)
    await world.supervisor.take(launch.model_copy(update={"drain": launch.drain * 0.02}), TOKEN)
    process = await world.ready()
    world.temporal.answers[TOKEN] = WANTED
    await world.gone()
    assert not world.alive(process)


async def test_engine_that_ignores_the_polite_signal_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaCpp, "stop_grace_s", 0.2)
    await world.serving("deaf")
    world.temporal.answers[TOKEN] = WANTED
    await world.gone()
    assert world.temporal.cancellations == [TOKEN]


async def test_cancellation_during_the_start_stops_it(world: World) -> None:
    await world.take("hang")
    await eventually(world.starts)
    world.temporal.answers[TOKEN] = WANTED
    await world.gone()
    assert world.temporal.cancellations == [TOKEN]
    assert EnginePhase.READY not in world.control_plane.phases()


async def test_look_notices_a_cancellation_before_the_next_heartbeat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_host.telling.BEAT_S", 3600)
    await world.serving()
    world.temporal.answers[TOKEN] = WANTED
    await world.supervisor.look(_ref(world))
    await asyncio.wait_for(world.gone(), 10)
    assert world.temporal.beaten(TOKEN) == 2


async def test_heartbeats_are_as_frequent_as_temporal_waits_for_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_host.telling.BEAT_S", 3600)
    launch = world.launch("fine", 1)
    await world.supervisor.take(launch, TOKEN, timedelta(seconds=0.15))
    await beats_pass(lambda: world.temporal.beaten(TOKEN))
    await world.restart()
    await beats_pass(lambda: world.temporal.beaten(TOKEN))
    await world.supervisor.take(launch, b"second token", timedelta(seconds=0.15))
    await beats_pass(lambda: world.temporal.beaten(b"second token"))


async def test_death_is_told_again_and_again_until_temporal_has_heard_it(world: World) -> None:
    process = await world.serving()
    world.temporal.answers[TOKEN] = DOWN
    os.kill(process.pid, signal.SIGKILL)
    await eventually(lambda: (r := world.record()) and r.ended, what="the end is on disk")
    await beats_pass(lambda: world.temporal.beaten(TOKEN))
    assert world.record() is not None
    del world.temporal.answers[TOKEN]
    assert (await failure(world)).exit_code == -9
    await world.gone()


async def test_reports_that_nobody_wants_stop_nothing(world: World) -> None:
    world.control_plane.gone = True
    process = await world.serving()
    await beats_pass(lambda: world.temporal.beaten(TOKEN))
    assert world.alive(process)


async def test_each_attempt_has_a_log_of_its_own(world: World) -> None:
    for fence in (1, 2, 3):
        token = f"token {fence}".encode()
        await world.take("unknown", token, fence)
        await failure(world, token)
        await world.gone()
    assert [world.log(attempt).count("qwen99") for attempt in (1, 2, 3)] == [1, 1, 1]
    assert world.logs.latest(INSTANCE) == 3


def _ref(world: World) -> Any:
    record = world.record()
    assert record is not None
    return record.ref
