"""Temporal, the database or the API is away: what serves goes on, what was acknowledged is there, nothing is half."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.database_fixtures import postgres_server
from tests.faults.invariants import Engine, engines, watched
from tests.faults.load import steady_load
from tests.stack import Process, Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TEMPORAL_AWAY_S = 60.0
DATABASE_AWAY_S = 30.0
REPLICAS = 2
KILLED_AFTER_S = (0.0, 0.005, 0.015, 0.04, 0.1, None)
"""How long after a write was sent its API is killed; None: when it has answered."""


@dataclass
class Writer:
    """Somebody who changes a deployment again and again, and remembers what was acknowledged."""

    acknowledged: int = 0
    sent: int = 0
    refusals: list[httpx.Response] = field(default_factory=list)

    def assert_nothing_lost(self, labels: dict[str, str]) -> None:
        """What is there is the last change that was acknowledged, or one sent after it, and it is whole."""
        assert labels["one"] == labels["other"]
        assert self.acknowledged <= int(labels["one"]) <= self.sent
        for refusal in self.refusals:
            assert_clean_refusal(refusal)


def assert_clean_refusal(answer: httpx.Response) -> None:
    assert answer.status_code == 503, f"{answer.status_code} {answer.text}"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert answer.json()["hint"]
    assert "retry-after" in answer.headers


@contextmanager
def writing(stack: Stack, name: str) -> Iterator[Writer]:
    writer, stop = Writer(), threading.Event()

    def write_on() -> None:
        while not stop.wait(0.25):
            writer.sent += 1
            labels = {"one": str(writer.sent), "other": str(writer.sent)}
            answer = stack.http.patch(f"/deployments/{name}", json={"labels": labels})
            if answer.is_success:
                writer.acknowledged = writer.sent
            else:
                writer.refusals.append(answer)

    thread = threading.Thread(target=write_on, daemon=True)
    thread.start()
    try:
        yield writer
    finally:
        stop.set()
        thread.join(30)


def serve(stack: Stack, model: Path) -> dict[int, Engine]:
    """Replicas of ``smol``, by pid."""
    stack.add_host("a")
    stack.deploy("smol", str(model), replicas=REPLICAS)
    stack.until_ready("smol", REPLICAS)
    return {e.pid: e for e in engines(stack)}


@pytest.fixture(scope="module")
def database_outage(new_stack: Callable[..., Stack], small_model: Path) -> Iterator["Future[None]"]:
    """Is under way beside the outage of Temporal, because both consist of waiting."""
    with postgres_server() as server, ThreadPoolExecutor(1) as beside:
        stack = new_stack(server.new_database("outage"))
        serve(stack, small_model)
        yield beside.submit(_database_goes_away_and_comes_back, stack, server.stop, server.start)
        stack.stop()


def test_with_temporal_away_for_a_minute_models_serve_reads_work_and_no_change_is_lost(
    database_outage: "Future[None]", new_stack: Callable[..., Stack], small_model: Path
) -> None:
    stack = new_stack()
    before = serve(stack, small_model)
    with watched(stack) as checker, steady_load(stack, "smol", pause=0.25) as load, writing(stack, "smol") as writer:
        eventually(lambda: writer.acknowledged >= 3, what="changes are taken")
        stack.temporal.kill()
        killed = time.monotonic()
        while time.monotonic() - killed < TEMPORAL_AWAY_S:
            assert stack.deployment("smol")["status"]["phase"] == "ready", "reading goes on"
            assert [i["state"] for i in stack.instances("smol")] == ["ready"] * REPLICAS
            time.sleep(1)
        assert writer.refusals
        acknowledged = writer.acknowledged
        stack.temporal.start()
        eventually(lambda: writer.acknowledged > acknowledged, within=30, what="changes are taken again")
        eventually(lambda: stack.host("a")["state"] == "ready", within=30, what="the host has its lease")
        checker.settled()
    load.assert_unharmed(at_least=100)
    eventually(lambda: int(stack.deployment("smol")["labels"]["one"]) >= writer.acknowledged)
    writer.assert_nothing_lost(stack.deployment("smol")["labels"])
    assert {e.pid: e for e in engines(stack)} == before, "no engine was restarted"
    assert [i["restarts"] for i in stack.instances("smol")] == [0] * REPLICAS
    stack.stop()


def test_with_the_database_away_models_serve_refusals_are_clean_and_all_recovers(
    database_outage: "Future[None]",
) -> None:
    database_outage.result()


def _database_goes_away_and_comes_back(stack: Stack, stop: Callable[..., None], start: Callable[[], None]) -> None:
    before = engines(stack)
    with watched(stack) as checker, steady_load(stack, "smol", pause=0.25) as load, writing(stack, "smol") as writer:
        eventually(lambda: writer.acknowledged >= 3, what="changes are taken")
        stop(crash=True)
        stopped = time.monotonic()
        for path in ("/deployments", "/deployments/smol", "/instances", "/hosts"):
            assert_clean_refusal(stack.http.get(path))
        assert_clean_refusal(stack.http.delete("/deployments/smol"))
        assert stack.http.get(f"{stack.url}/readyz").status_code == 503
        os.kill(before[0].pid, signal.SIGKILL)
        killed = time.monotonic()
        time.sleep(max(0.0, stopped + DATABASE_AWAY_S - time.monotonic()))
        assert load.longest_pause(since=stopped) < 5, "inference goes on"
        start()
        assert writer.refusals
        acknowledged = writer.acknowledged
        eventually(lambda: writer.acknowledged > acknowledged, within=30, what="changes are taken again")
        checker.settled()
    load.assert_only_begun_streams_were_cut([killed], at_most=2, at_least=50)
    eventually(lambda: int(stack.deployment("smol")["labels"]["one"]) >= writer.acknowledged)
    writer.assert_nothing_lost(stack.deployment("smol")["labels"])
    after = {e.pid for e in engines(stack)}
    assert before[1].pid in after, "the other engine was left alone"
    assert before[0].pid not in after
    assert "Traceback" not in stack.api.log()


@pytest.fixture(scope="module")
def writable_stack(new_stack: Callable[..., Stack]) -> Stack:
    stack = new_stack()
    stack.add_host("a")
    return stack


def test_a_write_during_which_the_api_is_killed_is_done_whole_or_not_and_its_repetition_once(
    writable_stack: Stack, small_model: Path
) -> None:
    """The replicas wait for a host that does not exist: it is the write that matters here, not engines."""
    stack = writable_stack
    spec = {
        "model": {"path": str(small_model)},
        "replicas": 2,
        "placement": {"host_selector": {"no": "such"}},
    }
    interrupted = []
    for n, after in enumerate(KILLED_AFTER_S):
        apis = iter(stack.start_more_apis(3))
        name = f"write-{n}"
        body = {"name": name, "labels": {"n": name}, "spec": spec}
        create = Request("POST", "/deployments", name, body)
        interrupted.append(not _answers_before_its_end(*next(apis), stack, create, after))
        _assert_whole_or_not(stack, name, spec)
        assert _sent_twice(stack, create) == [(201, 1)] * 2
        eventually(lambda n=name: len(stack.instances(n)) == 2, what="two replicas")  # type: ignore[misc]

        change = Request("PATCH", f"/deployments/{name}", "c", {"labels": {"n": "x"}, "spec": {"replicas": 0}})
        interrupted.append(not _answers_before_its_end(*next(apis), stack, change, after))
        assert _sent_twice(stack, change) == [(200, 2)] * 2
        changed = stack.deployment(name)
        assert (changed["labels"], changed["spec"]["replicas"]) == ({"n": "x"}, 0)

        restart = Request("POST", f"/deployments/{name}/restart", "r")
        interrupted.append(not _answers_before_its_end(*next(apis), stack, restart, after))
        assert _sent_twice(stack, restart) == [(202, 3)] * 2
    assert any(interrupted), "no kill came before an answer"
    assert not all(interrupted), "no answer came before a kill"
    assert len(stack.ok(stack.http.get("/deployments"))["items"]) == len(KILLED_AFTER_S)
    eventually(lambda: stack.instances() == [], what="nothing is left of what was scaled to nothing")
    stack.delete_everything()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    key: str
    body: Any = None

    def send(self, http: httpx.Client, url: str = "") -> httpx.Response:
        """``url``: of another API than the client's own."""
        path = f"{url}/api/v1{self.path}" if url else self.path
        return http.request(self.method, path, json=self.body, headers={"idempotency-key": self.key})


def _sent_twice(stack: Stack, request: Request) -> list[tuple[int, int]]:
    """Status and generation of both answers."""
    answers = [request.send(stack.http) for _ in range(2)]
    return [(a.status_code, stack.ok(a)["status"]["generation"]) for a in answers]


def _answers_before_its_end(api: Process, url: str, stack: Stack, request: Request, after: float | None) -> bool:
    """Send it to an API that is killed so many seconds later; None: as soon as it has answered."""
    killer = threading.Timer(after or 0.0, api.kill)
    if after is not None:
        killer.start()
    try:
        answered = request.send(stack.http, url).is_success
    except httpx.HTTPError:
        answered = False
    if after is None:
        killer.start()
    killer.join()
    return answered


def _assert_whole_or_not(stack: Stack, name: str, spec: dict[str, Any]) -> None:
    answer = stack.http.get(f"/deployments/{name}")
    if answer.status_code == 404:
        return
    there = stack.ok(answer)
    assert there["status"]["generation"] == 1
    assert there["labels"] == {"n": name}
    assert there["spec"]["replicas"] == spec["replicas"]
    assert there["spec"]["placement"]["host_selector"] == spec["placement"]["host_selector"]
