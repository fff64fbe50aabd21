"""What a host says to the relay, and how it proves who it is."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import grpc
import pytest

from fleet import join
from fleet.access.authority import CertificateAuthority
from fleet.access.tickets import PASS_S
from fleet.instances import EnginePhase, EngineReport
from fleet.inventory import EngineRef, Inventory, Registration
from fleet.join import EngineList, Reason, Registered, StatusAnswer
from fleet.telemetry import HostStatus
from tests.unit.host.fake_relay import HOST, FakeRelay, Say
from worker_host import control_plane
from worker_host.control_plane import ControlPlane, Gone, VersionRefused
from worker_host.link import Clock, Link

REF = EngineRef(instance_id="chat/1-a", fence=1)
REPORT = EngineReport(instance_id="chat/1-a", fence=1, sequence=1, phase=EnginePhase.READY)
NOTHING = EngineList(engines=[])
DOWN = Say(grpc.StatusCode.UNAVAILABLE)
REGISTRATION = Registration(
    inventory=Inventory(
        hostname="box",
        machine_id="m",
        boot_id="boot-1",
        os="Linux",
        arch="x86_64",
        cpu_count=1,
        ram_bytes=1,
        ram_allocatable_bytes=1,
        disk_bytes=1,
        disk_free_bytes=1,
    ),
    address="127.0.0.1",
    http_port=1,
    version="0.1.0",
)


@pytest.fixture
async def relay(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeRelay]:
    monkeypatch.setattr(control_plane, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(control_plane, "_OTHER_MACHINE_S", 0.02)
    made = FakeRelay()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def link(relay: FakeRelay) -> AsyncIterator[Link]:
    made = Link(relay.identity(), relay.address, "boot-1")
    yield made
    await made.aclose()


@pytest.fixture
def speaker(link: Link) -> ControlPlane:
    return ControlPlane(link)


async def test_host_proves_who_it_is_and_hears_what_may_go_on(relay: FakeRelay, speaker: ControlPlane) -> None:
    relay.script[join.ENGINES] = [EngineList(engines=[REF])]
    assert await speaker.confirm([REF]) == {REF}
    [sent] = relay.sent(join.ENGINES)
    assert EngineList.model_validate_json(sent).engines == [REF]
    [shown] = relay.passes
    assert (shown.host_id, shown.boot_id) == (HOST, "boot-1")


async def test_report_is_sent_until_it_is_taken(relay: FakeRelay, speaker: ControlPlane) -> None:
    refusals = [Say(code) for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.PERMISSION_DENIED)]
    relay.script[join.REPORT] = [DOWN, *refusals, NOTHING]
    await speaker.report(REPORT)
    assert [EngineReport.model_validate_json(body) for body in relay.sent(join.REPORT)] == [REPORT] * 4


async def test_host_that_nobody_knows_any_more_is_told_so(relay: FakeRelay, speaker: ControlPlane) -> None:
    relay.script[join.ENGINES] = [Say(grpc.StatusCode.NOT_FOUND, "it was forgotten")]
    with pytest.raises(Gone, match="it was forgotten"):
        await speaker.confirm([])


async def test_version_that_does_not_fit_is_final(relay: FakeRelay, speaker: ControlPlane) -> None:
    refusal = Say(grpc.StatusCode.FAILED_PRECONDITION, "upgrade to 9.1", **{join.REASON_HEADER: Reason.VERSION})
    relay.script[join.REGISTER] = [refusal]
    with pytest.raises(VersionRefused, match=r"upgrade to 9\.1"):
        await speaker.register(REGISTRATION)


async def test_host_waits_while_another_machine_speaks_as_it(relay: FakeRelay, speaker: ControlPlane) -> None:
    refusal = Say(grpc.StatusCode.FAILED_PRECONDITION, **{join.REASON_HEADER: Reason.OTHER_MACHINE})
    relay.script[join.REGISTER] = [refusal, refusal, Registered(engines=[REF], ticket_keys=["k"], now=time.time())]
    answer = await speaker.register(REGISTRATION)
    assert (answer.engines, answer.ticket_keys) == ([REF], ["k"])
    assert len(relay.sent(join.REGISTER)) == 3


async def test_relay_that_restarts_is_spoken_to_again(relay: FakeRelay, speaker: ControlPlane) -> None:
    relay.script[join.ENGINES] = [NOTHING]
    await speaker.confirm([])
    await relay.stop()
    asking = asyncio.create_task(speaker.confirm([]))
    done, _ = await asyncio.wait({asking}, timeout=0.2)
    assert not done
    await relay.start(relay.port)
    assert await asyncio.wait_for(asking, 10) == set()


async def test_another_relay_at_the_same_place_hears_nothing(relay: FakeRelay, link: Link) -> None:
    port = relay.port
    await relay.stop()
    other = FakeRelay(CertificateAuthority.create())
    other.script = {join.ENGINES: [NOTHING]}
    await other.start(port)
    with pytest.raises(grpc.aio.AioRpcError, match="CERTIFICATE_VERIFY_FAILED"):
        await link.ask(join.ENGINES, "{}")
    assert "it is not the relay that this host joined" in await link.trouble()
    assert other.asked == []
    await other.stop()


@pytest.mark.parametrize("ahead", [-86400.0, -300.0, 900.0, 86400.0])
async def test_wrong_clock_is_put_right_by_the_relay(relay: FakeRelay, link: Link, ahead: float) -> None:
    relay.ahead_s = ahead
    relay.script[join.ENGINES] = [NOTHING]
    await ControlPlane(link).confirm([])
    assert link.clock.now() == pytest.approx(time.time() + ahead, abs=5)
    assert len(relay.sent(join.ENGINES)) in (1, 2)
    relay.asked.clear()
    await ControlPlane(link).confirm([])
    assert len(relay.asked) == 1, "the next call is right at once"


async def test_answers_tell_the_time(relay: FakeRelay, speaker: ControlPlane, link: Link) -> None:
    relay.script[join.REGISTER] = [Registered(engines=[], ticket_keys=[], now=time.time() + 30)]
    await speaker.register(REGISTRATION)
    assert link.clock.now() == pytest.approx(time.time() + 30, abs=5)


async def test_pass_that_is_refused_for_good_is_not_asked_about_for_ever(relay: FakeRelay, link: Link) -> None:
    relay.identity()  # from now on it expects the key of another host
    with pytest.raises(grpc.aio.AioRpcError, match="not valid"):
        await link.ask(join.ENGINES, "{}")
    assert len(relay.sent(join.ENGINES)) == 2


def test_clock_counts_half_of_the_way_there_and_back() -> None:
    steady = [0.0]
    clock = Clock(wall=lambda: 100.0, steady=lambda: steady[0])
    asked = clock.now()
    steady[0] = 2.0
    assert clock.heard(501.0, asked) == 400.0
    assert clock.now() == 502.0


async def test_passes_last_and_are_renewed(link: Link, relay: FakeRelay) -> None:
    first = link.authorization()
    assert link.authorization() is first
    link.heard(link.clock.now() + PASS_S / 2 + 1, link.clock.now())
    assert link.authorization() != first


async def test_temporal_clients_get_new_passes(link: Link) -> None:
    client = await link.temporal(lazy=True)
    before = client.rpc_metadata[join.AUTHORIZATION]
    assert before == link.authorization()
    link.heard(link.clock.now() + 1000, link.clock.now())
    assert client.rpc_metadata[join.AUTHORIZATION] == link.authorization() != before
    link.forget(client)
    link.heard(link.clock.now() + 1000, link.clock.now())
    assert client.rpc_metadata[join.AUTHORIZATION] != link.authorization()


async def test_status_is_sent_once(relay: FakeRelay, speaker: ControlPlane) -> None:
    status = HostStatus(boot_id="boot-1", inventory="f", at=datetime.now(UTC))
    relay.script[join.STATUS] = [DOWN, StatusAnswer(ticket_keys=["k"], now=time.time())]
    with pytest.raises(grpc.aio.AioRpcError):
        await speaker.status(status)
    assert (await speaker.status(status)).ticket_keys == ["k"]
    assert len(relay.sent(join.STATUS)) == 2
