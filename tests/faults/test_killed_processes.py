"""kill -9 of any process at any moment: what serves goes on, what was wanted comes true, nothing is left."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.faults.load import steady_load
from tests.stack import Stack, eventually
from tests.stack_fixtures import asker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def serving_stack(shared_serving_stack: Stack) -> Iterator[Stack]:
    """Whole at the beginning of each test, whatever the one before has left."""
    yield shared_serving_stack
    shared_serving_stack.revive()


@pytest.fixture(scope="module")
def shared_serving_stack(new_stack: Callable[..., Stack], small_model: Path) -> Stack:
    stack = new_stack()
    stack.add_host("a")
    stack.deploy("smol", str(small_model))
    stack.until_ready("smol")
    return stack


def only(items: dict[int, str]) -> int:
    [pid] = items
    return pid


def test_killed_controller_fails_no_request_and_touches_no_engine(serving_stack: Stack) -> None:
    stack = serving_stack
    engine = only(stack.engine_pids())
    with steady_load(stack, "smol") as load:
        stack.controller.kill()
        stack.controller.start()
        change = {"labels": {"after": "kill"}}
        eventually(lambda: stack.http.patch("/deployments/smol", json=change).is_success, what="a change is taken")
        eventually(lambda: stack.deployment("smol")["labels"].get("after") == "kill", what="a change after the kill")
    load.assert_unharmed()
    assert only(stack.engine_pids()) == engine


def _said_after(stack: Stack, moment: datetime) -> bool:
    said = stack.host("a")["status_at"]
    return said is not None and datetime.fromisoformat(said) > moment


def test_killed_relay_fails_no_request_and_its_host_is_not_lost(serving_stack: Stack) -> None:
    stack = serving_stack
    engine = only(stack.engine_pids())
    before = stack.instances("smol")[0]
    with steady_load(stack, "smol") as load:
        stack.relay.kill()
        stack.relay.start()
        eventually(lambda: stack.host("a")["tunnel_connected"] and stack.relay.log().count("is open") >= 2, within=30)
        back = datetime.now(UTC)
        eventually(lambda: _said_after(stack, back), within=30, what="the host is heard of again")
    load.assert_unharmed()
    assert only(stack.engine_pids()) == engine
    after = stack.instances("smol")[0]
    assert (after["id"], after["fence"], after["restarts"]) == (before["id"], before["fence"], 0)
    assert stack.host("a")["state"] == "ready"


def test_killed_host_worker_cuts_only_answers_on_their_way_and_adopts_its_engine(serving_stack: Stack) -> None:
    """All answers go through its process: those that had begun break off, all others are asked again."""
    stack = serving_stack
    engine = only(stack.engine_pids())
    before = stack.instances("smol")[0]
    host = stack.hosts["a"]
    with steady_load(stack, "smol") as load:
        eventually(lambda: load.answered() > 5, what="requests are answered")
        killed = time.monotonic()
        host.kill()
        host.start()
        eventually(lambda: "adopted" in host.log() and "taking work" in host.log().split("adopted")[-1], within=30)
        eventually(lambda: load.answered() > 20, what="requests are answered again")
    load.assert_only_begun_streams_were_cut([killed], at_most=1)
    assert only(stack.engine_pids()) == engine
    after = stack.instances("smol")[0]
    assert (after["id"], after["fence"], after["restarts"]) == (before["id"], before["fence"], 0)


def test_killed_api_comes_back_with_everything_it_knew(serving_stack: Stack) -> None:
    stack = serving_stack
    engine = only(stack.engine_pids())
    stack.api.kill()
    stack.api.start()
    eventually(lambda: "Paris" in asker(stack)("smol"), within=30, what="an answer after the kill")
    assert only(stack.engine_pids()) == engine


def test_killed_temporal_fails_no_request_and_restarts_nothing(serving_stack: Stack) -> None:
    stack = serving_stack
    engine = only(stack.engine_pids())
    with steady_load(stack, "smol") as load:
        stack.temporal.kill()
        refused = stack.http.patch("/deployments/smol", json={"labels": {"x": "y"}})
        assert refused.status_code == 503
        assert refused.json()["hint"]
        assert stack.deployment("smol")["status"]["phase"] == "ready", "reading goes on"
        stack.temporal.start()
        eventually(lambda: stack.http.patch("/deployments/smol", json={"labels": {"x": "z"}}).is_success, within=60)
        eventually(lambda: stack.deployment("smol")["labels"].get("x") == "z", within=30)
    load.assert_unharmed()
    assert only(stack.engine_pids()) == engine
    assert stack.host("a")["state"] in ("ready", "suspect")
    eventually(lambda: stack.host("a")["state"] == "ready", within=30)
    assert only(stack.engine_pids()) == engine


def test_killed_engine_is_started_again_within_seconds(serving_stack: Stack) -> None:
    stack = serving_stack
    engine = only(stack.engine_pids())
    os.kill(engine, signal.SIGKILL)
    # About 1 s on a quiet machine; what it must not be is a health check's timeout (15 s) and a backoff.
    eventually(lambda: stack.engine_pids() and only(stack.engine_pids()) != engine, within=12, every=0.01)
    stack.until_ready("smol")
    assert stack.instances("smol")[0]["restarts"] == 1
    assert "Paris" in asker(stack)("smol")


def test_engine_that_died_while_its_host_worker_was_away_is_replaced(serving_stack: Stack) -> None:
    stack = serving_stack
    engine = only(stack.engine_pids())
    stack.hosts["a"].kill()
    os.kill(engine, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(engine)] if psutil.pid_exists(engine) else [], timeout=5)
    stack.hosts["a"].start()
    eventually(lambda: stack.engine_pids() and only(stack.engine_pids()) != engine, within=30)
    stack.until_ready("smol")
    assert "Paris" in asker(stack)("smol")


def test_what_is_deleted_while_its_host_worker_is_away_is_stopped_when_it_is_back(
    serving_stack: Stack, small_model: Path
) -> None:
    stack = serving_stack
    stack.deploy("doomed", str(small_model))
    stack.until_ready("doomed")
    pid = next(p for p, i in stack.engine_pids().items() if i.startswith("doomed/"))
    stack.hosts["a"].kill()
    stack.ok(stack.http.delete("/deployments/doomed"))
    assert psutil.pid_exists(pid)
    stack.hosts["a"].start()
    stack.until_gone("doomed", within=60)
    eventually(lambda: pid not in stack.engine_pids(), within=30)
    assert len(stack.engine_pids()) == 1


@pytest.mark.parametrize("victim", ["controller", "host", "api"])
def test_a_kill_at_every_moment_of_a_life_ends_in_the_wanted_state(
    serving_stack: Stack, small_model: Path, victim: str
) -> None:
    """Kill after 0, 50, 100 … ms of: create, scale, restart, delete. Afterwards exactly the wanted engines run."""
    stack = serving_stack
    process = stack.hosts["a"] if victim == "host" else getattr(stack, victim)
    used_before = stack.host("a")["ram_used_bytes"]
    name = f"life-{victim}"

    def again(call: Callable[[], httpx.Response], done: Callable[[httpx.Response], bool]) -> None:
        """As a script would: until the answer says that it was done."""

        def attempt() -> bool:
            return done(call())

        eventually(attempt, within=60, what=f"{victim} killed in {name}")

    steps: list[tuple[Callable[[], httpx.Response], Callable[[httpx.Response], bool], int]] = [
        (
            lambda: stack.http.post(
                "/deployments",
                json={"name": name, "spec": {"model": {"path": str(small_model)}, **SMALL}},
                headers={"idempotency-key": name},
            ),
            lambda a: a.is_success,
            1,
        ),
        (lambda: stack.http.patch(f"/deployments/{name}", json={"spec": {"replicas": 2}}), lambda a: a.is_success, 2),
        (lambda: stack.http.post(f"/deployments/{name}/restart"), lambda a: a.is_success, 2),
        (lambda: stack.http.patch(f"/deployments/{name}", json={"spec": {"replicas": 1}}), lambda a: a.is_success, 1),
    ]
    moments = itertools.cycle((0.0, 0.05, 0.1, 0.2, 0.4, 0.8))
    for call, done, replicas in steps:
        killer = threading.Timer(next(moments), lambda: (process.kill(), process.start()))
        killer.start()
        again(call, done)
        killer.join()
        stack.until_ready(name, replicas, within=120)
        eventually(lambda n=replicas: len(_engines_of(stack, name)) == n, within=90, what=f"{replicas} engines")

    killer = threading.Timer(next(moments), lambda: (process.kill(), process.start()))
    killer.start()
    again(lambda: stack.http.delete(f"/deployments/{name}"), lambda a: a.status_code in (202, 404))
    killer.join()
    stack.until_gone(name, within=120)
    eventually(lambda: not _engines_of(stack, name), within=90, what="no engine left")
    eventually(lambda: stack.host("a")["ram_used_bytes"] == used_before, within=90, what="memory given back")


SMALL: dict[str, Any] = {"max_model_len": 512, "concurrency": 1, "resources": {"cpu_threads": 1}}


def _engines_of(stack: Stack, name: str) -> list[int]:
    return [pid for pid, instance in stack.engine_pids().items() if instance.startswith(f"{name}/")]
