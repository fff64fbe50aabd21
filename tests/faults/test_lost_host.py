"""A host that is gone for good: its replicas are served elsewhere, and it finds nothing to do when it returns."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stack import Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_replicas_of_a_lost_host_move_and_its_leftovers_are_stopped(
    new_stack: Callable[..., Stack], small_model: Path
) -> None:
    stack = new_stack()
    stack.add_host("a")
    stack.add_host("b")
    stack.deploy("smol", str(small_model), replicas=2)
    stack.until_ready("smol", 2)
    hosts = {i["host_id"] for i in stack.instances("smol")}
    assert len(hosts) == 2, "replicas of one deployment spread over hosts"
    lost, kept = stack.host("a"), stack.host("b")
    leftover = next(i["pid"] for i in stack.instances("smol") if i["host_id"] == lost["id"])

    stack.hosts["a"].kill()  # its engine goes on, as on a host that lost its network
    eventually(lambda: stack.host("a")["state"] == "lost", within=40, what="a is lost")
    eventually(lambda: {i["host_id"] for i in stack.instances("smol")} == {kept["id"]}, within=60, what="both on b")
    stack.until_ready("smol", 2, within=60)
    moved = stack.instances("smol")
    assert sorted(i["fence"] for i in moved)[-1] > 1
    assert leftover in stack.engine_pids(), "nobody could stop it yet"
    assert stack.host("a")["ram_used_bytes"] > 0, "its memory stays booked until the host says that it is free"

    stack.hosts["a"].start()
    eventually(lambda: stack.host("a")["state"] == "ready", within=40, what="a is back")
    eventually(lambda: leftover not in stack.engine_pids(), within=60, what="the leftover is stopped")
    eventually(lambda: stack.host("a")["ram_used_bytes"] == 0, within=90, what="its memory is free")
    assert len(stack.engine_pids()) == 2


def test_a_frozen_host_worker_is_lost_and_recovers(new_stack: Callable[..., Stack], small_model: Path) -> None:
    stack = new_stack()
    host = stack.add_host("a")
    stack.deploy("smol", str(small_model))
    stack.until_ready("smol")
    os.kill(host.pid, signal.SIGSTOP)
    eventually(lambda: stack.host("a")["state"] == "lost", within=40, what="a is lost")
    eventually(lambda: stack.instances("smol")[0]["state"] == "pending", within=20)
    assert stack.http.delete(f"/hosts/{stack.host('a')['id']}").status_code in (204, 409)
    os.kill(host.pid, signal.SIGCONT)
    if stack.host("a"):
        eventually(lambda: stack.host("a")["state"] == "ready", within=60, what="a is back")
        stack.until_ready("smol", within=60)
        assert len(stack.engine_pids()) == 1
