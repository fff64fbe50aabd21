import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleet.engines.llama_cpp import LlamaCpp
from fleet.policy import hang
from fleet.serving import listen, serving
from tests.unit.host.world import World
from worker_host import lease, supervised, watch
from worker_host.runtime.process import ProcessRuntime


class Door:
    """A real web server, shared because each takes its time to close; behind it is whatever the test puts there."""

    app: Any
    port: int

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.fixture(scope="session")
async def door() -> AsyncIterator[Door]:
    made, listening = Door(), listen("127.0.0.1", 0)
    made.port = listening.getsockname()[1]
    async with serving(made, listening, grace_s=1.0, lifespan="off"):
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of the host, shrunk."""
    monkeypatch.setattr(supervised, "BEAT_S", 0.05)
    monkeypatch.setattr(supervised, "_RETRY_S", 0.05)
    monkeypatch.setattr(supervised, "_BUSY_POLL_S", 0.02)
    monkeypatch.setattr(supervised, "_GATEWAYS_REFRESH_S", 0.02)
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
