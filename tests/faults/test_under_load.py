"""Engines and hosts die under a steady load on two replicas: how soon they are replaced, and what the load notices."""

import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.invariants import Engine, engines, watched
from tests.faults.load import steady_load
from tests.stack import Stack, crowded, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 5
STARTED_AGAIN_S = 1.0
STARTED_ELSEWHERE_S = 20.0
ROUTED_AROUND_S = 2.0
REPLICAS = 2
CONCURRENCY = 2
KILLS_DO_NOT_ADD_UP = {"HOLDFAST_TIMINGS": '{"stable_after": 0}'}
"""Each engine counts as one that had long served: here it is the first retry that is measured."""


@pytest.fixture(scope="module")
def stack(new_stack: Callable[..., Stack], small_model: Path) -> Stack:
    made = new_stack(**KILLS_DO_NOT_ADD_UP)
    for name in ("a", "b"):
        made.add_host(name)
    made.deploy("smol", str(small_model), replicas=REPLICAS, concurrency=CONCURRENCY, restart={"max_failures": 100})
    made.until_ready("smol", REPLICAS)
    return made


def test_killed_engines_are_started_again_within_a_second_and_no_request_fails(stack: Stack) -> None:
    took, kills = [], []
    with watched(stack) as checker, steady_load(stack, "smol", clients=2, streaming=1) as load:
        # Always of the same replica: gateways may not know yet that it is there again, but the other one they do.
        always = engines(stack)[0].instance_id
        for _ in range(KILLS):
            victim = next(e for e in engines(stack) if e.instance_id == always)
            kills.append(time.monotonic())
            os.kill(victim.pid, signal.SIGKILL)
            took.append(started_after(stack, victim, kills[-1], within=30))
            checker.settled()
    print(f"started again after {[round(t, 2) for t in took]} s")
    load.assert_only_begun_streams_were_cut(kills, at_most=KILLS * CONCURRENCY)
    assert statistics.median(took) <= STARTED_AGAIN_S * crowded()


def test_replicas_of_a_host_that_is_gone_are_started_elsewhere_and_requests_go_around_it(stack: Stack) -> None:
    lost = stack.host("a")["id"]
    victims = [e for e in engines(stack) if e.host_id == lost]
    assert victims
    with watched(stack) as checker, steady_load(stack, "smol", clients=2, streaming=1) as load:
        eventually(lambda: load.answered() > 10, what="requests are answered")
        killed = time.monotonic()
        stack.hosts["a"].kill()
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        took = [started_after(stack, victim, killed, within=60) for victim in victims]
        stack.until_ready("smol", REPLICAS)
        stack.hosts["a"].start()
        checker.settled()
    print(f"started elsewhere after {[round(t, 1) for t in took]} s")
    assert load.failures(since=killed + ROUTED_AROUND_S) == []
    load.assert_only_begun_streams_were_cut([killed], at_most=CONCURRENCY * len(victims))
    assert max(took) <= STARTED_ELSEWHERE_S * crowded()


def started_after(stack: Stack, old: Engine, killed: float, within: float) -> float:
    """Seconds until the next engine of that instance was executed."""

    def found() -> Engine | None:
        newer = (e for e in engines(stack) if e.instance_id == old.instance_id and e.fence > old.fence)
        return next(newer, None)

    engine = eventually(found, within=within, what=f"the next engine of {old.instance_id}", every=0.02)
    assert engine is not None
    return engine.began - killed
