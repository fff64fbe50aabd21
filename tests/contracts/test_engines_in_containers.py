"""The life of a real engine in a real container, as its host sees it."""

import asyncio
import json
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from fleet.instances import EngineExit, EnginePhase, EngineReport, Remedy
from fleet.inventory import EngineRef
from fleet.specs import ContainerSpec
from tests.docker_fixtures import DockerEngine, OwnEngine, Registry
from tests.unit.host.fake_temporal import WANTED
from tests.unit.host.waiting import eventually
from tests.unit.host.world import INSTANCE, TOKEN, World
from worker_host import telling, watch
from worker_host.records import EngineRecord
from worker_host.runtime.protocol import ContainerRef

pytestmark = pytest.mark.slow


@pytest.fixture
async def world(tmp_path: Path, docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(telling, "BEAT_S", 0.1)
    monkeypatch.setattr(telling, "_RETRY_S", 0.1)
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.2)
    host_id = f"test-{uuid.uuid4().hex[:12]}"
    async with httpx.AsyncClient(trust_env=False) as http:
        made = World(tmp_path, http, host_id, docker=docker_engine.url)
        yield made
        await made.supervisor.let_go()
    for _, process in made.running():
        os.kill(process.pid, signal.SIGKILL)
    for container in docker_engine.api.containers(all=True, filters={"label": f"holdfast.host={host_id}"}):
        docker_engine.api.remove_container(container["Id"], force=True)


@pytest.fixture
def model(world: World, small_model: Path) -> str:
    """A real one, in the host's folder: a container sees no other place."""
    shutil.copy(small_model, world.models / "smol.gguf")
    return "smol.gguf"


def spec(image: str, **changes: object) -> dict[str, object]:
    args = ("--threads", "1", "--no-warmup")
    container = ContainerSpec(image=image)
    settings = {"runtime": "docker", "container": container, "args": args, "max_model_len": 256, "concurrency": 1}
    return {**settings, **changes}


async def ready(world: World, fence: int = 1) -> ContainerRef:
    def container() -> ContainerRef | None:
        record = world.record()
        if record is None or record.ready_since is None or record.launch.fence != fence:
            return None
        return record.process if isinstance(record.process, ContainerRef) else None

    return await eventually(container, within=60, what="the engine is ready")


def record(world: World) -> EngineRecord:
    found = world.record()
    assert found is not None
    return found


async def chat(world: World) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        answer = await http.post(
            f"http://127.0.0.1:{record(world).port}/v1/chat/completions",
            json={
                "messages": [
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": "What is the capital of France?"},
                ],
                "temperature": 0,
                "max_tokens": 16,
            },
        )
    return str(answer.json()["choices"][0]["message"]["content"])


async def failure(world: World) -> EngineExit:
    [error] = await eventually(lambda: world.temporal.failures[TOKEN], within=60, what="its end is told")
    return EngineExit.model_validate(error.details[0])


async def test_engine_answers_is_adopted_and_stops(
    world: World, llama_image: str, model: str, docker_engine: DockerEngine
) -> None:
    await world.take(model, **spec(llama_image))
    container = await ready(world)
    assert "Paris" in await chat(world)
    ready_reports = [r for r in world.control_plane.reports if r.phase is EnginePhase.READY]
    assert ready_reports[-1].pid == container.pid

    await world.restart()
    await world.take(model, b"second token", **spec(llama_image))
    assert record(world).process == container, "the same container"
    assert "Paris" in await chat(world)

    world.temporal.answers[b"second token"] = WANTED
    await world.gone()
    assert world.temporal.cancellations == [b"second token"]
    left = docker_engine.api.containers(all=True, filters={"label": f"holdfast.host={world.host_id}"})
    assert left == [], "nothing is left of it"
    assert "llama" in world.log(), "but its log"


async def test_engine_whose_record_was_lost_is_adopted_by_its_labels(
    world: World, llama_image: str, model: str
) -> None:
    await world.take(model, **spec(llama_image))
    container = await ready(world)
    port = record(world).port
    await world.supervisor.let_go()
    shutil.rmtree(world.folder / "host" / "engines")
    await world.restart()
    assert await asyncio.to_thread(world.supervisor.running) == [EngineRef(instance_id=INSTANCE, fence=1)]
    await world.take(model, b"second token", **spec(llama_image))
    assert await ready(world) == container
    assert record(world).port == port
    log = world.log()
    assert log.count("server is listening") <= 1
    assert world.logs.latest(INSTANCE) == 1, "it is the same attempt"


async def test_engine_killed_from_outside_is_told_with_its_code_and_log(
    world: World, llama_image: str, model: str
) -> None:
    await world.take(model, **spec(llama_image))
    container = await ready(world)
    assert container.pid is not None
    os.kill(container.pid, signal.SIGKILL)
    ended = await failure(world)
    assert (ended.exit_code, ended.failure_class, ended.served) == (-9, "killed", True)
    assert "llama" in ended.log_tail


async def test_engine_that_ended_while_no_host_process_lived_is_told_with_its_code(
    world: World, llama_image: str, model: str
) -> None:
    await world.take(model, **spec(llama_image))
    container = await ready(world)
    await world.supervisor.let_go()
    assert container.pid is not None
    os.kill(container.pid, signal.SIGTERM)
    await eventually(lambda: not Path(f"/proc/{container.pid}").exists())
    await world.restart()
    ended = await failure(world)
    assert (ended.exit_code, ended.served) == (0, True)


async def test_image_is_pulled_with_progress_and_all_later_engines_run_from_its_digest(
    world: World, llama_image: str, model: str, docker_engine: DockerEngine, registry: Registry
) -> None:
    name = registry.push(docker_engine, llama_image, "engines/llama-server:1")
    await world.take(model, **spec(name))
    container = await ready(world)
    pulling = [r for r in world.control_plane.reports if r.phase is EnginePhase.DOWNLOADING]
    assert pulling
    assert all(r.message.startswith(f"pulling {name}") for r in pulling)
    pin = _newest(world).image
    assert pin.startswith(f"{registry.host}/engines/llama-server@sha256:")
    assert record(world).image == pin
    started = docker_engine.api.inspect_container(container.id)
    assert started["Config"]["Image"].startswith("sha256:")


async def test_engine_that_does_not_know_an_argument_is_classified_from_its_log(
    world: World, llama_image: str, model: str
) -> None:
    await world.take(model, **spec(llama_image, args=("--no-such-flag",)))
    ended = await failure(world)
    assert ended.exit_code == 1
    assert ended.failure_class == "bad_flag"
    assert "no-such-flag" in ended.log_tail


async def test_secrets_reach_the_engine_and_no_label_nor_journal(
    world: World, llama_image: str, model: str, docker_engine: DockerEngine
) -> None:
    await world.take(model, **spec(llama_image))
    container = await ready(world)
    facts = docker_engine.api.inspect_container(container.id)
    assert "TOKEN=a-secret-value" in facts["Config"]["Env"]
    assert "a-secret-value" not in json.dumps(facts["Config"]["Labels"])
    for path in (world.folder / "host").rglob("*"):
        assert path.is_dir() or b"a-secret-value" not in path.read_bytes()


async def test_host_without_docker_says_so(world: World, model: str) -> None:
    world.settings = world.settings.model_copy(update={"host_docker": "unix:///no/docker/here"})
    await world.restart()
    await world.take(model, **spec("any/image:1"))
    ended = await failure(world)
    assert (ended.failure_class, ended.remedy) == ("no_docker", Remedy.ELSEWHERE)
    assert "spec.runtime" in ended.hint


async def test_host_that_was_told_no_image_says_so(world: World, model: str) -> None:
    await world.take(model, runtime="docker")
    ended = await failure(world)
    assert (ended.failure_class, ended.remedy) == ("image", Remedy.NEVER)


async def test_runtime_that_is_left_open_is_a_container_where_there_is_an_image_and_else_a_process(
    world: World, llama_image: str, model: str
) -> None:
    await world.take(model, **spec(llama_image, runtime="auto"))
    await ready(world)
    await world.take("fine", fence=2)  # no image
    assert (await world.ready(fence=2)).kind == "process"


async def test_host_may_prefer_processes(world: World, llama_image: str, model: str) -> None:
    world.settings = world.settings.model_copy(update={"host_runtime": "process"})
    await world.restart()
    await world.take("fine", **spec(llama_image, runtime="auto", args=()))
    assert (await world.ready()).kind == "process"


async def test_engine_is_not_taken_for_hung_while_docker_is_away_and_serves_when_it_is_back(
    world: World, llama_image: str, model: str, own_docker_engine: OwnEngine
) -> None:
    await world.take(model, **spec(llama_image, unresponsive_timeout_s=5))
    container = await ready(world)
    own_docker_engine.kill()  # and with it who forwards the port
    await eventually(lambda: record(world).suspect, within=30, what="it is suspect")
    await world.restart()
    gone = asyncio.create_task(world.gone())
    await asyncio.wait({gone}, timeout=8)  # longer than a hang is borne
    assert not gone.done()
    gone.cancel()
    assert _lives(container)
    await asyncio.to_thread(own_docker_engine.start)
    await eventually(lambda: not record(world).suspect, within=30, what="it is ready again")
    assert "Paris" in await chat(world)
    assert record(world).process == container
    assert not world.temporal.failures[TOKEN]


async def test_engine_that_hangs_is_killed_when_docker_is_here(world: World, llama_image: str, model: str) -> None:
    await world.take(model, **spec(llama_image, unresponsive_timeout_s=2))
    container = await ready(world)
    assert container.pid is not None
    os.kill(container.pid, signal.SIGSTOP)
    assert (await failure(world)).failure_class == "hung"
    assert not _lives(container)


async def test_engine_can_be_stopped_while_docker_is_away(
    world: World, llama_image: str, model: str, own_docker_engine: OwnEngine
) -> None:
    await world.take(model, **spec(llama_image))
    container = await ready(world)
    own_docker_engine.kill()
    world.temporal.answers[TOKEN] = WANTED
    await eventually(lambda: not _lives(container), within=30, what="it is stopped")
    await eventually(lambda: world.temporal.cancellations == [TOKEN], within=30, what="its end is told")
    await asyncio.to_thread(own_docker_engine.start)
    await asyncio.to_thread(world.supervisor.running)
    await world.supervisor.keep_only(set())
    left = own_docker_engine.api.containers(all=True, filters={"label": f"holdfast.host={world.host_id}"})
    assert left == [], "what was left is cleared up"


def _lives(container: ContainerRef) -> bool:
    return Path(f"/proc/{container.pid}").exists()


def _newest(world: World) -> EngineReport:
    return world.control_plane.reports[-1]
