"""How a host tells how it is, and by which address it is reached."""

import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from fleet import join
from fleet.access.authority import new_key
from fleet.access.tickets import Refused, Scope, Ticket, TicketReader, TicketSigner
from fleet.join import StatusAnswer
from fleet.relay_address import RelayAddress
from fleet.settings import Settings
from fleet.telemetry import HostStatus
from tests.unit.host.fake_relay import FakeRelay, Say
from worker_host.address import HostAddress, door, listen_again
from worker_host.control_plane import ControlPlane
from worker_host.link import Link
from worker_host.status import StatusLoop
from worker_host.ticket_keys import TicketKeys

RELAY = RelayAddress("127.0.0.1", 8481)
FAR = RelayAddress("192.0.2.1", 8481)


class Taken:
    """Statuses with a number, in their ``load``."""

    def __init__(self) -> None:
        self.inventory = "f1"
        self.taken = 0
        self.lost: list[HostStatus] = []

    def take(self) -> HostStatus:
        self.taken += 1
        return HostStatus(boot_id="b", inventory=self.inventory, at=datetime.now(UTC), load=self.taken)

    def unheard(self, status: HostStatus) -> None:
        self.lost.append(status)


class World:
    def __init__(self, relay: FakeRelay, link: Link) -> None:
        self.relay = relay
        self.settings = Settings(host_address="127.0.0.1")
        self.address = HostAddress(self.settings, relay.address)
        self.telemetry = Taken()
        self.heard: list[StatusAnswer] = []
        self.registrations = 0
        self.loop = StatusLoop(ControlPlane(link), self.telemetry, self.address, self.heard.append, self.register)
        self.loop.registered = ("127.0.0.1", "f1")

    async def register(self) -> None:
        self.registrations += 1
        self.loop.registered = (self.address.current, self.telemetry.inventory)

    @property
    def said(self) -> list[float | None]:
        return [HostStatus.model_validate_json(body).load for body in self.relay.sent(join.STATUS)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    relay = FakeRelay()
    await relay.start()
    relay.script[join.STATUS] = [StatusAnswer(ticket_keys=["k"], now=time.time())]
    link = Link(relay.identity(), relay.address, "b")
    yield World(relay, link)
    await link.aclose()
    await relay.stop()


async def test_answer_is_passed_on(world: World) -> None:
    await world.loop.once()
    assert [answer.ticket_keys for answer in world.heard] == [["k"]]
    assert world.registrations == 0


async def test_only_the_newest_status_is_sent_when_the_relay_is_back(world: World) -> None:
    away = Say(grpc.StatusCode.UNAVAILABLE)
    world.relay.script[join.STATUS] = [away, away, *world.relay.script[join.STATUS]]
    for _ in range(3):
        await world.loop.once()
    assert world.said == [1, 2, 3]
    assert [status.load for status in world.telemetry.lost] == [1, 2], "each is given back as unheard"
    assert len(world.heard) == 1


async def test_all_is_said_on_one_line_until_it_breaks(world: World) -> None:
    for _ in range(3):
        await world.loop.once()
    assert world.relay.lines == 1
    port = world.relay.port
    await world.relay.stop()
    await world.loop.once()
    assert len(world.telemetry.lost) == 1
    await world.relay.start(port)

    deadline = time.monotonic() + 10
    while len(world.heard) < 4:
        assert time.monotonic() < deadline, "nobody hears it although the relay is back"
        await world.loop.once()
    assert world.relay.lines == 2


async def test_a_refusal_is_told_with_its_reason_and_the_next_status_gets_a_new_line(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    good = world.relay.script[join.STATUS]
    world.relay.script[join.STATUS] = [Say(grpc.StatusCode.INVALID_ARGUMENT, "boot_id: no such"), *good]
    await world.loop.once()
    assert "boot_id: no such" in caplog.text
    await world.loop.once()
    assert (len(world.heard), world.relay.lines) == (1, 2)


async def test_a_pass_refused_for_its_time_is_made_anew_by_the_relays_clock(world: World) -> None:
    world.relay.ahead_s = 7200
    await world.loop.once()
    assert len(world.heard) == 1


async def test_nothing_is_said_before_the_host_has_registered(world: World) -> None:
    world.loop.registered = None
    await world.loop.once()
    assert world.said == []


async def test_changed_inventory_is_registered_before_it_is_spoken_of(world: World) -> None:
    world.telemetry.inventory = "f2"
    await world.loop.once()
    await world.loop.once()
    assert world.registrations == 1
    assert len(world.said) == 2


async def test_changed_address_is_registered(world: World) -> None:
    world.settings.host_address = "127.0.0.2"
    await world.loop.once()
    await world.loop.once()
    assert (world.registrations, world.address.current) == (1, "127.0.0.2")


# -- addresses -----------------------------------------------------------------------------------------------------


def test_address_is_the_one_from_which_the_relay_is_reached() -> None:
    assert HostAddress(Settings(), RELAY).current == "127.0.0.1"
    assert HostAddress(Settings(host_address="10.0.0.7"), RELAY).current == "10.0.0.7"


def test_without_a_network_the_address_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    address = HostAddress(Settings(), RELAY)

    def no_network(*_: object, **__: object) -> object:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    assert not address.look()
    assert address.current == "127.0.0.1"
    monkeypatch.undo()
    assert not address.look()


@pytest.mark.parametrize(
    ("settings", "bind"),
    [
        ({}, "127.0.0.1"),
        ({"host_address": "127.0.0.1"}, "127.0.0.1"),
        ({"host_address": "10.0.0.7"}, "0.0.0.0"),
        ({"host_address": "2001:db8::7"}, "::"),
        ({"host_address": "gpu-7.example"}, "0.0.0.0"),
        ({"host_address": "10.0.0.7", "host_reach": "tunnel"}, "127.0.0.1"),
        ({"host_address": "10.0.0.7", "host_bind": "10.0.0.7"}, "10.0.0.7"),
    ],
)
def test_door_is_opened_only_where_somebody_needs_it(settings: dict[str, str], bind: str) -> None:
    assert HostAddress(Settings(**settings), RELAY).bind() == bind  # type: ignore[arg-type]


def test_host_that_has_no_network_yet_opens_its_door_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> object:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    address = HostAddress(Settings(), FAR)
    assert (address.current, address.bind()) == ("127.0.0.1", "0.0.0.0")


@pytest.mark.parametrize(
    ("bind", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.7", "10.0.0.7"), ("::1", "::1")]
)
def test_own_door_is_found_wherever_it_is(bind: str, reached: str) -> None:
    assert door(bind, 5) == (reached, 5)


def test_port_is_the_same_after_a_restart(tmp_path: Path) -> None:
    memory = tmp_path / "port"
    with listen_again("127.0.0.1", 0, memory) as first:
        port = first.getsockname()[1]
        with listen_again("127.0.0.1", 0, memory) as other:  # taken by somebody else
            assert other.getsockname()[1] != port
        memory.write_text(str(port))
    with listen_again("127.0.0.1", 0, memory) as again:
        assert again.getsockname()[1] == port
    memory.write_text("99999999")
    listen_again("127.0.0.1", 0, memory).close()


# -- whose tickets -------------------------------------------------------------------------------------------------


def test_whose_tickets_are_good_is_remembered(tmp_path: Path) -> None:
    signer = TicketSigner(new_key())
    ticket = signer.sign(Ticket("box-1", Scope.HOST))
    reader = TicketReader(())
    keys = TicketKeys(tmp_path / "keys.json", reader)
    with pytest.raises(Refused):
        reader.read(ticket)
    keys.trust([signer.public_key])
    assert reader.read(ticket).host_id == "box-1"
    keys.trust([])
    assert reader.read(ticket), "nobody takes all keys away"
    following = TicketReader(())
    TicketKeys(tmp_path / "keys.json", following)
    assert following.read(ticket).host_id == "box-1"


@pytest.mark.parametrize("damage", ["", "{}", "[1, null]"])
def test_damaged_memory_of_keys_trusts_nobody(tmp_path: Path, damage: str) -> None:
    (tmp_path / "keys.json").write_text(damage)
    signer, reader = TicketSigner(new_key()), TicketReader(())
    keys = TicketKeys(tmp_path / "keys.json", reader)
    with pytest.raises(Refused):
        reader.read(signer.sign(Ticket("box-1", Scope.HOST)))
    keys.trust([signer.public_key])
    assert reader.read(signer.sign(Ticket("box-1", Scope.HOST)))
