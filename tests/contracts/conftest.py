"""The runtimes under test, each with a program that does as it is told."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fleet.inventory import EngineRef
from tests.docker_fixtures import CACHE, DockerEngine
from worker_host.runtime.docker import DockerRuntime
from worker_host.runtime.docker_client import DockerClient
from worker_host.runtime.journal import Journal
from worker_host.runtime.process import ProcessRuntime, free_port
from worker_host.runtime.protocol import Container, Handle, Job, Runtime

ENGINE = EngineRef(instance_id="chat/1-a", fence=3)


@dataclass
class Rig:
    """A runtime of a host of its own; ``another`` is the same host after its process was killed."""

    kind: str
    host_id: str
    folder: Path
    image: str = ""
    docker: DockerEngine | None = None
    _runtimes: list[Runtime] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runtime = self.another()

    def another(self) -> Runtime:
        made = ProcessRuntime(self.host_id) if self.docker is None else self._containers(self.docker)
        self._runtimes.append(made)
        return made

    def _containers(self, engine: DockerEngine) -> DockerRuntime:
        return DockerRuntime(DockerClient(engine.url), self.host_id, Journal(self.folder / "containers.json"))

    def job(self, *words: object, engine: EngineRef = ENGINE, attempt: int = 1, **env: str) -> Job:
        """To do as ``words`` say: see ``actor.c``."""
        program = "/actor" if self.docker is not None else str(CACHE / "actor")
        port = free_port()
        return Job(
            engine=engine,
            attempt=attempt,
            argv=(program, *map(str, words)),
            env={"HOLDFAST_TEST_PORT": str(port), **env},
            port=port,
            log=self.log(attempt),
            container=Container(image=self.image) if self.docker is not None else None,
        )

    def log(self, attempt: int = 1) -> Path:
        return self.folder / f"{attempt}.log"

    async def start(self, *words: object, engine: EngineRef = ENGINE, **env: str) -> Handle:
        return await self.runtime.start(self.job(*words, engine=engine, **env))

    async def all(self) -> list[tuple[EngineRef, Handle]]:
        return list(await asyncio.to_thread(self.runtime.all))

    async def find(self, engine: EngineRef = ENGINE) -> Handle | None:
        return await asyncio.to_thread(self.runtime.find, engine)

    def pid(self, handle: Handle) -> int:
        """Of the engine's first process."""
        assert handle.pid is not None
        return handle.pid

    async def end(self) -> None:
        for handle in {h for _, h in await self.all()}:
            await self.runtime.kill(handle)
            await self.runtime.wait(handle)
        if self.docker is not None:
            for container in self.docker.api.containers(all=True, filters={"label": f"holdfast.host={self.host_id}"}):
                self.docker.api.remove_container(container["Id"], force=True)
        for runtime in self._runtimes:
            if isinstance(runtime, DockerRuntime):
                await runtime.aclose()


@pytest.fixture(params=["process", "docker"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    made = _rig(request, request.param, tmp_path)
    yield made
    await made.end()


@pytest.fixture
async def docker_rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    made = _rig(request, "docker", tmp_path)
    yield made
    await made.end()


def _rig(request: pytest.FixtureRequest, kind: str, folder: Path) -> Rig:
    host_id = f"test-{uuid.uuid4().hex[:12]}"
    request.getfixturevalue("actor")
    if kind == "process":
        return Rig(kind, host_id, folder)
    engine: DockerEngine = request.getfixturevalue("docker_engine")
    image: str = request.getfixturevalue("actor_image")
    return Rig(kind, host_id, folder, image, engine)


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)
