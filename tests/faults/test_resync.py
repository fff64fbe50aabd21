"""Temporal has lost its data: the workflows are begun anew from the database, and nothing that serves is disturbed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from temporalio.client import WorkflowExecutionStatus

from fleet import ids
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, HostRow, InstanceRow
from fleet.states import ClaimState
from fleet.temporal import connect
from tests.faults.invariants import Checker, engines
from tests.faults.load import steady_load
from tests.stack import Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Json = dict[str, Any]


@pytest.fixture(scope="module")
def two_hosts(new_stack: Callable[..., Stack]) -> Stack:
    stack = new_stack()
    stack.add_host("a")
    stack.add_host("b")
    return stack


@pytest.fixture
def stack(two_hosts: Stack) -> Iterator[Stack]:
    yield two_hosts
    two_hosts.revive()
    two_hosts.delete_everything()


def lose_temporal(stack: Stack) -> None:
    """As after a disk has died: the same address, and nothing in it."""
    stack.temporal.kill()
    files = list(stack.home.glob("temporal.db*"))
    assert files
    for file in files:
        file.unlink()
    stack.temporal.start()
    eventually(stack._ready, within=60, what="the API reaches the empty Temporal")


def resync(stack: Stack) -> Json:
    """As an operator does."""
    command = [sys.executable, "-m", "fleet.cli", "resync", "--json"]
    done = subprocess.run(command, env=stack.env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: Json = json.loads(done.stdout)
    return found


def lost(stack: Stack) -> Json:
    found: Json = stack.ok(stack.http.get("/system/lost"))
    return found


async def running(stack: Stack, workflow_ids: list[str]) -> list[str]:
    """Those of ``workflow_ids`` that run. An error when one never was."""
    client = await connect(stack.settings)
    found = [await client.get_workflow_handle(workflow_id).describe() for workflow_id in workflow_ids]
    return [f.id for f in found if f.status is WorkflowExecutionStatus.RUNNING]


def all_workflows(stack: Stack) -> list[str]:
    hosts = [ids.host_workflow(h["id"]) for h in stack.ok(stack.http.get("/hosts"))["items"]]
    deployments = [ids.deployment_workflow(d["name"]) for d in stack.ok(stack.http.get("/deployments"))["items"]]
    return sorted([*hosts, *deployments, *(ids.instance_workflow(i["id"]) for i in stack.instances())])


async def test_everything_is_taken_up_again_and_no_request_fails(stack: Stack, small_model: Path) -> None:
    stack.deploy("smol", str(small_model), replicas=2)
    stack.deploy("idle", str(small_model))
    stack.deploy("broken", str(small_model), engine_args=["--no-such-argument"])
    stack.until_ready("smol", 2)
    stack.until_ready("idle")
    stack.ok(stack.http.post("/deployments/idle/stop"))
    eventually(lambda: stack.deployment("idle")["status"]["phase"] == "stopped", what="idle is stopped")
    eventually(lambda: stack.deployment("broken")["status"]["phase"] == "failed", what="broken has failed")
    before = {i["id"]: (i["pid"], i["fence"], i["state"], i["restarts"]) for i in stack.instances()}
    pids = pids_of(stack)
    assert len(pids) == 2
    old = set(tokens(stack).values())
    assert len(old) == 4

    with steady_load(stack, "smol", pause=0.25) as load:
        lose_temporal(stack)
        assert lost(stack)["deployments"] == ["broken", "idle", "smol"]
        first = resync(stack)
        assert first["deployments"] == {"started": 3, "existing": 0}
        assert first["instances"] == {"started": 3, "existing": 0}
        assert sum(first["hosts"].values()) == 2
        assert first["orphans"] == []
        assert await running(stack, all_workflows(stack)) == all_workflows(stack)
        assert len(all_workflows(stack)) == 2 + 3 + 3
        again = resync(stack)
        assert [again[kind]["started"] for kind in ("hosts", "instances", "deployments")] == [0, 0, 0]
        assert again["orphans"] == []
        assert lost(stack) == {"deployments": [], "hosts": []}
        # Changes are taken again, and the hosts hold a lease of the new Temporal.
        stack.ok(stack.http.patch("/deployments/smol", json={"labels": {"after": "loss"}}))
        eventually(lambda: stack.deployment("smol")["labels"].get("after") == "loss", what="a change after the loss")
        eventually(
            lambda: len(new := set(tokens(stack).values())) == 4 and not old & new,
            within=60,
            what="hosts answer for leases and engines by tokens of the empty Temporal",
        )
        assert {stack.host(name)["state"] for name in ("a", "b")} == {"ready"}
        answered = load.answered()
        eventually(lambda: load.answered() > answered + 20, what="requests go on")
    load.assert_unharmed()
    assert pids_of(stack) == pids
    assert {i["id"]: (i["pid"], i["fence"], i["state"], i["restarts"]) for i in stack.instances()} == before
    assert stack.deployment("idle")["status"]["phase"] == "stopped"

    # What was begun anew looks after everything as before.
    stack.ok(stack.http.delete("/deployments/broken"))
    stack.until_gone("broken")
    victim = min(pids)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(pids_of(stack) - {victim}) == 2, within=30, what="a new engine")
    stack.until_ready("smol", 2)
    stack.ok(stack.http.patch("/deployments/smol", json={"spec": {"replicas": 1}}))
    stack.until_ready("smol", 1)
    stack.ok(stack.http.post("/deployments/idle/start"))
    stack.until_ready("idle")
    checker = Checker(stack)
    checker.settled()
    stack.delete_everything()
    eventually(lambda: not engines(stack), within=60, what="no engine is left")
    eventually(lambda: not checker.books().claims, within=60, what="no claim is left")
    assert checker.books().instances == []
    checker.close()


async def test_a_deployment_that_a_person_terminated_is_taken_up_again(stack: Stack, small_model: Path) -> None:
    stack.deploy("smol", str(small_model))
    stack.until_ready("smol")
    [pid] = stack.engine_pids()
    client = await connect(stack.settings)
    await client.get_workflow_handle(ids.deployment_workflow("smol")).terminate("by mistake")
    refused = stack.http.patch("/deployments/smol", json={"spec": {"replicas": 2}})
    assert refused.status_code == 404
    assert "holdfast resync" in refused.json()["hint"]
    assert lost(stack)["deployments"] == ["smol"]
    done = resync(stack)
    assert done["deployments"] == {"started": 1, "existing": 0}
    assert done["instances"] == {"started": 0, "existing": 1}
    stack.ok(stack.http.patch("/deployments/smol", json={"spec": {"replicas": 2}}))
    stack.until_ready("smol", 2)
    assert pid in stack.engine_pids()


async def test_a_host_that_died_with_temporal_is_lost_and_an_orphan_is_cleaned_up(
    stack: Stack, small_model: Path
) -> None:
    stack.deploy("smol", str(small_model), replicas=2)
    stack.until_ready("smol", 2)
    dead, alive = stack.host("a"), stack.host("b")
    placed = {i["host_id"]: i for i in stack.instances("smol")}
    assert set(placed) == {dead["id"], alive["id"]}
    _add_orphan(stack, alive["id"])

    stack.hosts["a"].kill()
    psutil.Process(placed[dead["id"]]["pid"]).kill()
    lose_temporal(stack)
    done = resync(stack)
    assert done["orphans"] == ["ghost/1-0000"]
    assert done["instances"] == {"started": 2, "existing": 0}
    assert sum(done["hosts"].values()) == 2
    eventually(lambda: stack.host("a")["state"] == "lost", within=150, what="the dead host is lost")
    eventually(
        lambda: {i["host_id"] for i in stack.instances("smol")} == {alive["id"]}, within=60, what="both on the other"
    )
    stack.until_ready("smol", 2)
    kept = next(i for i in stack.instances("smol") if i["id"] == placed[alive["id"]]["id"])
    assert kept["pid"] == placed[alive["id"]]["pid"]
    moved = next(i for i in stack.instances("smol") if i["id"] == placed[dead["id"]]["id"])
    assert moved["fence"] > placed[dead["id"]]["fence"]
    eventually(lambda: not _claims_of(stack, "ghost/1-0000"), within=90, what="the orphan's room is free")
    assert stack.host("b")["state"] == "ready"


def pids_of(stack: Stack) -> set[int]:
    return set(stack.engine_pids())


def tokens(stack: Stack) -> dict[str, str]:
    """By which hosts answer for their leases and engines, by file. Those that have none are left out."""
    files = [*stack.home.glob("hosts/*/lease.json"), *stack.home.glob("hosts/*/engines/*.json")]
    found = {str(file): json.loads(file.read_text())["token"] for file in files}
    return {file: token for file, token in found.items() if token is not None}


def _add_orphan(stack: Stack, host_id: str) -> None:
    """What an instance leaves behind whose deployment is not known any more."""
    room = 1 << 20
    instance = InstanceRow(
        id="ghost/1-0000",
        deployment="ghost",
        revision=1,
        launch=1,
        slot=1,
        state="ready",
        host_id=host_id,
        fence=1,
        projection=7,
    )
    claim = ClaimRow(
        instance_id="ghost/1-0000",
        fence=1,
        host_id=host_id,
        memory_bytes=room,
        state=ClaimState.BOUND,
        placement={"host_id": host_id, "memory_bytes": room},
    )
    database = Database(stack.settings.effective_database_url)

    def add(session: Any) -> None:
        session.add(instance)
        session.add(claim)
        session.get_one(HostRow, host_id).ram_used += room

    database.write(add)
    database.close()


def _claims_of(stack: Stack, instance_id: str) -> list[ClaimRow]:
    checker = Checker(stack)
    try:
        return [c for c in checker.books().claims if c.instance_id == instance_id]
    finally:
        checker.close()
