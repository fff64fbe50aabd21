"""What containers have that processes have not, with a real Docker engine."""

import asyncio
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.engines.devices import ContainerDevices
from fleet.engines.failures import classify
from fleet.inventory import EngineRef
from tests.contracts.conftest import ENGINE, Rig
from tests.docker_fixtures import DockerEngine, OwnEngine
from tests.unit.host.waiting import eventually
from worker_host.runtime.docker import DockerRuntime
from worker_host.runtime.protocol import CannotStart, ContainerRef, Exit, Job, RuntimeAway

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(docker_rig: Rig) -> Rig:
    return docker_rig


def containers(rig: Rig) -> list[str]:
    assert rig.docker is not None
    found = rig.docker.api.containers(all=True, filters={"label": f"holdfast.host={rig.host_id}"})
    return [str(c["Id"]) for c in found]


def facts(rig: Rig, handle: object) -> dict[str, dict[str, object]]:
    assert rig.docker is not None
    assert isinstance(handle, ContainerRef)
    return dict(rig.docker.api.inspect_container(handle.id))


def with_container(job: Job, **changes: object) -> Job:
    assert job.container is not None
    return replace(job, container=replace(job.container, **changes))  # type: ignore[arg-type]


async def failure_class(rig: Rig, job: Job) -> str:
    with pytest.raises(CannotStart) as failed:
        await rig.runtime.start(job)
    assert containers(rig) == [], "nothing is left"
    return classify(None, str(failed.value), served=False).failure_class


# -- what it is given --------------------------------------------------------------------------------------------------


async def test_container_gets_no_more_rights_than_it_needs(rig: Rig) -> None:
    handle = await rig.start("sleep")
    given = facts(rig, handle)["HostConfig"]
    assert given["Privileged"] is False
    assert given["CapAdd"] in (None, [])
    assert "no-new-privileges:true" in given["SecurityOpt"]  # type: ignore[operator]
    assert given["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert given["Devices"] in (None, [])
    assert given["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "20m", "max-file": "3"}}
    assert given["NetworkMode"] == "holdfast"


async def test_port_is_published_on_loopback_only(rig: Rig) -> None:
    job = rig.job("serve")
    await rig.runtime.start(job)
    await eventually(lambda: _connects("127.0.0.1", job.port), what="it answers")
    others = [a for a in _own_addresses() if not a.startswith("127.")]
    assert others, "this machine has another address"
    assert [a for a in others if _connects(a, job.port)] == []


async def test_host_network_is_given_when_asked_for(rig: Rig) -> None:
    job = with_container(rig.job("serve"), host_network=True)
    await rig.runtime.start(job)
    await eventually(lambda: _connects("127.0.0.1", job.port), what="it answers")


async def test_model_is_seen_at_its_place_and_nothing_beside_it(rig: Rig, tmp_path: Path) -> None:
    for name in ("model", "beside"):
        (tmp_path / name).write_text(f"{name}\n")
    job = rig.job("cat", tmp_path / "model", "cat", tmp_path / "beside")
    handle = await rig.runtime.start(with_container(job, mounts=(tmp_path / "model",)))
    assert await rig.runtime.wait(handle) == Exit(1)
    await rig.runtime.keep_log(handle, rig.log())
    text = rig.log().read_text()
    assert "model\n" in text
    assert "No such file or directory" in text
    [mount] = facts(rig, handle)["Mounts"]
    assert mount["RW"] is False  # type: ignore[index]


async def test_limits_are_set(rig: Rig) -> None:
    limits = {"cpus": 1.5, "memory_bytes": 64 << 20, "shm_bytes": 32 << 20}
    handle = await rig.runtime.start(with_container(rig.job("sleep"), **limits))
    given = facts(rig, handle)["HostConfig"]
    assert (given["NanoCpus"], given["Memory"], given["MemorySwap"]) == (1_500_000_000, 64 << 20, 64 << 20)
    assert (given["ShmSize"], given["IpcMode"]) == (32 << 20, "private")


async def test_engine_that_takes_more_memory_than_allowed_is_said_to_have(rig: Rig) -> None:
    handle = await rig.runtime.start(with_container(rig.job("eat", 200), memory_bytes=64 << 20))
    assert await asyncio.wait_for(rig.runtime.wait(handle), 30) == Exit(-signal.SIGKILL, out_of_memory=True)


async def test_limit_that_docker_may_not_raise_is_left_out_and_said(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker_host.runtime import containers as made

    monkeypatch.setattr(made, "_ULIMITS", {"nofile": 1 << 40, "stack": 8 << 20})  # more than any kernel gives
    handle = await rig.start("exit", 0)
    assert await rig.runtime.wait(handle) == Exit(0)
    assert "may not raise the limits of nofile" in rig.log().read_text()
    assert [u["Name"] for u in facts(rig, handle)["HostConfig"]["Ulimits"]] == ["stack"]  # type: ignore[attr-defined]


# -- what can go wrong -------------------------------------------------------------------------------------------------


async def test_device_that_is_not_there_is_named(rig: Rig) -> None:
    devices = ContainerDevices(devices=("/dev/davinci7",))
    assert await failure_class(rig, with_container(rig.job("sleep"), devices=devices)) == "no_device"


async def test_host_without_the_vendors_toolkit_is_told_apart(rig: Rig) -> None:
    nvidia = ContainerDevices(gpu_ids=("GPU-00000000-0000-0000-0000-000000000000",))
    assert await failure_class(rig, with_container(rig.job("sleep"), devices=nvidia)) == "no_gpu_runtime"
    other = ContainerDevices(runtime="mthreads")
    assert await failure_class(rig, with_container(rig.job("sleep"), devices=other)) == "no_gpu_runtime"


async def test_port_that_is_taken_is_named(rig: Rig) -> None:
    job = rig.job("serve")
    with socket.create_server(("127.0.0.1", job.port)):
        assert await failure_class(rig, job) == "port"


async def test_model_that_is_not_there_is_named(rig: Rig, tmp_path: Path) -> None:
    gone = with_container(rig.job("sleep"), mounts=(tmp_path / "no-such.gguf",))
    assert await failure_class(rig, gone) == "not_found"


async def test_command_that_is_not_there_is_named(rig: Rig) -> None:
    assert await failure_class(rig, replace(rig.job(), argv=("no-such-program",))) == "image"


async def test_docker_that_is_not_there_is_away(tmp_path: Path) -> None:
    nowhere = Rig("docker", "h", tmp_path, "image", DockerEngine(f"unix://{tmp_path}/none.sock", own=False))
    with pytest.raises(RuntimeAway):
        await nowhere.start("sleep")
    assert await nowhere.all() == []
    assert await nowhere.find() is None


# -- crashes -----------------------------------------------------------------------------------------------------------


async def test_start_that_was_given_up_half_way_is_done_anew(rig: Rig) -> None:
    assert rig.docker is not None
    job = rig.job("out", "again", "sleep")
    first = await rig.runtime.start(job)
    second = await rig.runtime.start(job)
    assert await rig.all() == [(ENGINE, second)]
    assert facts(rig, second)["Name"] == f"/{first.name}"


async def test_engine_that_ended_while_no_host_process_lived_still_tells_how(rig: Rig) -> None:
    handle = await rig.start("out", "last words", "exit", 7)
    await rig.runtime.wait(handle)
    rig.runtime = rig.another()
    assert await rig.all() == []
    found = await rig.find()
    assert found == handle.model_copy(update={"pid": None, "began": ""})
    assert await rig.runtime.wait(found) == Exit(7)
    await rig.runtime.keep_log(found, rig.log())
    assert "last words\n" in rig.log().read_text()


async def test_what_is_left_of_ended_engines_is_removed_unless_somebody_answers_for_them(rig: Rig) -> None:
    kept = EngineRef(instance_id="chat/2-b", fence=1)
    running = EngineRef(instance_id="chat/3-c", fence=1)
    for engine in (ENGINE, kept):
        await rig.runtime.wait(await rig.start("exit", 1, engine=engine))
    alive = await rig.start("sleep", engine=running)
    assert isinstance(rig.runtime, DockerRuntime)
    await asyncio.to_thread(rig.runtime.clear_up, {kept})
    assert await rig.find() is None
    assert await rig.find(kept) is not None
    assert await rig.runtime.alive(alive)


async def test_discarded_container_is_gone(rig: Rig) -> None:
    handle = await rig.start("exit", 0)
    await rig.runtime.wait(handle)
    await rig.runtime.discard(handle)
    assert containers(rig) == []
    assert await rig.runtime.wait(handle) == Exit()


# -- the Docker engine goes and comes back -----------------------------------------------------------------------------


async def test_engine_outlives_the_docker_engine_and_is_not_taken_for_dead(
    rig: Rig, own_docker_engine: OwnEngine
) -> None:
    handle = await rig.start("mild", "out", "before", "sleep")
    waiting = asyncio.create_task(rig.runtime.wait(handle))
    keeping = asyncio.create_task(rig.runtime.keep_log(handle, rig.log()))
    await eventually(lambda: rig.log().exists() and "before" in rig.log().read_text(), what="it talks")
    own_docker_engine.kill()
    assert await rig.runtime.alive(handle)
    assert await rig.all() == [(ENGINE, ContainerRef(id=handle.name, name=handle.name))]
    done, _ = await asyncio.wait({waiting, keeping}, timeout=1.0)
    assert not done
    await asyncio.to_thread(own_docker_engine.start)
    assert await rig.all() == [(ENGINE, handle)]
    os.kill(rig.pid(handle), signal.SIGKILL)
    at = time.monotonic()
    assert await asyncio.wait_for(waiting, 20) == Exit(-signal.SIGKILL)
    assert time.monotonic() - at < 1.0
    await asyncio.wait_for(keeping, 20)
    assert rig.log().read_text().count("before") == 1


async def test_engine_that_ends_while_docker_is_away_is_noticed_at_once_and_told_when_docker_is_back(
    rig: Rig, own_docker_engine: OwnEngine
) -> None:
    handle = await rig.start("sleep")
    waiting = asyncio.create_task(rig.runtime.wait(handle))
    await asyncio.wait({waiting}, timeout=0.2)
    own_docker_engine.kill()
    await rig.runtime.kill(handle)
    await eventually(lambda: not Path(f"/proc/{rig.pid(handle)}").exists(), what="it is gone")
    assert not await rig.runtime.alive(handle)
    await asyncio.to_thread(own_docker_engine.start)
    assert (await asyncio.wait_for(waiting, 20)).code in (-signal.SIGKILL, None)
    await eventually(lambda: rig.docker is not None and rig.docker.answers())
    assert await rig.all() == []


async def test_host_process_that_starts_while_docker_is_away_knows_what_may_run(
    rig: Rig, own_docker_engine: OwnEngine
) -> None:
    job = rig.job("sleep")
    handle = await rig.runtime.start(job)
    own_docker_engine.kill()
    rig.runtime = rig.another()
    found = await rig.find()
    assert found is not None
    assert await asyncio.to_thread(rig.runtime.port, found) == job.port
    waiting = asyncio.create_task(rig.runtime.wait(found))
    stopping = asyncio.create_task(rig.runtime.kill(found))
    done, _ = await asyncio.wait({waiting, stopping}, timeout=0.5)
    assert not done, "nobody can reach it now"
    await asyncio.to_thread(own_docker_engine.start)
    assert (await asyncio.wait_for(waiting, 20)).code == -signal.SIGKILL
    assert await rig.runtime.alive(handle) is False
    await stopping


# -- small things ------------------------------------------------------------------------------------------------------


def _connects(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return connection.recv(10) != b""
    except OSError:
        return False


def _own_addresses() -> list[str]:
    import psutil

    return [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
