"""What every runtime of a host promises, asked of processes and of containers of a real Docker engine alike."""

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from fleet.inventory import EngineRef
from tests.contracts.conftest import ENGINE, Rig, children_of
from tests.unit.host.waiting import eventually
from worker_host.runtime.protocol import CannotStart, Exit, Handle

pytestmark = pytest.mark.slow


async def logged(rig: Rig, handle: Handle) -> str:
    """All that it said; it has ended by itself."""
    await asyncio.wait_for(rig.runtime.keep_log(handle, rig.log()), 20)
    lines = rig.log().read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("[holdfast: "))


async def until_logged(rig: Rig, text: str) -> None:
    await eventually(lambda: rig.log().exists() and text in rig.log().read_text(), what=f"{text!r} is in the log")


@pytest.mark.parametrize("code", [0, 1, 7, 100])
async def test_exit_code_is_told(rig: Rig, code: int) -> None:
    handle = await rig.start("exit", code)
    assert await asyncio.wait_for(rig.runtime.wait(handle), 20) == Exit(code)
    assert not await rig.runtime.alive(handle)
    assert await rig.all() == []


async def test_engine_is_there_until_it_ends_and_is_waited_for_meanwhile(rig: Rig) -> None:
    handle = await rig.start("mild", "out", "ready", "sleep")
    waiting = asyncio.create_task(rig.runtime.wait(handle))
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not done
    assert await rig.runtime.alive(handle)
    assert await rig.all() == [(ENGINE, handle)]
    assert await rig.find() == handle
    keeping = asyncio.create_task(rig.runtime.keep_log(handle, rig.log()))
    await until_logged(rig, "ready")
    await rig.runtime.terminate(handle)
    assert await asyncio.wait_for(waiting, 20) == Exit(0)
    await asyncio.wait_for(keeping, 20)


async def test_engine_killed_from_outside_is_noticed_within_a_second(rig: Rig) -> None:
    handle = await rig.start("sleep")
    waiting = asyncio.create_task(rig.runtime.wait(handle))
    await asyncio.wait({waiting}, timeout=0.5)
    os.kill(rig.pid(handle), signal.SIGKILL)
    at = time.monotonic()
    assert await asyncio.wait_for(waiting, 20) == Exit(-signal.SIGKILL)
    assert time.monotonic() - at < 1.0


async def test_engine_that_does_not_listen_can_be_killed(rig: Rig) -> None:
    handle = await rig.start("deaf", "out", "deaf", "sleep")
    keeping = asyncio.create_task(rig.runtime.keep_log(handle, rig.log()))
    await until_logged(rig, "deaf")
    await rig.runtime.terminate(handle)
    waiting = asyncio.create_task(rig.runtime.wait(handle))
    done, _ = await asyncio.wait({waiting}, timeout=0.5)
    assert not done
    await rig.runtime.kill(handle)
    assert await asyncio.wait_for(waiting, 20) == Exit(-signal.SIGKILL)
    await asyncio.wait_for(keeping, 20)


async def test_kill_takes_what_the_engine_started_with_it(rig: Rig) -> None:
    handle = await rig.start("child", "sleep")
    [child] = await eventually(lambda: children_of(rig.pid(handle)), what="it has a child")
    assert len(await rig.all()) == 1
    await rig.runtime.kill(handle)
    await rig.runtime.wait(handle)
    await eventually(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, what="the child has gone"
    )


async def test_next_host_process_finds_the_engine_and_goes_on(rig: Rig) -> None:
    job = rig.job("out", "first", "mild", "sleep")
    handle = await rig.runtime.start(job)
    rig.runtime = rig.another()
    assert await rig.find() == handle
    assert await asyncio.to_thread(rig.runtime.port, handle) == job.port
    keeping = asyncio.create_task(rig.runtime.keep_log(handle, rig.log()))
    await until_logged(rig, "first")
    waiting = asyncio.create_task(rig.runtime.wait(handle))
    await asyncio.wait({waiting}, timeout=0.2)
    await rig.runtime.terminate(handle)
    ended = await asyncio.wait_for(waiting, 20)
    assert ended.code in (0, None), "whoever was not its parent cannot know"
    await asyncio.wait_for(keeping, 20)


async def test_wait_that_was_given_up_can_be_begun_again_and_asked_twice(rig: Rig) -> None:
    handle = await rig.start("sleep")
    waiting = asyncio.create_task(rig.runtime.wait(handle))
    await asyncio.wait({waiting}, timeout=0.1)
    waiting.cancel()
    await rig.runtime.kill(handle)
    assert (await asyncio.wait_for(rig.runtime.wait(handle), 20)).code == -signal.SIGKILL
    assert (await asyncio.wait_for(rig.runtime.wait(handle), 20)).code in (-signal.SIGKILL, None)


async def test_what_is_done_to_an_engine_that_has_ended_does_nothing(rig: Rig) -> None:
    handle = await rig.start("exit", 0)
    await rig.runtime.wait(handle)
    for _ in range(2):
        await rig.runtime.terminate(handle)
        await rig.runtime.kill(handle)
        await rig.runtime.discard(handle)
    assert not await rig.runtime.alive(handle)
    await asyncio.wait_for(rig.runtime.wait(handle), 20)


async def test_each_engine_is_found_by_its_instance_and_fence(rig: Rig) -> None:
    newer = EngineRef(instance_id=ENGINE.instance_id, fence=4)
    first, second = await rig.start("sleep"), await rig.start("sleep", engine=newer)
    assert dict(await rig.all()) == {ENGINE: first, newer: second}
    assert await rig.find(newer) == second
    assert await rig.find(EngineRef(instance_id="chat/1-a", fence=5)) is None


async def test_engines_of_another_host_are_not_seen(rig: Rig, request: pytest.FixtureRequest) -> None:
    theirs = Rig(rig.kind, f"{rig.host_id}-other", rig.folder / "other", rig.image, rig.docker)
    try:
        await theirs.start("sleep")
        assert await rig.all() == []
        assert await rig.find() is None
    finally:
        await theirs.end()


async def test_program_that_is_not_there_cannot_be_started_and_leaves_nothing(rig: Rig) -> None:
    job = rig.job("sleep")
    with pytest.raises(CannotStart):
        await rig.runtime.start(type(job)(**{**vars(job), "argv": ("/no/such/program",)}))
    assert await rig.all() == []
    assert await rig.find() is None


async def test_engine_gets_its_environment_and_nothing_of_ours(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOST_TOKEN", "secret")
    handle = await rig.start("env", "HF_TOKEN", "env", "HOLDFAST_HOST_TOKEN", HF_TOKEN="mine")
    await rig.runtime.wait(handle)
    assert await logged(rig, handle) == "mine\n(unset)\n"


async def test_labels_cannot_be_forged_by_a_deployment(rig: Rig) -> None:
    await rig.start("sleep", HOLDFAST_ENGINE_HOST="another", HOLDFAST_ENGINE_FENCE="99")
    assert [engine for engine, _ in await rig.all()] == [ENGINE]


async def test_engine_is_reached_on_loopback_at_its_port(rig: Rig) -> None:
    job = rig.job("serve")
    await rig.runtime.start(job)
    url = f"http://127.0.0.1:{job.port}/health"

    def answers() -> bool:
        try:
            return httpx.get(url, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    await eventually(answers, what="it answers")


async def test_both_outputs_are_in_the_log_whole(rig: Rig) -> None:
    rig.log().write_text("before\n")
    handle = await rig.start("out", "first", "err", "second", "out", "third")
    await rig.runtime.wait(handle)
    text = await logged(rig, handle)
    assert sorted(text.splitlines()) == ["before", "first", "second", "third"]
    assert text.startswith("before\n")
    assert text.index("first") < text.index("third")


async def test_log_loses_and_repeats_nothing_when_who_keeps_it_is_replaced(rig: Rig) -> None:
    handle = await rig.start("many", 30_000, "mild", "sleep")
    for _ in range(5):
        rig.runtime = rig.another()
        before = len(numbers(rig.log()))
        keeping = asyncio.create_task(rig.runtime.keep_log(handle, rig.log()))
        await eventually(lambda b=before: len(numbers(rig.log())) >= min(b + 500, 30_000))  # type: ignore[misc]
        keeping.cancel()
        await asyncio.wait({keeping})
    keeping = asyncio.create_task(rig.runtime.keep_log(handle, rig.log()))
    await eventually(lambda: len(numbers(rig.log())) >= 30_000, within=60, what="all lines are there")
    await rig.runtime.terminate(handle)
    await asyncio.wait_for(keeping, 20)
    assert sorted(numbers(rig.log())) == list(range(30_000))


async def test_log_of_an_engine_that_ended_while_nobody_looked_is_complete(rig: Rig) -> None:
    handle = await rig.start("many", 1000, "exit", 3)
    await rig.runtime.wait(handle)
    rig.runtime = rig.another()
    await logged(rig, handle)
    assert sorted(numbers(rig.log())) == list(range(1000))


async def test_log_of_an_engine_that_talks_too_much_keeps_beginning_and_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker_host import log_cap
    from worker_host.runtime import container_log

    monkeypatch.setattr(log_cap, "HEAD_BYTES", 64 << 10)
    monkeypatch.setattr(log_cap, "TAIL_BYTES", 128 << 10)
    monkeypatch.setattr(log_cap, "_SLACK_BYTES", 64 << 10)
    monkeypatch.setattr(container_log, "_CAP_BYTES", 64 << 10)
    handle = await rig.start("many", 100_000)
    await rig.runtime.wait(handle)
    await logged(rig, handle)
    kept = numbers(rig.log())
    assert kept[0] in (0, 1)
    assert {99_998, 99_999} <= set(kept), "the end of both outputs, of which one may be far ahead of the other"
    assert len(kept) < 50_000
    assert rig.log().stat().st_blocks * 512 < 512 << 10


def numbers(log: Path) -> list[int]:
    """Of the lines ``line N``."""
    lines = log.read_bytes().replace(b"\0", b"").splitlines() if log.exists() else []
    return [int(words[1]) for line in lines if len(words := line.split()) == 2 and words[1].isdigit()]
