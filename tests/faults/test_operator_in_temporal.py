"""What a person does to ``run_engine`` in Temporal's own interface leaves the engine running."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet import ids
from tests.faults.load import steady_load
from tests.stack import Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BEATS_S = 60.0
QUICK_BEATS = {"HOLDFAST_TIMINGS": '{"engine_heartbeat": 9}'}
"""An engine is heard of every 3 s."""


class Operator:
    """The ``temporal`` command, pointed at one engine's activity."""

    def __init__(self, stack: Stack, instance_id: str) -> None:
        self._address = f"127.0.0.1:{stack.settings.temporal_port}"
        self._namespace = stack.settings.temporal_namespace
        self._workflow = ids.instance_workflow(instance_id)

    def activity(self) -> dict[str, Any]:
        described = json.loads(self._run("workflow", "describe", "-o", "json"))
        [found] = [a for a in described["pendingActivities"] if a["activityType"]["name"] == "run_engine"]
        return found

    def does(self, what: str) -> None:
        self._run("activity", what, "--activity-id", self.activity()["activityId"])

    def until_heard(self) -> None:
        """Until the engine has heartbeaten once more, or is answered for by another attempt."""
        before = self.activity()
        told = ("lastHeartbeatTime", "attempt", "lastStartedTime")
        eventually(
            lambda: [self.activity().get(k) for k in told] != [before.get(k) for k in told],
            within=BEATS_S,
            what="the next heartbeat",
            every=0.5,
        )

    def _run(self, *command: str) -> str:
        where = ("--address", self._address, "--namespace", self._namespace, "--workflow-id", self._workflow)
        binary = Path(sys.executable).with_name("temporal")
        done = subprocess.run([binary, *command, *where], capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done.stdout


def test_pause_unpause_and_reset_of_a_running_engine_do_not_touch_it(
    new_stack: Callable[..., Stack], small_model: Path
) -> None:
    stack = new_stack(**QUICK_BEATS)
    stack.add_host("a")
    stack.deploy("smol", str(small_model))
    stack.until_ready("smol")
    [before] = stack.instances("smol")
    operator = Operator(stack, before["id"])

    def assert_untouched(after: str) -> None:
        [now] = stack.instances("smol")
        same = ("state", "pid", "fence", "restarts", "endpoint")
        assert [now[k] for k in same] == [before[k] for k in same], f"after {after}\n{stack.logs()}"
        assert list(stack.engine_pids()) == [before["pid"]], f"after {after}"

    with steady_load(stack, "smol", pause=0.5) as load:
        operator.does("pause")
        operator.until_heard()
        assert operator.activity().get("paused")
        assert_untouched("a pause")

        killed = time.monotonic()
        stack.hosts["a"].kill()
        stack.hosts["a"].start()
        eventually(lambda: "adopted" in stack.hosts["a"].log(), within=30)
        operator.until_heard()
        assert_untouched("a restart of the host worker while paused")

        operator.does("unpause")
        eventually(lambda: not operator.activity().get("paused"), what="no pause")
        operator.until_heard()
        assert_untouched("the end of the pause")

        operator.does("reset")
        operator.until_heard()
        operator.until_heard()
        assert_untouched("a reset")
    load.assert_only_begun_streams_were_cut([killed], at_most=1)

    began = time.monotonic()
    stack.ok(stack.http.delete("/deployments/smol"))
    stack.until_gone("smol", within=60)
    eventually(lambda: not stack.engine_pids(), within=10)
    assert time.monotonic() - began < 30, "it was told to stop, not cleared up after a heartbeat was missed"
