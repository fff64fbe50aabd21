"""How long it takes until what was lost is there again, under load: engine, host, Temporal.

``python -m tests.bench.recovery [rounds]`` prints one JSON object a line. ``vs``: what the field's best-known platform
takes for the same, by its source and documentation; null where it has no figure.
"""

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from fleet.engines.catalog import resolve
from tests.engine_fixtures import find_small_model
from tests.faults.invariants import Checker, Engine, engines
from tests.faults.load import Load, steady_load
from tests.stack import Stack, eventually
from worker_host.install import Engines

REPLICAS = 2
ENGINE_RESTARTED_S = 3.0
"""Its worker looks every 3 s."""
HANG_NOTICED_S = 600.0
"""Only if switched on: three probes, one every 300 s."""
HOST_REPLACED_S = 300.0
"""Unreachable after 150 s, replaced after 300 s."""
CHANGE_TAKEN_S = 180.0
"""After a restart of its server its scheduler looks every 180 s."""
TIMINGS = {"HOLDFAST_TIMINGS": '{"stable_after": 0}'}
"""Every engine that is killed counts as one that had long served: it is the first retry that is measured."""
PATIENT = {"max_failures": 1000, "failures_per_host": 1000}


def main(rounds: int = 10) -> None:
    folder = Path.home() / ".cache" / "holdfast-tests" / "engines"
    adapter = resolve("auto")
    asyncio.run(Engines(folder, ()).ensure(adapter, adapter.default_version))
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as home:
        stack = Stack(Path(home), engines=folder, env=TIMINGS)
        try:
            stack.start()
            for host in ("a", "b"):
                stack.add_host(host)
            stack.deploy("smol", str(find_small_model()), replicas=REPLICAS, restart=PATIENT)
            stack.until_ready("smol", REPLICAS)
            measure(stack, rounds)
        finally:
            stack.stop()


def measure(stack: Stack, rounds: int) -> None:
    checker = Checker(stack)
    try:
        engine_killed(stack, checker, rounds)
        engine_hangs(stack, checker)
        worker_killed(stack, checker)
        host_gone(stack, checker)
        temporal_killed(stack, checker)
    finally:
        checker.close()


def engine_killed(stack: Stack, checker: Checker, rounds: int) -> None:
    started, ready = [], []
    with steady_load(stack, "smol") as load:
        # Always of the same replica: gateways may not know yet that it is there again, but the other one they do.
        always = engines(stack)[0].instance_id
        for _ in range(rounds):
            victim = next(e for e in engines(stack) if e.instance_id == always)
            at = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            started.append(_next_of(stack, victim).began - at)
            eventually(lambda v=victim: _routed_again(checker, v), within=30, what="ready")  # type: ignore[misc]
            ready.append(time.monotonic() - at)
            checker.settled()
    _print_times("engine_killed_to_started", started, ENGINE_RESTARTED_S)
    _print_times("engine_killed_to_ready", ready, ENGINE_RESTARTED_S)
    _print_failed("engine_killed", load)


def engine_hangs(stack: Stack, checker: Checker) -> None:
    with steady_load(stack, "smol") as load:
        victim = engines(stack)[0]
        at = time.monotonic()
        os.kill(victim.pid, signal.SIGSTOP)
        eventually(lambda: not _routed(checker, victim), within=60, what="out of routing")
        _print("engine_hangs_to_out_of_routing", time.monotonic() - at, "s", HANG_NOTICED_S)
        eventually(lambda: _routed_again(checker, victim), within=120, what="recovered")
        _print("engine_hangs_to_recovered", time.monotonic() - at, "s", HANG_NOTICED_S)
        checker.settled()
    _print_failed("engine_hangs", load)


def worker_killed(stack: Stack, checker: Checker, rounds: int = 3) -> None:
    host, adopted = stack.hosts["a"], []
    before = {e.pid for e in engines(stack)}
    with steady_load(stack, "smol") as load:
        for _ in range(rounds):
            seen = host.log().count("adopted")
            at = time.monotonic()
            host.kill()
            host.start()
            eventually(lambda n=seen: host.log().count("adopted") > n, within=30, what="adopted")  # type: ignore[misc]
            adopted.append(time.monotonic() - at)
            checker.settled()
    assert {e.pid for e in engines(stack)} == before, "engines go on"
    _print_times("worker_killed_to_adopted", adopted, None)
    _print_failed("worker_killed", load)


def host_gone(stack: Stack, checker: Checker) -> None:
    lost = stack.host("b")["id"]
    victims = [e for e in engines(stack) if e.host_id == lost]
    with steady_load(stack, "smol") as load:
        at = time.monotonic()
        stack.hosts["b"].kill()
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        started = [_next_of(stack, v, within=90).began - at for v in victims]
        _print_times("host_gone_to_started_elsewhere", started, HOST_REPLACED_S)
        stack.hosts["b"].start()
        checker.settled()
    _print_failed("host_gone", load)


def temporal_killed(stack: Stack, checker: Checker) -> None:
    def change() -> bool:
        return stack.http.patch("/deployments/smol", json={"labels": {"after": "kill"}}).is_success

    with steady_load(stack, "smol") as load:
        stack.temporal.kill()
        at = time.monotonic()
        stack.temporal.start()
        eventually(change, within=60, what="a change is taken")
        _print("temporal_killed_to_change_taken", time.monotonic() - at, "s", CHANGE_TAKEN_S)
        checker.settled()
    _print_failed("temporal_killed", load)


def _next_of(stack: Stack, old: Engine, within: float = 30.0) -> Engine:
    def found() -> Engine | None:
        newer = (e for e in engines(stack) if e.instance_id == old.instance_id and e.fence > old.fence)
        return next(newer, None)

    engine = eventually(found, within=within, what=f"the next engine of {old.instance_id}")
    assert engine is not None
    return engine


def _routed(checker: Checker, engine: Engine) -> bool:
    endpoints = checker.books().endpoints
    return any((e.instance_id, e.fence) == engine.key and e.state == "ready" for e in endpoints)


def _routed_again(checker: Checker, old: Engine) -> bool:
    endpoints = checker.books().endpoints
    return any(e.instance_id == old.instance_id and e.fence > old.fence and e.state == "ready" for e in endpoints)


def _print_times(metric: str, seconds: Iterable[float], vs: float | None) -> None:
    values = list(seconds)
    _print(f"{metric}_p50", statistics.median(values), "s", vs)
    _print(f"{metric}_max", max(values), "s", vs)


def _print_failed(fault: str, load: Load) -> None:
    failed = load.failures()
    _print(f"{fault}_failed_requests", sum(not o.streamed for o in failed), "requests", None)
    _print(f"{fault}_cut_streams", sum(o.streamed for o in failed), "requests", None)
    _print(f"{fault}_answered_requests", load.answered(), "requests", None)


def _print(metric: str, value: float, unit: str, vs: float | None) -> None:
    line = {"bench": "recovery", "metric": metric, "value": round(value, 3), "unit": unit, "vs": vs}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
