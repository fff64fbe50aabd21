"""Requests for a deployment without replicas: one wakes it, all wait, each is told once."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from api.gateway.cold import ColdHold, Rhythm, Waiter, may_hold
from api.gateway.refusals import Refusal
from api.gateway.table import KnownDeployment
from fleet.errors import Unavailable
from fleet.specs import AutoscalingSpec

QUICK = Rhythm(first=0.01, longest=0.04, comment=0.01)
WITHIN_S = 5.0


def known(**changes: object) -> KnownDeployment:
    autoscaling = AutoscalingSpec(wake_on_request=True, wake_replicas=2, hold_at_most=3)
    return replace(KnownDeployment("m", "stopped", 0, 0, autoscaling=autoscaling), **changes)


@dataclass
class Waker:
    """Stands in for Temporal; ``away``: how many calls get no answer first."""

    away: int = 0
    calls: list[tuple[str, int]] = field(default_factory=list)

    async def __call__(self, name: str, replicas: int) -> None:
        self.calls.append((name, replicas))
        if self.away:
            self.away -= 1
            raise Unavailable("Temporal does not take changes now")


class Asker:
    """A request and what it is told."""

    def __init__(self, cold: ColdHold, name: str = "", told: list[str] | None = None) -> None:
        self.cold = cold
        self.name = name
        self.told = told if told is not None else []
        self.comments: list[bytes] = []
        self.refusal: Refusal | None = None
        self.answered = asyncio.Event()
        self.waiter: Waiter

    def ask(self, deployment: KnownDeployment | None = None) -> "Asker":
        now = asyncio.get_running_loop().time()
        target = deployment or known()
        self.waiter = self.cold.wait(target, now, self._ready, self._refused, self.comments.append)
        return self

    def _ready(self) -> None:
        assert not self.answered.is_set()
        self.told.append(self.name)
        self.answered.set()

    def _refused(self, refusal: Refusal) -> None:
        assert not self.answered.is_set()
        self.refusal = refusal
        self.answered.set()


async def until(check: object) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not check():  # type: ignore[operator]
            await asyncio.sleep(0.002)


async def test_all_wait_for_one_wake_and_go_in_their_order() -> None:
    waker = Waker()
    cold = ColdHold(waker)
    told: list[str] = []
    askers = [Asker(cold, name, told).ask() for name in "abc"]
    await until(lambda: waker.calls)
    assert cold.waiting("m") == 3
    cold.ready("m")
    assert told == ["a", "b", "c"]
    assert cold.waiting("m") == 0
    assert waker.calls == [("m", 2)]
    for asker in askers:
        asker.waiter.cancel()  # late, and harmless
    cold.ready("m")
    assert told == ["a", "b", "c"]


async def test_waking_is_repeated_until_something_happens() -> None:
    waker = Waker(away=2)
    cold = ColdHold(waker, QUICK)
    asker = Asker(cold).ask()
    await until(lambda: len(waker.calls) >= 4)
    cold.adopt({"m": known(phase="deploying", desired_replicas=2)})
    seen = len(waker.calls)
    await until(lambda: len(asker.comments) >= 10)
    assert len(waker.calls) <= seen + 1  # one may have been on its way
    cold.ready("m")
    assert asker.told == [""]


async def test_nobody_waits_nobody_wakes() -> None:
    waker = Waker(away=1000)
    cold = ColdHold(waker, QUICK)
    first, second = Asker(cold).ask(), Asker(cold).ask()
    await until(lambda: waker.calls)
    first.waiter.cancel()
    assert cold.waiting("m") == 1
    second.waiter.cancel()
    assert cold.waiting("m") == 0
    seen = len(waker.calls)
    probe = Asker(cold).ask(known(desired_replicas=1))  # its comments are a clock that goes on
    await until(lambda: len(probe.comments) >= 10)
    assert len(waker.calls) <= seen + 1
    assert not first.answered.is_set()
    probe.waiter.cancel()


async def test_a_place_is_bounded_and_given_back() -> None:
    cold = ColdHold(Waker())
    askers = [Asker(cold).ask() for _ in range(3)]
    with pytest.raises(Refusal, match="3 requests wait") as refused:
        Asker(cold).ask()
    assert refused.value.status == 503
    assert any(name == b"retry-after" for name, _ in refused.value.headers)
    askers[0].waiter.cancel()
    Asker(cold).ask()
    cold.close()


async def test_waiting_ends_at_its_deadline_and_waking_with_it() -> None:
    short = AutoscalingSpec(wake_on_request=True, hold_for_s=1.0)
    waker = Waker()
    cold = ColdHold(waker, QUICK)
    asker = Asker(cold)
    began = asyncio.get_running_loop().time()
    asker.ask(known(autoscaling=short))
    async with asyncio.timeout(WITHIN_S):
        await asker.answered.wait()
    assert 0.9 < asyncio.get_running_loop().time() - began < 3
    assert asker.refusal is not None
    assert "within 1 s" in str(asker.refusal)
    assert cold.waiting("m") == 0


async def test_comments_say_how_long_it_waits() -> None:
    cold = ColdHold(Waker(), QUICK)
    asker = Asker(cold).ask()
    await until(lambda: len(asker.comments) >= 2)
    assert asker.comments[0].startswith(b": holding m, 0 s")
    assert asker.comments[0].endswith(b"\n\n")
    assert b", 7 s" in asker.waiter.comment(asker.waiter.since + 7.2)
    cold.close()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"m": known(phase="failed", message="no GPU is large enough")}, "no GPU is large enough"),
        ({"m": known(stopped=True)}, "no replicas"),
        ({"m": known(autoscaling=AutoscalingSpec())}, "no replicas"),
        ({}, "does not exist"),
    ],
)
async def test_who_waits_for_nothing_is_told_at_once(table: dict[str, KnownDeployment], message: str) -> None:
    cold = ColdHold(Waker())
    askers = [Asker(cold).ask() for _ in range(2)]
    cold.adopt(table)
    for asker in askers:
        assert asker.refusal is not None
        assert message in str(asker.refusal)
    for deployment in table.values():
        assert not may_hold(deployment)
        with pytest.raises(Refusal, match=message):
            Asker(cold).ask(deployment)


async def test_who_is_told_may_wait_again() -> None:
    waker = Waker()
    cold = ColdHold(waker)
    again: list[Asker] = []
    now = asyncio.get_running_loop().time()
    cold.wait(known(), now, lambda: again.append(Asker(cold).ask()), lambda _: None)
    cold.ready("m")
    assert cold.waiting("m") == 1
    cold.ready("m")
    assert again[0].told == [""]


async def test_without_a_way_to_wake_only_what_is_coming_is_waited_for() -> None:
    cold = ColdHold(None)
    with pytest.raises(Refusal):
        Asker(cold).ask()
    asker = Asker(cold).ask(known(desired_replicas=1, phase="deploying"))
    cold.ready("m")
    assert asker.told == [""]
