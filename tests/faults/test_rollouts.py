"""Changes of what runs, under load: nobody notices, whatever the strategy, and whatever is killed meanwhile."""

import itertools
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from fleet.db.session import Database
from fleet.db.tables import TrafficRow
from tests.faults.invariants import Checker
from tests.faults.load import steady_load
from tests.stack import Stack, eventually
from tests.unit.host import fake_llama_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL: dict[str, Any] = {"concurrency": 1, "max_model_len": 256}


@pytest.fixture(scope="module")
def shared_stack(new_stack: Callable[..., Stack]) -> Stack:
    stack = new_stack(HOLDFAST_TIMINGS='{"surge_patience": 2, "drain": 20}')
    stack.add_host("a")
    return stack


@pytest.fixture
def whole(stack: Stack) -> Iterator[Stack]:
    """And after each test the books, the processes and what is wanted agree."""
    stack.revive()
    checker = Checker(stack)
    yield stack
    checker.settled()
    checker.close()


class Ready(threading.Thread):
    """Looks all the time at how many replicas are ready."""

    def __init__(self, stack: Stack, name: str) -> None:
        super().__init__(daemon=True)
        self._stack = stack
        self._name = name
        self._end = threading.Event()
        self.fewest, self.most = 1 << 30, 0
        self.said: set[str] = set()

    def run(self) -> None:
        with httpx.Client(
            base_url=self._stack.http.base_url, headers=self._stack.http.headers, trust_env=False
        ) as http:
            while not self._end.is_set():
                status = http.get(f"/deployments/{self._name}").json()["status"]
                self.fewest = min(self.fewest, status["ready_replicas"])
                self.most = max(self.most, status["ready_replicas"])
                self.said.add(status["message"])
                self._end.wait(0.03)

    def stop(self) -> None:
        self._end.set()
        self.join()


@contextmanager
def watched(stack: Stack, name: str) -> Iterator[Ready]:
    ready = Ready(stack, name)
    ready.start()
    try:
        yield ready
    finally:
        ready.stop()


def update(stack: Stack, name: str, **spec: Any) -> dict[str, Any]:
    return dict(stack.ok(stack.http.patch(f"/deployments/{name}", json={"spec": spec})))


def until_revision(stack: Stack, name: str, revision: int, replicas: int, within: float = 120) -> None:
    def there() -> bool:
        mine = stack.instances(name)
        return len(mine) == replicas and all((i["revision"], i["state"]) == (revision, "ready") for i in mine)

    eventually(there, within=within, what=f"{replicas} of revision {revision}")
    stack.until_ready(name, replicas)


def pids(stack: Stack, name: str) -> set[int]:
    return {i["pid"] for i in stack.instances(name)}


def test_rolling_update_of_four_replicas_fails_nothing_and_keeps_them_ready(whole: Stack, small_model: Path) -> None:
    stack = whole
    stack.deploy("smol", str(small_model), replicas=4, **SMALL)
    stack.until_ready("smol", 4)
    old = pids(stack, "smol")
    with steady_load(stack, "smol") as load, watched(stack, "smol") as ready:
        eventually(lambda: load.answered() > 10)
        update(stack, "smol", max_model_len=320)
        until_revision(stack, "smol", 2, 4)
    load.assert_unharmed(at_least=40)
    assert ready.fewest >= 3, f"only {ready.fewest} were ready at some moment"
    assert not old & pids(stack, "smol")
    kept = stack.ok(stack.http.get("/deployments/smol/revisions"))["items"]
    assert [(r["revision"], r["outcome"]) for r in kept] == [(2, "live"), (1, "superseded")]

    stack.ok(stack.http.post("/deployments/smol/rollback"))
    until_revision(stack, "smol", 3, 4)
    assert stack.deployment("smol")["spec"]["max_model_len"] == SMALL["max_model_len"], "it really deploys again"


def test_rollout_on_a_full_host_recreates_and_says_so(whole: Stack, small_model: Path) -> None:
    stack = whole
    half = stack.host("a")["ram_allocatable_bytes"] // 2
    stack.deploy("full", str(small_model), replicas=2, resources={"memory_bytes": half, "cpu_threads": 1})
    stack.until_ready("full", 2)
    with steady_load(stack, "full") as load, watched(stack, "full") as ready:
        update(stack, "full", max_model_len=320)
        until_revision(stack, "full", 2, 2)
    load.assert_unharmed()
    assert ready.fewest == 1
    assert any("recreating, 1 at a time" in text for text in ready.said), ready.said

    update(stack, "full", max_model_len=384, rollout={"strategy": "recreate"})
    until_revision(stack, "full", 3, 2)


def test_revision_that_cannot_start_is_gone_back_from_and_nobody_notices(whole: Stack, small_model: Path) -> None:
    stack = whole
    stack.deploy("smol", str(small_model), replicas=2, **SMALL)
    stack.until_ready("smol", 2)
    old = pids(stack, "smol")
    with steady_load(stack, "smol") as load, watched(stack, "smol") as ready:
        update(stack, "smol", engine_args=["--no-such-flag"])
        eventually(lambda: stack.deployment("smol")["status"]["failed_rollout"], within=60, what="gone back")
        until_revision(stack, "smol", 1, 2)
        eventually(lambda: load.answered() > 20)
    load.assert_unharmed()
    assert ready.fewest == 2
    assert pids(stack, "smol") == old
    failed = stack.deployment("smol")["status"]["failed_rollout"]
    assert (failed["revision"], failed["outcome"]) == (2, "failed")
    assert "bad_flag" in failed["reason"]
    assert "no-such-flag" in failed["hint"]


def test_canary_gets_its_share_bakes_and_is_promoted(whole: Stack, small_model: Path) -> None:
    stack = whole
    stack.deploy("smol", str(small_model), replicas=2, **SMALL)
    stack.until_ready("smol", 2)
    canary = {"weight": 25, "auto_promote": False, "max_latency_ratio": None}
    with steady_load(stack, "smol") as load, watched(stack, "smol") as ready:
        update(stack, "smol", max_model_len=320, rollout={"strategy": "canary", "bake_s": 1, "canary": canary})
        eventually(lambda: rollout(stack)["stage"] == "waiting", within=60, what="baked")
        since = counted(stack)
        eventually(lambda: sum(counted(stack).values()) - sum(since.values()) >= 120, within=90, what="120 requests")
        now = counted(stack)
        share = (now[2] - since[2]) / (sum(now.values()) - sum(since.values()))
        stack.ok(stack.http.post("/deployments/smol/rollout/promote"))
        until_revision(stack, "smol", 2, 2)
    load.assert_unharmed()
    assert ready.fewest == 2
    assert 0.2 <= share <= 0.3, f"the canary got {share:.0%}"


def test_blue_green_switches_and_can_be_switched_back(whole: Stack, small_model: Path) -> None:
    stack = whole
    stack.deploy("smol", str(small_model), replicas=2, **SMALL)
    stack.until_ready("smol", 2)
    old = pids(stack, "smol")
    with steady_load(stack, "smol") as load:
        update(stack, "smol", max_model_len=320, rollout={"strategy": "blue_green", "bake_s": 600})
        eventually(lambda: rollout(stack)["stage"] == "baking", within=60, what="switched")
        since = counted(stack)
        eventually(lambda: counted(stack)[2] - since.get(2, 0) >= 20, within=60, what="the new ones are asked")
        assert old <= pids(stack, "smol"), "the old ones wait"
        stack.ok(stack.http.post("/deployments/smol/rollout/abort"))
        until_revision(stack, "smol", 1, 2)
    load.assert_unharmed()
    assert pids(stack, "smol") == old


def test_canary_that_answers_with_errors_is_gone_back_from(whole: Stack, tmp_path: Path, small_model: Path) -> None:
    """Stand-ins, of which those with a certain argument answer 500 once they are ready."""
    stack = whole
    binary = tmp_path / "llama-server"
    binary.write_text(f"#!{sys.executable} -SE\n{Path(fake_llama_server.__file__).read_text()}")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    if not stack.host("fake"):
        stack.add_host("fake", HOLDFAST_LLAMA_SERVER=str(binary), HOLDFAST_HOST_LABELS='{"engine": "fake"}')
    stack.deploy("sour", str(small_model), replicas=2, placement={"host_selector": {"engine": "fake"}})
    stack.until_ready("sour", 2)
    old = pids(stack, "sour")
    canary = {"weight": 50, "min_requests": 10}
    with steady_load(stack, "sour", streaming=0):
        change = {"engine_args": ["--fail-requests-after", "1"], "rollout": {"strategy": "canary", "canary": canary}}
        update(stack, "sour", **change)
        eventually(lambda: stack.deployment("sour")["status"]["failed_rollout"], within=90, what="gone back")
    until_revision(stack, "sour", 1, 2)
    assert pids(stack, "sour") == old
    assert "failed" in stack.deployment("sour")["status"]["failed_rollout"]["reason"]


def test_controller_killed_at_every_moment_of_rollouts_and_drains(whole: Stack, small_model: Path) -> None:
    stack = whole
    stack.deploy("smol", str(small_model), replicas=2, **SMALL)
    stack.until_ready("smol", 2)
    lengths = itertools.count(300)
    canary = {"strategy": "canary", "bake_s": 1}
    steps: list[Callable[[], httpx.Response]] = [
        lambda: patch(stack, max_model_len=next(lengths)),
        lambda: patch(stack, max_model_len=next(lengths), rollout=canary),
        lambda: patch(stack, engine_args=["--no-such-flag"], rollout={"strategy": "rolling"}),
        lambda: stack.http.post("/deployments/smol/rollback", json={"revision": 1}, headers=key(next(lengths))),
        lambda: stack.http.post(f"/instances/{stack.instances('smol')[0]['id']}/drain", json={}),
        lambda: stack.http.post("/deployments/smol/restart", headers=key(next(lengths))),
    ]
    with steady_load(stack, "smol") as load:
        for step, moments in zip(steps, itertools.cycle([(0.0, 0.6), (0.1, 1.2), (0.3, 2.0)]), strict=False):
            until_taken(step)
            for moment in moments:
                time.sleep(moment)  # how far it has come is left to chance on purpose
                stack.controller.kill()
                stack.controller.start()
            eventually(lambda: not rollout(stack), within=120, what="the rollout has ended")
            stack.until_ready("smol", 2, within=120)
    load.assert_unharmed()


def until_taken(step: Callable[[], httpx.Response]) -> None:
    eventually(lambda: step().is_success, within=60, what="taken")


def patch(stack: Stack, **spec: Any) -> httpx.Response:
    return stack.http.patch("/deployments/smol", json={"spec": spec})


def key(number: int) -> dict[str, str]:
    return {"idempotency-key": str(number)}


def rollout(stack: Stack) -> dict[str, Any]:
    return stack.deployment("smol")["status"]["rollout"] or {}


def counted(stack: Stack) -> dict[int, int]:
    """Requests by launch, as gateways have counted them."""
    database = Database(stack.settings.effective_database_url)
    try:
        rows = database.read(lambda s: s.exec(select(TrafficRow).where(TrafficRow.deployment == "smol")).all())
    finally:
        database.close()
    sums: dict[int, int] = {1: 0, 2: 0}
    for row in rows:
        sums[row.launch] = sums.get(row.launch, 0) + row.requests
    return sums
