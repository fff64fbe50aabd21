"""Hosts are emptied under load: no request fails, and everything ends where it should."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.load import steady_load
from tests.stack import Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL: dict[str, Any] = {"max_model_len": 512, "concurrency": 2, "resources": {"cpu_threads": 1}}
TOKENS = 500
PATIENT = {"HOLDFAST_TIMINGS": '{"drain": 120}'}
"""On a busy machine such a stream takes longer than engines are given by default."""


@pytest.fixture(scope="module")
def two_hosts(new_stack: Callable[..., Stack]) -> Stack:
    stack = new_stack(**PATIENT)
    stack.add_host("a")
    stack.add_host("b")
    return stack


@pytest.fixture
def stack(two_hosts: Stack) -> Any:
    """Both hosts take work, and nothing is deployed."""
    yield two_hosts
    for name in two_hosts.hosts:
        resume(two_hosts, name)
    two_hosts.delete_everything()


def drain(stack: Stack, name: str, **how: Any) -> Any:
    return stack.ok(stack.http.post(f"/hosts/{stack.host(name)['id']}/drain", json=how))


def resume(stack: Stack, name: str) -> None:
    stack.ok(stack.http.post(f"/hosts/{stack.host(name)['id']}/resume"))
    eventually(lambda: stack.host(name)["maintenance"] == "none", within=30, what=f"{name} takes work")


def until_drained(stack: Stack, name: str) -> None:
    eventually(lambda: stack.host(name)["maintenance"] == "drained", within=120, what=f"{name} drained")


def where(stack: Stack, model: str) -> set[str]:
    """Names of the hosts that its replicas are on."""
    names = {stack.host(name)["id"]: name for name in stack.hosts}
    return {names.get(i["host_id"], "") for i in stack.instances(model)}


def deploy_on(stack: Stack, name: str, host: str, model: Path, replicas: int = 1, **spec: Any) -> None:
    """On ``host`` alone; afterwards both take work."""
    [other] = [h for h in stack.hosts if h != host]
    drain(stack, other, evacuate=False)
    eventually(lambda: stack.host(other)["maintenance"] == "cordoned", within=30)
    stack.deploy(name, str(model), replicas=replicas, **spec)
    stack.until_ready(name, replicas)
    assert where(stack, name) == {host}
    resume(stack, other)


def test_drained_hosts_replicas_move_under_load_and_no_request_fails(stack: Stack, small_model: Path) -> None:
    stack.deploy("smol", str(small_model), replicas=2)
    stack.until_ready("smol", 2)
    assert where(stack, "smol") == {"a", "b"}
    pids = {i["host_id"]: i["pid"] for i in stack.instances("smol")}
    on_a = pids[stack.host("a")["id"]]
    with steady_load(stack, "smol") as load:
        answer = drain(stack, "a", reason="new disk")
        assert answer["maintenance"] in ("draining", "drained")
        until_drained(stack, "a")
        assert stack.host("a")["maintenance_message"] == "new disk: nothing runs here any more"
        assert (stack.host("a")["state"], stack.host("a")["ram_used_bytes"]) == ("ready", 0)
        stack.until_ready("smol", 2)
        assert where(stack, "smol") == {"b"}
        engines = stack.engine_pids()
        assert on_a not in engines, "its engine is stopped"
        assert set(pids.values()) - {on_a} < set(engines), "the other one was left alone"
        assert len(engines) == 2

        resume(stack, "a")
        drain(stack, "b")
        killer = threading.Timer(0.3, stack.controller.kill)
        killer.start()
        killer.join()
        stack.controller.start()
        until_drained(stack, "b")
        stack.until_ready("smol", 2)
        assert where(stack, "smol") == {"a"}
        assert len(stack.engine_pids()) == 2
    load.assert_unharmed()


def test_without_room_elsewhere_a_replica_serves_until_the_deadline(stack: Stack, small_model: Path) -> None:
    stack.deploy("smol", str(small_model))
    stack.until_ready("smol")
    [here] = where(stack, "smol")
    [other] = {"a", "b"} - {here}
    drain(stack, other, evacuate=False)
    before = stack.engine_pids()
    with steady_load(stack, "smol") as load:
        drain(stack, here, deadline_s=15)
        asked = datetime.now(UTC)
        eventually(
            lambda: "pending" in stack.host(here)["maintenance_message"], within=12, what="it says what it waits for"
        )
        assert "in any case" in stack.host(here)["maintenance_message"]
        assert stack.engine_pids() == before, "it serves on"
    load.assert_unharmed(at_least=5)
    until_drained(stack, here)
    assert (datetime.now(UTC) - asked).total_seconds() >= 13
    assert stack.engine_pids() == {}
    eventually(lambda: stack.deployment("smol")["status"]["phase"] == "pending", within=30)
    resume(stack, other)
    stack.until_ready("smol")
    assert where(stack, "smol") == {other}


def test_stream_that_is_under_way_ends_as_it_should(stack: Stack, small_model: Path) -> None:
    deploy_on(stack, "smol", "a", small_model, **{**SMALL, "max_model_len": 2048})
    body = {"model": "smol", "prompt": "Once", "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    headers = {"authorization": f"Bearer {stack.key}"}
    url = f"{stack.url}/v1/completions"
    with httpx.Client(timeout=120, trust_env=False) as http, http.stream("POST", url, json=body, headers=headers) as it:
        lines = (line for line in it.iter_lines() if line.startswith("data: "))
        next(lines)
        drain(stack, "a")
        received = [next(lines)]
        eventually(lambda: where(stack, "smol") == {"a", "b"}, within=60, what="its replacement")
        received += list(lines)
    assert received[-1] == "data: [DONE]"
    assert len(received) > TOKENS // 2, "it was long enough to be cut"
    assert all("error" not in json.loads(line.removeprefix("data: ")) for line in received[:-1])
    until_drained(stack, "a")
    stack.until_ready("smol")
    assert where(stack, "smol") == {"b"}


def test_one_instance_is_replaced_under_load(stack: Stack, small_model: Path) -> None:
    stack.deploy("smol", str(small_model))
    stack.until_ready("smol")
    [old] = stack.instances("smol")
    with steady_load(stack, "smol") as load:
        stack.ok(stack.http.post(f"/instances/{old['id']}/drain", json={"reason": "test"}))
        eventually(lambda: old["id"] not in [i["id"] for i in stack.instances("smol")], within=90, what="replaced")
        stack.until_ready("smol")
    load.assert_unharmed(at_least=5)
    assert old["pid"] not in stack.engine_pids()
