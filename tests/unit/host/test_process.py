"""Engine processes: what they are given, how they are found again, watched and stopped."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fleet.inventory import EngineRef
from tests.unit.host.waiting import eventually
from worker_host.runtime.process import ProcessRuntime, free_port
from worker_host.runtime.protocol import CannotStart, Exit, Job, ProcessRef

ENGINE = EngineRef(instance_id="chat/1-a", fence=3)
SLEEP = (sys.executable, "-SEc", "import signal; signal.pause()")


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-SEc", code)


def job(folder: Path, argv: tuple[str, ...] = SLEEP, engine: EngineRef = ENGINE, **env: str) -> Job:
    return Job(engine=engine, attempt=1, argv=argv, env=env, port=4711, log=folder / "engine.log")


async def start(
    runtime: ProcessRuntime, folder: Path, argv: tuple[str, ...] = SLEEP, engine: EngineRef = ENGINE
) -> ProcessRef:
    ref = await runtime.start(job(folder, argv, engine))
    environment(ref)
    return ref


def environment(ref: ProcessRef) -> dict[str, str]:
    """Of a process that has just begun: for a moment the system shows none. Empty when it has ended."""
    deadline = time.monotonic() + 5
    with contextlib.suppress(psutil.Error):
        while time.monotonic() < deadline:
            if env := psutil.Process(ref.pid).environ():
                return env
    return {}


async def test_engine_gets_its_labels_what_it_asked_for_and_nothing_of_ours(
    runtime: ProcessRuntime, host_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOLDFAST_HOST_TOKEN", "HOLDFAST_MASTER_KEY", "HOLDFAST_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    ref = await runtime.start(job(tmp_path, HF_TOKEN="mine", TZ="UTC"))
    env = environment(ref)
    assert "secret" not in env.values()
    assert env["HF_TOKEN"] == "mine"
    assert env["TZ"] == "UTC"
    assert env["PATH"] == os.environ["PATH"]
    assert {k: v for k, v in env.items() if k.startswith("HOLDFAST_")} == {
        "HOLDFAST_ENGINE_HOST": host_id,
        "HOLDFAST_ENGINE_INSTANCE": "chat/1-a",
        "HOLDFAST_ENGINE_FENCE": "3",
        "HOLDFAST_ENGINE_PORT": "4711",
    }


async def test_labels_cannot_be_forged_by_a_deployment(runtime: ProcessRuntime, host_id: str, tmp_path: Path) -> None:
    forged = {"HOLDFAST_ENGINE_HOST": "another", "HOLDFAST_ENGINE_INSTANCE": "x/1", "HOLDFAST_ENGINE_FENCE": "99"}
    environment(await runtime.start(job(tmp_path, **forged)))
    assert [engine for engine, _ in runtime.all()] == [ENGINE]


async def test_engine_has_a_session_of_its_own_and_no_input(runtime: ProcessRuntime, tmp_path: Path) -> None:
    ref = await start(runtime, tmp_path)
    assert os.getsid(ref.pid) == ref.pid != os.getsid(0)
    assert Path(f"/proc/{ref.pid}/fd/0").readlink() == Path("/dev/null")


async def test_both_outputs_are_appended_to_the_log(runtime: ProcessRuntime, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "engine.log"
    log.parent.mkdir()
    log.write_text("before\n")
    code = "import os; os.write(1, b'out\\n'); os.write(2, b'err\\n')"
    await runtime.wait(await runtime.start(job(log.parent, python(code))))
    assert log.read_text() == "before\nout\nerr\n"


async def test_program_that_is_not_there_is_an_error(runtime: ProcessRuntime, tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="No such file"):
        await start(runtime, tmp_path, ("/nonexistent/engine",))
    assert runtime.all() == []


@pytest.mark.parametrize(("code", "expected"), [("pass", 0), ("raise SystemExit(7)", 7), ("import os; os.abort()", -6)])
async def test_exit_code_of_a_child_is_known(runtime: ProcessRuntime, tmp_path: Path, code: str, expected: int) -> None:
    ref = await start(runtime, tmp_path, python(code))
    assert await runtime.wait(ref) == Exit(expected)
    assert not await runtime.alive(ref)


async def test_waiting_ends_when_the_process_does_and_not_before(runtime: ProcessRuntime, tmp_path: Path) -> None:
    ref = await start(runtime, tmp_path)
    waiting = asyncio.create_task(runtime.wait(ref))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    assert await runtime.alive(ref)
    await runtime.terminate(ref)
    assert await asyncio.wait_for(waiting, 5) == Exit(-signal.SIGTERM)


async def test_wait_that_was_given_up_can_be_begun_again(runtime: ProcessRuntime, tmp_path: Path) -> None:
    ref = await start(runtime, tmp_path)
    waiting = asyncio.create_task(runtime.wait(ref))
    await asyncio.wait({waiting}, timeout=0.05)
    waiting.cancel()
    await runtime.kill(ref)
    assert await asyncio.wait_for(runtime.wait(ref), 5) == Exit(-signal.SIGKILL)


async def test_engine_of_a_host_process_that_was_killed_is_adopted_by_pid_and_beginning(
    runtime: ProcessRuntime, host_id: str, tmp_path: Path
) -> None:
    ref = left_behind(host_id, tmp_path)
    assert await runtime.alive(ref)
    assert runtime.find(ENGINE) == ref
    waiting = asyncio.create_task(runtime.wait(ref))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    os.kill(ref.pid, signal.SIGTERM)
    assert await asyncio.wait_for(waiting, 5) == Exit(), "nobody knows the exit code of somebody else's child"
    assert not await runtime.alive(ref)


async def test_another_process_with_the_same_number_is_not_ours(runtime: ProcessRuntime, tmp_path: Path) -> None:
    ref = await start(runtime, tmp_path)
    earlier = ref.model_copy(update={"began": "1"})
    assert not await runtime.alive(earlier)
    await runtime.terminate(earlier)
    await runtime.kill(earlier)
    assert await asyncio.wait_for(runtime.wait(earlier), 5) == Exit()
    assert await runtime.alive(ref)


async def test_process_that_is_long_gone_is_over_at_once(runtime: ProcessRuntime, tmp_path: Path) -> None:
    ref = await start(runtime, tmp_path, python("pass"))
    await runtime.wait(ref)
    assert await asyncio.wait_for(runtime.wait(ref), 5) == Exit()
    await runtime.terminate(ref)
    await runtime.kill(ref)


async def test_zombie_counts_as_ended(runtime: ProcessRuntime, host_id: str, tmp_path: Path) -> None:
    ref = await start(runtime, tmp_path, python("pass"))
    await eventually(lambda: psutil.Process(ref.pid).status() == psutil.STATUS_ZOMBIE, what="nobody has waited for it")
    another = ProcessRuntime(host_id)
    assert not await another.alive(ref)
    assert another.all() == []
    assert await asyncio.wait_for(another.wait(ref), 5) == Exit()


async def test_kill_takes_what_the_engine_started_with_it(runtime: ProcessRuntime, tmp_path: Path) -> None:
    ref = await start(runtime, tmp_path, python(f"import subprocess; subprocess.run({list(SLEEP)!r})"))
    [child] = await eventually(lambda: psutil.Process(ref.pid).children(recursive=True), what="it has a child")
    await runtime.kill(ref)
    await runtime.wait(ref)
    await eventually(lambda: not _lives(child), what="the child has gone too")


async def test_engine_is_listed_once_however_many_processes_it_is(runtime: ProcessRuntime, tmp_path: Path) -> None:
    child = python(f"import subprocess; subprocess.run({list(SLEEP)!r})")
    ref = await start(runtime, tmp_path, python(f"import subprocess; subprocess.run({list(child)!r})"))
    await eventually(lambda: len(psutil.Process(ref.pid).children(recursive=True)) == 2, what="it has a grandchild")
    assert runtime.all() == [(ENGINE, ref)]


async def test_what_a_dead_engine_left_running_is_still_found_and_can_be_killed(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    code = f"import subprocess, os; subprocess.Popen({list(SLEEP)!r}); os._exit(1)"
    ref = await start(runtime, tmp_path, python(code))
    await runtime.wait(ref)
    [(engine, orphan)] = await eventually(runtime.all)
    assert engine == ENGINE
    assert orphan.pid != ref.pid
    await runtime.kill(orphan)
    await runtime.wait(orphan)
    assert runtime.all() == []


async def test_processes_of_other_hosts_are_not_seen(runtime: ProcessRuntime, tmp_path: Path) -> None:
    other = ProcessRuntime("somebody-else")
    theirs, ours = await start(other, tmp_path), await start(runtime, tmp_path)
    try:
        assert runtime.all() == [(ENGINE, ours)]
        assert runtime.find(ENGINE) == ours
    finally:
        await other.kill(theirs)
        await other.wait(theirs)


async def test_each_engine_is_found_by_its_instance_and_fence(runtime: ProcessRuntime, tmp_path: Path) -> None:
    newer = ENGINE.model_copy(update={"fence": 4})
    first, second = await start(runtime, tmp_path), await start(runtime, tmp_path, engine=newer)
    assert dict(runtime.all()) == {ENGINE: first, newer: second}
    assert runtime.find(newer) == second
    assert runtime.find(newer.model_copy(update={"fence": 5})) is None


@pytest.mark.parametrize("fence", ["", "three", "-1", "9" * 30])
async def test_process_with_labels_that_make_no_sense_is_left_alone(
    runtime: ProcessRuntime, host_id: str, fence: str
) -> None:
    labels = {"HOLDFAST_ENGINE_HOST": host_id, "HOLDFAST_ENGINE_INSTANCE": "chat/1-a", "HOLDFAST_ENGINE_FENCE": fence}
    with subprocess.Popen(SLEEP, env=labels) as process:
        try:
            assert runtime.all() == []
        finally:
            process.kill()


def test_port_is_free() -> None:
    with socket.create_server(("127.0.0.1", free_port("127.0.0.1"))):
        pass


def left_behind(host_id: str, folder: Path) -> ProcessRef:
    """A process of this host whose parent was killed."""
    code = (
        "import asyncio, sys, time; from pathlib import Path\n"
        "from fleet.inventory import EngineRef\n"
        "from worker_host.runtime.process import ProcessRuntime\n"
        "from worker_host.runtime.protocol import Job\n"
        f"engine = EngineRef.model_validate_json({ENGINE.model_dump_json()!r})\n"
        f"job = Job(engine=engine, attempt=1, argv={SLEEP!r}, env={{}}, port=1, log=Path({str(folder / 'log')!r}))\n"
        f"ref = asyncio.run(ProcessRuntime({host_id!r}).start(job))\n"
        "print(ref.model_dump_json(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        parent.kill()
    return ProcessRef.model_validate_json(line)


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
