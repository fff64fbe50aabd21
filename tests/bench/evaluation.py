"""How long an evaluation takes at 1,000 hosts with 8 GPUs of four kinds, and how long it holds up everything else.

``python -m tests.bench.evaluation`` prints one JSON object a line. The management API itself is asked, on SQLite, with
the facts of models at hand (``tests.unit.evaluation.hub`` was read before). ``cpu``: what it takes of one core, which
other load on the machine does not change. ``loop_gap``: the longest that the event loop was not free.
"""

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlmodel import Session

from api.management.evaluating import Evaluator
from fleet.catalog.gpu_models import gpu_models
from fleet.db.migrate import upgrade
from fleet.db.session import Database
from fleet.db.tables import GpuRow, HostRow
from fleet.inventory import AcceleratorKind, EngineBuild, Gpu, Inventory
from fleet.states import HostState
from tests.unit.api.world import ADMIN, World
from tests.unit.evaluation.hub import FakeHub

HOSTS = 1000
GPUS = 8
CARDS = ("H100", "H200", "L40S", "A100-80GB")
QUESTIONS = 300
TARGET_MS = 50.0
MODELS = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "zai-org/GLM-4.5-Air")
_GIB = 1 << 30


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        url = f"sqlite:///{Path(folder) / 'holdfast.db'}"
        upgrade(url)
        database = Database(url)
        world = World(database, Path(folder))
        world.add_key(ADMIN)
        database.write(_add_fleet)
        asyncio.run(_bench(world))
        database.close()


async def _bench(world: World) -> None:
    hub = FakeHub(*MODELS)
    world.app.state.evaluator = Evaluator(world.services, hub.facts())
    async with world.client() as client:
        for repo in MODELS:
            await _ask(client, {"spec": _spec(repo)})
        for name, ask in _questions(client).items():
            await _measure(name, ask)
    await world.app.state.evaluator.aclose()
    await world.hosts.aclose()
    hub.close()


def _questions(client: httpx.AsyncClient) -> dict[str, Callable[[random.Random], Awaitable[None]]]:
    """No two are the same: nothing but facts of models is at hand."""

    def body(chance: random.Random) -> dict[str, Any]:
        spec = _spec(chance.choice(MODELS)) | {"max_model_len": chance.randrange(1024, 32_768)}
        return {"spec": spec | {"concurrency": chance.randrange(1, 64)}, "replicas": chance.randrange(1, 50)}

    async def fleet(chance: random.Random) -> None:
        await _ask(client, body(chance))

    async def several_hosts(chance: random.Random) -> None:
        asked = body(chance)
        await _ask(client, {**asked, "spec": {**asked["spec"], "placement": {"multi_host": True}}})

    async def catalog(chance: random.Random) -> None:
        await _ask(client, {**body(chance), "against": "catalog"})

    async def same_again(_chance: random.Random) -> None:
        await _ask(client, {"spec": _spec(MODELS[1]), "replicas": 4})

    return {"fleet": fleet, "several_hosts": several_hosts, "catalog": catalog, "same_again": same_again}


def _spec(repo: str) -> dict[str, Any]:
    return {"model": {"source": "huggingface", "repo": repo}, "engine": "vllm"}


async def _ask(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    said = await client.post("/api/v1/evaluations", json=body)
    assert said.status_code == 200, said.text
    assert said.json()["max_replicas"]["now"] != 0, said.json()["messages"]


async def _measure(name: str, ask: Callable[[random.Random], Awaitable[None]]) -> None:
    chance, walls, cpus = random.Random(7), [], []
    gaps: list[float] = []
    with _watched(gaps):
        for _ in range(QUESTIONS):
            wall, cpu = time.perf_counter(), time.process_time()
            await ask(chance)
            walls.append((time.perf_counter() - wall) * 1000)
            cpus.append((time.process_time() - cpu) * 1000)
    _print(f"{name}_p50", statistics.median(walls), cpu=round(statistics.median(cpus), 1))
    p95 = statistics.quantiles(walls, n=20)[-1]
    _print(f"{name}_p95", p95, target=TARGET_MS, cpu=round(statistics.quantiles(cpus, n=20)[-1], 1))
    share = sum(wall < TARGET_MS for wall in walls) / len(walls)
    _print(f"{name}_within_target", share, unit="1", target=0.95)
    _print(f"{name}_loop_gap_p95", statistics.quantiles(gaps, n=20)[-1])


@contextmanager
def _watched(gaps: list[float]) -> Iterator[None]:
    """Whether the event loop comes round every millisecond."""

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            gaps.append((time.perf_counter() - before) * 1000 - 1)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


def _add_fleet(session: Session) -> None:
    """A quarter of the hosts has each kind of card; half of the cards are half full."""
    chance = random.Random(1)
    for number in range(HOSTS):
        name = f"h{number:04}"
        said = _inventory(name, CARDS[number % len(CARDS)])
        session.add(_host(name, said))
        for gpu in said.gpus:
            used = gpu.memory_bytes // 2 if chance.random() < 0.5 else 0
            session.add(_gpu(name, gpu, used))


def _inventory(name: str, card: str) -> Inventory:
    model = gpu_models()[card]
    return Inventory(
        hostname=name,
        machine_id=name,
        boot_id="b",
        os="Linux",
        arch="x86_64",
        cpu_count=96,
        ram_bytes=1024 * _GIB,
        ram_allocatable_bytes=1000 * _GIB,
        disk_bytes=1,
        disk_free_bytes=1,
        gpus=tuple(
            Gpu(
                uuid=f"GPU-{name}-{index}",
                kind=AcceleratorKind.NVIDIA,
                name=model.reported_as,
                memory_bytes=model.memory_bytes,
                index=index,
                compute_capability=model.compute_capability,
            )
            for index in range(GPUS)
        ),
        engines=(EngineBuild(engine="vllm", version="0.32.0", accelerators=(AcceleratorKind.NVIDIA,)),),
    )


def _host(name: str, said: Inventory) -> HostRow:
    return HostRow(
        id=name,
        name=name,
        state=HostState.READY,
        credential_hash=name,
        address="127.0.0.1",
        http_port=1,
        inventory=said.model_dump(mode="json"),
        ram_allocatable=said.ram_allocatable_bytes,
        fingerprint=said.fingerprint(),
        fabric_address=name,
    )


def _gpu(host: str, gpu: Gpu, used: int) -> GpuRow:
    return GpuRow(
        uuid=gpu.uuid,
        host_id=host,
        index=gpu.index,
        kind=gpu.kind,
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        allocatable=gpu.memory_bytes,
        used=used,
        details=gpu.model_dump(mode="json"),
    )


def _print(metric: str, value: float, unit: str = "ms", **more: float) -> None:
    line = {"bench": "evaluation", "metric": metric, "value": round(value, 3), "unit": unit, **more}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
