"""Faults at random, one after the other and now and then two at once; after each everything must settle.

``HOLDFAST_SOAK_SEED`` repeats a run, ``HOLDFAST_SOAK_FAULTS`` and ``HOLDFAST_SOAK_SECONDS`` make it longer. The seed is
printed at the beginning, and with everything that was done when something does not hold.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.faults.invariants import Checker, Engine, InvariantBroken, engines, watched
from tests.faults.load import steady_load
from tests.stack import Process, Stack, eventually
from tests.stack_fixtures import asker

SEED = int(os.environ.get("HOLDFAST_SOAK_SEED") or time.time_ns() % 1_000_000)
FAULTS = int(os.environ.get("HOLDFAST_SOAK_FAULTS") or 100)
SECONDS = float(os.environ.get("HOLDFAST_SOAK_SECONDS") or 300)
"""No fault is begun later than this."""
AT_LEAST = min(FAULTS, 30)
"""On a machine that is too slow for all of them."""
SETTLES_WITHIN_S = 120.0
TWO_AT_ONCE = 0.15

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 2 * SETTLES_WITHIN_S)]

SETTINGS = {
    # All that is killed here must count as something that had long served, and hosts be lost without a long wait.
    "HOLDFAST_TIMINGS": '{"stable_after": 0, "lease_heartbeat": 6, "lease_grace": 3}',
    # Two hosts of two are more than any share: whether too many are lost at once is for other tests.
    "HOLDFAST_BREAKER_SHARE": "1",
}
SPEC: dict[str, Any] = {
    "max_model_len": 256,
    "concurrency": 1,
    "resources": {"cpu_threads": 1},
    "restart": {"max_failures": 1000, "failures_per_host": 1000},
    "health": {"unresponsive_timeout_s": 5, "start_timeout_s": 30},
}
NAMES = ("one", "two")


class Soak:
    """What is done to a stack, by a generator of random numbers alone, and what was done."""

    def __init__(self, stack: Stack, model: Path) -> None:
        self.stack = stack
        self._model = str(model)
        self.chance = random.Random(SEED)
        self.done: list[str] = []
        self._faults: dict[Callable[[], str], int] = {
            self.engine_killed: 34,
            self.controller_killed: 10,
            self.api_killed: 6,
            self.worker_killed: 12,
            self.temporal_killed: 4,
            self.worker_frozen: 6,
            self.engine_frozen: 2,
            self.host_gone: 2,
            self.scaled: 10,
            self.restarted: 4,
            self.changed: 4,
            self.made_anew: 3,
            self.drained: 3,
        }

    def deploy(self, name: str) -> None:
        self.stack.deploy(name, self._model, replicas=2, **SPEC)

    def next(self) -> list[Callable[[], str]]:
        count = 2 if self.chance.random() < TWO_AT_ONCE else 1
        return self.chance.choices(list(self._faults), list(self._faults.values()), k=count)

    # -- faults; each answers what it did --------------------------------------------------------------------------

    def engine_killed(self) -> str:
        engine = self._engine()
        if engine is None:
            return "no engine to kill"
        _signal(engine.pid, signal.SIGKILL)
        return f"killed the engine of {engine.key}"

    def controller_killed(self) -> str:
        return self._killed(self.stack.controller)

    def api_killed(self) -> str:
        return self._killed(self.stack.api)

    def worker_killed(self) -> str:
        return self._killed(self._worker())

    def temporal_killed(self) -> str:
        return self._killed(self.stack.temporal)

    def worker_frozen(self) -> str:
        worker, seconds = self._worker(), self.chance.uniform(0.5, 3)
        _signal(worker.pid, signal.SIGSTOP)
        time.sleep(seconds)
        _signal(worker.pid, signal.SIGCONT)
        return f"froze {worker.name} for {seconds:.1f} s"

    def engine_frozen(self) -> str:
        engine = self._engine()
        if engine is None:
            return "no engine to freeze"
        _signal(engine.pid, signal.SIGSTOP)
        gone: Callable[[], bool] = lambda: engine.pid not in {e.pid for e in engines(self.stack)}  # noqa: E731
        eventually(gone, within=SETTLES_WITHIN_S, what="the frozen engine is given up")
        return f"froze the engine of {engine.key}"

    def host_gone(self) -> str:
        """Until it is lost, or nearly; then its worker comes back and finds nothing."""
        worker, seconds = self._worker(), self.chance.uniform(6, 16)
        host_id = self.stack.host(worker.name.removeprefix("host-"))["id"]
        worker.kill()
        for engine in engines(self.stack):
            if engine.host_id == host_id:
                _signal(engine.pid, signal.SIGKILL)
        time.sleep(seconds)
        worker.start()
        return f"{worker.name} was gone for {seconds:.1f} s"

    def scaled(self) -> str:
        name, replicas = self._name(), self.chance.randint(1, 3)
        self._ask("PATCH", f"/deployments/{name}", {"spec": {"replicas": replicas}})
        return f"scaled {name} to {replicas}"

    def restarted(self) -> str:
        name = self._name()
        self._ask("POST", f"/deployments/{name}/restart")
        return f"restarted {name}"

    def changed(self) -> str:
        name, length = self._name(), self.chance.choice([128, 192, 320])
        self._ask("PATCH", f"/deployments/{name}", {"spec": {"max_model_len": length}})
        return f"rolled out {name} with a context of {length}"

    def made_anew(self) -> str:
        name = self._name()
        self._ask("DELETE", f"/deployments/{name}")
        self.stack.until_gone(name, within=SETTLES_WITHIN_S)
        self.deploy(name)
        return f"deleted {name} and made it anew"

    def drained(self) -> str:
        name, seconds = self.chance.choice(sorted(self.stack.hosts)), self.chance.uniform(0, 4)
        host_id = eventually(lambda: self.stack.host(name), what="the host is known")["id"]
        self._ask("POST", f"/hosts/{host_id}/drain", {})
        time.sleep(seconds)
        self._ask("POST", f"/hosts/{host_id}/resume")
        return f"drained {name} for {seconds:.1f} s"

    # -- small things ----------------------------------------------------------------------------------------------

    def _name(self) -> str:
        return self.chance.choice(NAMES)

    def _worker(self) -> Process:
        return self.stack.hosts[self.chance.choice(sorted(self.stack.hosts))]

    def _engine(self) -> Engine | None:
        running = sorted(engines(self.stack), key=lambda e: e.key)
        return self.chance.choice(running) if running else None

    def _killed(self, process: Process) -> str:
        """Back after a moment, as a supervisor would have it."""
        seconds = self.chance.choice([0.0, 0.0, 0.5, 2.0])
        process.kill()
        time.sleep(seconds)
        process.start()
        return f"killed {process.name} for {seconds} s"

    def _ask(self, method: str, path: str, body: object = None) -> None:
        """As a script would: until it is done. The same twice is done once."""

        def asked() -> bool:
            answer = self.stack.http.request(method, path, json=body)
            assert answer.status_code < 500 or answer.status_code == 503, answer.text
            return answer.is_success

        eventually(asked, within=SETTLES_WITHIN_S, what=f"{method} {path}")


def _signal(pid: int, number: int) -> None:
    try:
        psutil.Process(pid).send_signal(number)
    except psutil.NoSuchProcess:
        return


@pytest.fixture
def soak(new_stack: Callable[..., Stack], small_model: Path) -> Iterator[Soak]:
    stack = new_stack(**SETTINGS)
    for name in ("a", "b"):
        stack.add_host(name)
    soak = Soak(stack, small_model)
    for name in NAMES:
        soak.deploy(name)
    yield soak
    for host in stack.hosts.values():
        _signal(host.pid, signal.SIGCONT)


def test_after_a_hundred_random_faults_all_is_as_it_should_be(soak: Soak, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nsoak: HOLDFAST_SOAK_SEED={SEED}", flush=True)
    began = time.monotonic()
    try:
        with watched(soak.stack) as checker, steady_load(soak.stack, *NAMES, clients=1, streaming=0, pause=0.5) as load:
            checker.settled(SETTLES_WITHIN_S)
            while len(soak.done) < FAULTS and time.monotonic() - began < SECONDS:
                _one_more(soak, checker)
        assert len(soak.done) >= AT_LEAST
        assert load.answered() > len(soak.done)
    except AssertionError as error:
        raise InvariantBroken(_report(soak, error)) from error
    with capsys.disabled():
        print(f"soak: {len(soak.done)} faults in {time.monotonic() - began:.0f} s", flush=True)


def _one_more(soak: Soak, checker: Checker) -> None:
    """One fault, or two at once; then all holds, and each deployment answers."""
    for fault in soak.next():
        at = time.monotonic()
        soak.done.append(f"{fault.__name__} …")
        soak.done[-1] = f"{fault()} ({time.monotonic() - at:.1f} s)"
    at = time.monotonic()
    checker.settled(SETTLES_WITHIN_S)
    for name in NAMES:
        eventually(lambda n=name: asker(soak.stack)(n), within=30, what=f"{name} answers")  # type: ignore[misc]
    soak.done[-1] += f", settled in {time.monotonic() - at:.1f} s"


def _report(soak: Soak, error: AssertionError) -> str:
    try:
        state = [soak.stack.http.get(path).json() for path in ("/deployments", "/instances", "/hosts")]
    except httpx.HTTPError as unreachable:
        state = [{"unreachable": repr(unreachable)}]
    steps = "\n".join(f"{n + 1}. {done}" for n, done in enumerate(soak.done))
    return f"HOLDFAST_SOAK_SEED={SEED}\n{steps}\n{error}\n{json.dumps(state, indent=1)}\n{soak.stack.logs()}"
