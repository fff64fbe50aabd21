"""A deployment of high priority finds the host full, with real processes: somebody gives way, and nobody is cut off."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOKENS = 400
PATIENT = {"HOLDFAST_TIMINGS": '{"drain": 120}'}
"""On a busy machine such a stream takes longer than engines are given by default."""


@pytest.fixture(scope="module")
def shared_stack(new_stack: Callable[..., Stack]) -> Stack:
    stack = new_stack(**PATIENT)
    stack.add_host("a")
    return stack


def half(stack: Stack) -> dict[str, Any]:
    """So much memory that two replicas fill the host and a third has no room."""
    return {"cpu_threads": 1, "memory_bytes": int(stack.host("a")["ram_allocatable_bytes"] * 0.45)}


def deploy(stack: Stack, name: str, model: Path, level: str, **priority: Any) -> None:
    wanted = {"level": level, "floor": 0} | priority
    stack.deploy(name, str(model), resources=half(stack), max_model_len=2048, priority=wanted)


def only(stack: Stack, name: str) -> dict[str, Any]:
    found = stack.instances(name)
    assert len(found) == 1, found
    return found[0]


def test_a_low_replica_drains_for_a_high_one_and_its_replacement_waits_in_line(
    stack: Stack, small_model: Path, ask: Callable[[str], str]
) -> None:
    deploy(stack, "other", small_model, "normal")
    deploy(stack, "low", small_model, "low")
    stack.until_ready("other")
    stack.until_ready("low")
    victim, bystander = only(stack, "low")["id"], only(stack, "other")
    body = {"model": "low", "prompt": "Once", "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    headers = {"authorization": f"Bearer {stack.key}"}
    url = f"{stack.url}/v1/completions"
    with httpx.Client(timeout=120, trust_env=False) as http, http.stream("POST", url, json=body, headers=headers) as it:
        lines = (line for line in it.iter_lines() if line.startswith("data: "))
        received = [next(lines)]
        deploy(stack, "high", small_model, "high")
        waits = f"waits for {victim} (priority low) on host a to drain"
        eventually(lambda: waits in only(stack, "high")["message"], what=waits)
        leaving = eventually(
            lambda: next((i for i in stack.instances("low") if i["id"] == victim and i["state"] == "draining"), None)
        )
        assert leaving["message"] == f"gives way to {only(stack, 'high')['id']} (priority high)"
        received += list(lines)
    assert received[-1] == "data: [DONE]"
    assert len(received) > TOKENS // 2, "it was long enough to be cut"
    assert all("error" not in json.loads(line.removeprefix("data: ")) for line in received[:-1])

    stack.until_ready("high")
    assert "Paris" in ask("high")
    assert only(stack, "other") == {**bystander, "updated_at": only(stack, "other")["updated_at"]}
    replacement = eventually(
        lambda: (i := only(stack, "low"))["state"] == "pending" and i, what="the replacement waits"
    )
    assert replacement["id"] != victim
    assert "RAM" in replacement["message"]
    [entry] = stack.ok(stack.http.get("/audit", params={"action": "instance.preempt"}))["items"]
    assert (entry["target"], entry["reason"]) == (victim, f"gives way to {only(stack, 'high')['id']} (priority high)")

    stack.http.delete("/deployments/high")
    stack.until_gone("high")
    stack.until_ready("low")


def test_a_floor_keeps_the_only_replica_until_it_is_lowered(stack: Stack, small_model: Path) -> None:
    deploy(stack, "first", small_model, "low", floor=1)
    deploy(stack, "second", small_model, "low", floor=1)
    stack.until_ready("first")
    stack.until_ready("second")
    before = stack.engine_pids()
    deploy(stack, "high", small_model, "high")
    why = "none of lower priority gives way: first keeps 1 ready (its floor), second keeps 1 ready (its floor)"
    eventually(lambda: why in only(stack, "high")["message"], what=why)
    assert "RAM" in only(stack, "high")["message"]
    assert stack.engine_pids() == before
    changed = stack.ok(stack.http.patch("/deployments/second", json={"spec": {"priority": {"floor": 0}}}))
    assert changed["status"]["revision"] == 1, "no new engines for that"
    stack.until_ready("high", within=120)
    assert [i["state"] for i in stack.instances("first")] == ["ready"]
