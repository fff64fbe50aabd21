import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from fleet.engines.llama_cpp import LlamaCpp
from fleet.policy import hang
from tests.doors import HostDoor, host_door
from tests.unit.host.nvml import nvml, nvml_library  # noqa: F401 - fixtures
from tests.unit.host.world import World
from worker_host import lease, supervised, telling, watch
from worker_host.runtime.process import ProcessRuntime


@pytest.fixture(scope="session")
async def open_door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostDoor]:
    """Shared, because a web server takes its time to close."""
    async with host_door("h-1", tmp_path_factory.mktemp("h-1")) as door:
        yield door


@pytest.fixture
def door(open_door: HostDoor, tmp_path: Path) -> HostDoor:
    """The door of host ``h-1``, with nothing behind it."""
    open_door.begin(tmp_path)
    return open_door


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of the host, shrunk."""
    monkeypatch.setattr(telling, "BEAT_S", 0.05)
    monkeypatch.setattr(telling, "_RETRY_S", 0.05)
    monkeypatch.setattr(supervised, "_BUSY_POLL_S", 0.02)
    monkeypatch.setattr(telling, "_GATEWAYS_REFRESH_S", 0.02)
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(watch, "_LOOK_S", 0.3)
    monkeypatch.setattr(watch, "METRICS_EVERY_S", 0.1)
    monkeypatch.setattr(watch, "_METRICS_S", 0.5)
    monkeypatch.setattr(watch, "_ONE_TOKEN_S", 0.5)
    monkeypatch.setattr(hang, "SUSPECT_AFTER_S", 0.4)
    monkeypatch.setattr(LlamaCpp, "stop_grace_s", 5.0)


@pytest.fixture
def host_id() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def runtime(host_id: str) -> AsyncIterator[ProcessRuntime]:
    """A runtime of a host of its own; no process of that host outlives the test."""
    made = ProcessRuntime(host_id)
    yield made
    while left := made.all():
        for _, process in left:
            await made.kill(process)
            await made.wait(process)


@pytest.fixture
async def world(tmp_path: Path, quick: None, host_id: str, runtime: ProcessRuntime) -> AsyncIterator[World]:
    async with httpx.AsyncClient(trust_env=False) as http:
        made = World(tmp_path, http, host_id)
        yield made
        await made.supervisor.let_go()
