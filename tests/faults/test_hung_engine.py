"""Engines that live and do not work are replaced; engines that work hard are not."""

import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.load import steady_load
from tests.stack import Stack, eventually
from tests.unit.host import fake_llama_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROUTED_FOR_AT_MOST_S = 5.0
REPLACED_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def shared_stack(new_stack: Callable[..., Stack]) -> Stack:
    stack = new_stack()
    stack.add_host("a")
    return stack


@pytest.fixture
def stopped() -> Iterator[Callable[[int], float]]:
    """Stops a process, and says when. It does not stay stopped."""
    pids: list[int] = []

    def stop(pid: int) -> float:
        pids.append(pid)
        os.kill(pid, signal.SIGSTOP)
        return time.monotonic()

    yield stop
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def state(stack: Stack, instance_id: str) -> dict[str, Any]:
    return next(i for i in stack.instances() if i["id"] == instance_id)


def test_stopped_engine_is_out_of_routing_in_5_s_and_replaced_in_30(
    stack: Stack, small_model: Path, stopped: Callable[[int], float]
) -> None:
    stack.deploy("smol", str(small_model), replicas=2)
    stack.until_ready("smol", 2)
    victim, other = stack.instances("smol")
    with steady_load(stack, "smol", streaming=0) as load:
        eventually(lambda: load.answered() > 10, what="both are asked")
        at = stopped(victim["pid"])
        eventually(lambda: state(stack, victim["id"])["state"] == "suspect", within=20, every=0.02)
        suspect_after = time.monotonic() - at
        assert state(stack, victim["id"])["endpoint"] == victim["endpoint"], "it may yet answer"
        eventually(lambda: victim["id"] in new_engines(stack, victim, other), within=60, every=0.02)
        replaced_after = time.monotonic() - at
        stack.until_ready("smol", 2)
        ready_after = time.monotonic() - at
    took = (
        f"suspect after {suspect_after:.1f} s, replaced after {replaced_after:.1f} s, ready after {ready_after:.1f} s"
    )
    print(took)
    assert suspect_after <= ROUTED_FOR_AT_MOST_S, took
    assert replaced_after <= REPLACED_WITHIN_S, took
    load.assert_unharmed()
    assert victim["pid"] not in stack.engine_pids()
    after = state(stack, other["id"])
    assert (after["pid"], after["restarts"], after["fence"]) == (other["pid"], 0, other["fence"]), took
    assert state(stack, victim["id"])["restarts"] == 1


def new_engines(stack: Stack, *known: dict[str, Any]) -> set[str]:
    """Instances with an engine process that is not one of these."""
    return {instance for pid, instance in stack.engine_pids().items() if pid not in {i["pid"] for i in known}}


def test_engine_that_is_stopped_for_a_moment_is_not_replaced(
    stack: Stack, small_model: Path, stopped: Callable[[int], float]
) -> None:
    stack.deploy("smol", str(small_model))
    stack.until_ready("smol")
    [before] = stack.instances("smol")
    stopped(before["pid"])
    eventually(lambda: state(stack, before["id"])["state"] == "suspect", within=20)
    os.kill(before["pid"], signal.SIGCONT)
    eventually(lambda: state(stack, before["id"])["state"] == "ready", within=20)
    assert state(stack, before["id"]) == before | {"updated_at": state(stack, before["id"])["updated_at"]}


def test_engine_is_watched_by_the_next_host_worker_too(
    stack: Stack, small_model: Path, stopped: Callable[[int], float]
) -> None:
    stack.deploy("smol", str(small_model))
    stack.until_ready("smol")
    [before] = stack.instances("smol")
    host = stack.hosts["a"]
    host.kill()
    at = stopped(before["pid"])
    host.start()
    eventually(lambda: new_engines(stack, before), within=60)
    replaced_after = time.monotonic() - at
    stack.until_ready("smol")
    assert replaced_after <= REPLACED_WITHIN_S, f"replaced after {replaced_after:.1f} s"


def test_engine_that_works_hard_is_never_taken_for_a_hung_one(stack: Stack, small_model: Path) -> None:
    """One slot, a prompt that keeps its metrics waiting for long, many tokens, and requests that wait behind it."""
    health = {"stall_timeout_s": 5, "idle_probe_s": 1, "unresponsive_timeout_s": 5}
    stack.deploy("busy", str(small_model), concurrency=1, max_model_len=4096, health=health)
    stack.until_ready("busy")
    [before] = stack.instances("busy")

    def ask(words: int, tokens: int) -> httpx.Response:
        body = {"model": "busy", "prompt": "word " * words, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        headers = {"authorization": f"Bearer {stack.key}"}
        return httpx.post(f"{stack.url}/v1/completions", json=body, headers=headers, timeout=400, trust_env=False)

    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(ask, [1000, 1, 1], [200, 20, 20]))
    took = time.monotonic() - began
    assert [a.status_code for a in answers] == [200] * 3, [a.text[:300] for a in answers]
    assert took > 10, "too quick to prove anything"
    after = state(stack, before["id"])
    assert (after["pid"], after["restarts"]) == (before["pid"], 0), f"after {took:.1f} s of work"


def test_engine_that_answers_and_does_not_get_on_is_replaced_as_hung(
    stack: Stack, tmp_path: Path, small_model: Path
) -> None:
    """A stand-in that says it is healthy and busy, and never counts a token."""
    model, binary = tmp_path / "fine.gguf", tmp_path / "llama-server"
    shutil.copyfile(small_model, model)  # beside it the stand-in looks for what it is to do
    binary.write_text(f"#!{sys.executable} -SE\n{Path(fake_llama_server.__file__).read_text()}")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    stack.add_host("b", HOLDFAST_LLAMA_SERVER=str(binary), HOLDFAST_HOST_LABELS='{"engine": "fake"}')
    (tmp_path / "busy").touch()
    health = {"stall_timeout_s": 6, "idle_probe_s": 0}
    selector = {"host_selector": {"engine": "fake"}}
    stack.deploy("stuck", str(model), engine_version="1-fake", health=health, placement=selector)
    stack.until_ready("stuck")
    at = time.monotonic()
    [before] = stack.instances("stuck")
    eventually(lambda: new_engines(stack, before), within=60)
    replaced_after = time.monotonic() - at
    (tmp_path / "busy").unlink()
    after = eventually(lambda: (i := state(stack, before["id"])) and i["restarts"] == 1 and i)
    stack.until_ready("stuck")
    assert after["fence"] > before["fence"]
    assert 5 <= replaced_after <= REPLACED_WITHIN_S, f"replaced after {replaced_after:.1f} s"
    assert "have not got on" in stack.hosts["b"].log()
    assert "(hung)" in stack.hosts["b"].log()
