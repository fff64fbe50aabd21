"""From ``POST /api/v1/deployments`` to the engine process being executed, model already on the host.

``python -m tests.bench.deploy [rounds]``: one JSON object a line.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fleet.engines.catalog import resolve
from tests.engine_fixtures import find_small_model
from tests.stack import Stack, eventually
from worker_host.install import Engines

GOAL_MS = 500.0


def main(rounds: int = 20) -> None:
    engines = Path.home() / ".cache" / "holdfast-tests" / "engines"
    adapter = resolve("auto")
    asyncio.run(Engines(engines, ()).ensure(adapter, adapter.default_version))
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        stack = Stack(Path(folder), engines=engines)
        try:
            stack.start()
            stack.add_host("bench")
            report(*measure(stack, str(find_small_model()), rounds))
        finally:
            stack.stop()


def measure(stack: Stack, model: str, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds until the answer, until the engine is executed, and until the deployment is ready."""
    answered, executed, ready = [], [], []
    for n in range(rounds):
        name = f"bench-{n}"
        begin = _since_boot()
        stack.deploy(name, model)
        answered.append((_since_boot() - begin) * 1e3)
        pid = eventually(lambda: next(iter(stack.engine_pids()), None), within=30, every=0.01)
        executed.append((_executed_at(pid) - begin) * 1e3)
        stack.until_ready(name)
        ready.append((_since_boot() - begin) * 1e3)
        stack.ok(stack.http.delete(f"/deployments/{name}"))
        stack.until_gone(name)
    return answered, executed, ready


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _executed_at(pid: int) -> float:
    """Seconds since boot, in steps of a clock tick (10 ms)."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat.rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def report(answered: list[float], executed: list[float], ready: list[float]) -> None:
    for metric, values, goal in (
        ("post_answered_p50", answered, None),
        ("engine_executed_p50", executed, GOAL_MS),
        ("ready_p50", ready, None),
    ):
        _print(metric, statistics.median(values), goal)
        _print(metric.replace("p50", "max"), max(values), None)


def _print(metric: str, value: float, vs: float | None) -> None:
    print(json.dumps({"bench": "deploy", "metric": metric, "value": round(value, 1), "unit": "ms", "vs": vs}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
