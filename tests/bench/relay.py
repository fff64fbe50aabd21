"""What the relay costs a heartbeat: CPU of its process, and time, against the same heartbeat straight to Temporal.

``python -m tests.bench.relay [heartbeats]`` prints one JSON object a line. Both ways are measured in turns in one run,
with the same client, on a real Temporal server; ``vs`` is the way without the relay.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
from temporalio import activity, workflow
from temporalio.api.workflowservice.v1 import RecordActivityTaskHeartbeatRequest
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api.relay.ownership import TaskTokens
from api.relay.temporal_calls import SERVICE
from fleet.access.keys import master_secret
from fleet.ids import host_queue
from fleet.join import AUTHORIZATION
from fleet.temporal import connect
from tests.raw_host import RawHost
from tests.relay_stack import RelayStack

HEARTBEATS = 1500
ROUND = 250
AT_ONCE = 16
CONTROL = "control-of-bench"

Beat = Callable[[], Awaitable[bytes]]


@workflow.defn
class HoldOneTask:
    @workflow.run
    async def run(self, queue: str) -> None:
        await workflow.execute_activity(
            "held",
            task_queue=queue,
            start_to_close_timeout=timedelta(hours=1),
            heartbeat_timeout=timedelta(minutes=5),
        )


@dataclass
class Measured:
    seconds: list[float]
    busy_s: float
    """CPU of Temporal and, if it is on the way, the relay's."""
    relay_s: float


def main(heartbeats: int = HEARTBEATS) -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        stack = RelayStack(Path(folder))
        try:
            stack.start()
            asyncio.run(_run(stack, heartbeats))
        finally:
            stack.stop()


async def _run(stack: RelayStack, heartbeats: int) -> None:
    client = await connect(stack.settings)
    host = await stack.new_host("bench")
    runner = UnsandboxedWorkflowRunner()
    async with Worker(client, task_queue=CONTROL, workflows=[HoldOneTask], workflow_runner=runner):
        sealed = await _held_token(client, host)
        raw = TaskTokens(master_secret(stack.settings)).open(sealed, host.host_id)
        async with (
            host.channel() as relay,
            grpc.aio.insecure_channel(client.service_client.config.target_host) as direct,
        ):
            through = _beat(relay, host.namespace, sealed, host.authorization())
            straight = _beat(direct, host.namespace, raw, "")
            await _measure(stack, straight, through, heartbeats)


async def _held_token(client: Client, host: RawHost) -> bytes:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @activity.defn
    async def held() -> None:
        got.set_result(activity.info().task_token)
        activity.raise_complete_async()

    @activity.defn
    async def hold_lease(_: Any) -> None:
        """The host's own, which its workflow asks for on the same queue."""
        activity.raise_complete_async()

    queue = host_queue(host.host_id)
    await client.start_workflow(HoldOneTask.run, queue, id=f"bench-{uuid.uuid4()}", task_queue=CONTROL)
    async with Worker(await host.temporal(), task_queue=queue, activities=[held, hold_lease]):
        return await asyncio.wait_for(got, 60)


def _beat(channel: grpc.aio.Channel, namespace: str, token: bytes, authorization: str) -> Beat:
    call = channel.unary_unary(SERVICE + "RecordActivityTaskHeartbeat")
    request = RecordActivityTaskHeartbeatRequest(namespace=namespace, task_token=token, identity="bench")
    metadata = ((AUTHORIZATION, authorization),) if authorization else ()

    async def beat() -> bytes:
        return await call(request.SerializeToString(), metadata=metadata, timeout=10)

    return beat


async def _measure(stack: RelayStack, straight: Beat, through: Beat, heartbeats: int) -> None:
    for beat in (straight, through):
        await _one_by_one(beat, 50)
    alone: dict[str, list[float]] = {"direct": [], "relay": []}
    together: dict[str, list[Measured]] = {"direct": [], "relay": []}
    for _ in range(max(1, heartbeats // ROUND)):
        for way, beat in (("direct", straight), ("relay", through)):
            alone[way] += await _one_by_one(beat, ROUND // 2)
            together[way].append(await _at_once(stack, beat, ROUND))
    _print_latency(alone)
    _print_cost(together)


async def _one_by_one(beat: Beat, count: int) -> list[float]:
    return [await _timed(beat) for _ in range(count)]


async def _at_once(stack: RelayStack, beat: Beat, count: int) -> Measured:
    temporal, relay = psutil.Process(stack.temporal.pid), psutil.Process(stack.relay.pid)
    before = _cpu(temporal), _cpu(relay)

    async def some() -> list[float]:
        return await _one_by_one(beat, count // AT_ONCE)

    seconds = [s for one in await asyncio.gather(*(some() for _ in range(AT_ONCE))) for s in one]
    used = _cpu(temporal) - before[0], _cpu(relay) - before[1]
    return Measured(seconds, sum(used), used[1])


async def _timed(beat: Beat) -> float:
    began = time.perf_counter()
    await beat()
    return time.perf_counter() - began


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _print_latency(alone: dict[str, list[float]]) -> None:
    for name, quantile in (("p50", 0.5), ("p99", 0.99)):
        direct, relay = (_quantile(alone[way], quantile) * 1000 for way in ("direct", "relay"))
        _print(f"heartbeat_latency_{name}", relay, "ms", direct)
        _print(f"heartbeat_latency_added_{name}", relay - direct, "ms", None)


def _print_cost(together: dict[str, list[Measured]]) -> None:
    beats = {way: sum(len(m.seconds) for m in found) for way, found in together.items()}
    whole = {way: 1000 * sum(m.busy_s for m in found) / beats[way] for way, found in together.items()}
    own = 1000 * sum(m.relay_s for m in together["relay"]) / beats["relay"]
    _print("relay_cpu_per_heartbeat", own, "ms", None)
    _print("relay_heartbeats_per_core", 1000 / own, "1/s", None)
    _print("cpu_per_heartbeat_all_servers", whole["relay"], "ms", whole["direct"])
    _print("cpu_ratio_with_relay", whole["relay"] / whole["direct"], "", 1.0)


def _quantile(values: list[float], quantile: float) -> float:
    return statistics.quantiles(values, n=100)[round(quantile * 100) - 1]


def _print(metric: str, value: float, unit: str, vs: float | None) -> None:
    shown = None if vs is None else round(vs, 3)
    print(
        json.dumps({"bench": "relay", "metric": metric, "value": round(value, 3), "unit": unit, "vs": shown}),
        flush=True,
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
