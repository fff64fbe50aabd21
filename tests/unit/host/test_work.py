"""Taking work for as long as the relay lets us."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import grpc
import pytest
from temporalio.api.workflowservice.v1 import DescribeNamespaceResponse, GetSystemInfoResponse

from tests.unit.host.fake_relay import HOST, FakeRelay, Say
from tests.unit.host.waiting import eventually
from worker_host import work
from worker_host.control_plane import Gone
from worker_host.lease import LeaseKeeper
from worker_host.link import Link
from worker_host.supervisor import Supervisor
from worker_host.work import Work

TEMPORAL = "/temporal.api.workflowservice.v1.WorkflowService/"
POLL = TEMPORAL + "PollActivityTaskQueue"
REFUSED = Say(grpc.StatusCode.PERMISSION_DENIED, "another machine speaks as this host")


class Engines:
    """As far as registering activities goes."""

    async def take(self) -> None: ...
    async def look(self) -> None: ...


@pytest.fixture
async def relay(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeRelay]:
    monkeypatch.setattr(work, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(work, "_LOOK_EVERY_S", 0.05)
    made = FakeRelay()
    made.script[TEMPORAL + "GetSystemInfo"] = [GetSystemInfoResponse().SerializeToString()]
    made.script[TEMPORAL + "DescribeNamespace"] = [DescribeNamespaceResponse().SerializeToString()]
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def link(relay: FakeRelay) -> AsyncIterator[Link]:
    made = Link(relay.identity(), relay.address, "boot-1")
    yield made
    await made.aclose()


def work_of(link: Link) -> Work:
    return Work(link, HOST, cast(Supervisor, Engines()), cast(LeaseKeeper, Engines()))


@pytest.mark.parametrize("status", ["PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND"])
async def test_host_that_is_turned_away_asks_again_whether_it_is_wanted(
    relay: FakeRelay, link: Link, status: str
) -> None:
    relay.script[POLL] = [Say(getattr(grpc.StatusCode, status))]
    asked = 0

    async def allowed() -> None:
        nonlocal asked
        asked += 1

    working = asyncio.create_task(work_of(link).take(allowed))
    await eventually(lambda: asked >= 3, within=30)
    assert not working.done()
    working.cancel()
    await asyncio.wait([working])
    assert relay.sent(POLL)


async def test_relay_that_cannot_answer_now_is_polled_on_by_the_same_worker(relay: FakeRelay, link: Link) -> None:
    relay.script[POLL] = [Say(grpc.StatusCode.UNAVAILABLE)]
    asked = 0

    async def allowed() -> None:
        nonlocal asked
        asked += 1

    working = asyncio.create_task(work_of(link).take(allowed))
    await eventually(lambda: len(relay.sent(POLL)) >= 6, within=30)
    working.cancel()
    await asyncio.wait([working])
    assert asked == 1


async def test_nothing_is_asked_for_before_the_host_is_accepted(relay: FakeRelay, link: Link) -> None:
    accepted = asyncio.Event()
    relay.script[POLL] = [REFUSED]
    working = asyncio.create_task(work_of(link).take(lambda: _until(accepted)))
    done, _ = await asyncio.wait({working}, timeout=0.3)
    assert not done
    assert relay.asked == []
    accepted.set()
    await eventually(lambda: relay.sent(POLL), within=30)
    working.cancel()
    await asyncio.wait([working])


async def test_relay_that_is_away_is_waited_for(relay: FakeRelay, link: Link) -> None:
    await relay.stop()
    relay.script[POLL] = [REFUSED]
    accepted = asyncio.Event()
    accepted.set()
    working = asyncio.create_task(work_of(link).take(lambda: _until(accepted)))
    done, _ = await asyncio.wait({working}, timeout=0.5)
    assert not done
    await relay.start(relay.port)
    await eventually(lambda: relay.sent(POLL), within=30)
    working.cancel()
    await asyncio.wait([working])


async def test_forgotten_host_stops_working(link: Link) -> None:
    async def forgotten() -> None:
        raise Gone("it was forgotten")

    with pytest.raises(Gone):
        await work_of(link).take(forgotten)


async def _until(event: asyncio.Event) -> None:
    await event.wait()
