"""The way to a host that can only dial out."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from fleet.join import Dial
from tests.unit.host.fake_relay import Carry, FakeRelay
from tests.unit.host.waiting import eventually
from worker_host import tunnel
from worker_host.link import Link
from worker_host.tunnel import CHUNK, Tunnel

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Door:
    """The host's own server: does what the test says with each connection."""

    def __init__(self) -> None:
        self.serve: Serve = echo
        self.open: set[asyncio.StreamWriter] = set()
        self.port = 0

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        try:
            await self.serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            self.open.discard(writer)
            writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


@pytest.fixture
async def relay() -> AsyncIterator[FakeRelay]:
    made = FakeRelay()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    made = Door()
    server = await asyncio.start_server(made, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.fixture
async def held(relay: FakeRelay, door: Door) -> AsyncIterator["asyncio.Task[None]"]:
    """A host that holds its tunnel open."""
    link = Link(relay.identity(), relay.address, "boot-1")
    task = asyncio.create_task(Tunnel(link, door.address).run())
    await eventually(lambda: relay.tunnels)
    yield task
    task.cancel()
    await asyncio.wait([task])
    await link.aclose()


async def dial(relay: FakeRelay, name: str = "d1") -> Carry:
    await relay.tunnels[-1].put(Dial(id=name))
    return await asyncio.wait_for(relay.carries[name], 10)


async def received(carry: Carry, size: int) -> bytes:
    data = b""
    while len(data) < size:
        message = await asyncio.wait_for(carry.receive(), 10)
        assert message is not None, "the call ended"
        data += message
    return data


@pytest.mark.usefixtures("held")
async def test_what_comes_through_reaches_the_door_and_its_answer_comes_back(relay: FakeRelay) -> None:
    carry = await dial(relay)
    await carry.send(b"hello")
    assert await received(carry, 5) == b"hello"
    big = os.urandom(3_000_000)
    sending = asyncio.create_task(_send_all(carry, big))
    assert await received(carry, len(big)) == big
    await sending


@pytest.mark.usefixtures("held")
async def test_end_of_one_direction_leaves_the_other_open(relay: FakeRelay, door: Door) -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read()
        writer.write(b"you said " + asked)
        await writer.drain()

    door.serve = answer_at_the_end
    carry = await dial(relay)
    await carry.send(b"this")
    await carry.send(b"")
    assert await received(carry, 13) == b"you said this"
    assert await carry.receive() == b"", "the end of this direction, too"
    assert await carry.receive() is None, "and so the host ends the call"


@pytest.mark.usefixtures("held")
async def test_many_come_through_at_once(relay: FakeRelay) -> None:
    carries = await asyncio.gather(*(dial(relay, f"d{n}") for n in range(50)))

    async def talk(number: int, carry: Carry) -> bytes:
        await carry.send(b"%03d" % number)
        return await received(carry, 3)

    answers = await asyncio.gather(*(talk(n, c) for n, c in enumerate(carries)))
    assert answers == [b"%03d" % n for n in range(50)]


@pytest.mark.usefixtures("held")
async def test_whoever_does_not_read_holds_up_the_door_and_nobody_else(relay: FakeRelay, door: Door) -> None:
    sent = 0

    async def talk_for_ever(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(CHUNK))
            await writer.drain()
            sent += CHUNK

    door.serve = talk_for_ever
    lazy = await dial(relay, "lazy")
    before = -1
    while sent > before:  # until it is held up
        before = sent
        await asyncio.sleep(0.3)
    assert 0 < sent < 40 << 20
    door.serve = echo
    other = await dial(relay, "other")
    await other.send(b"me?")
    assert await received(other, 3) == b"me?"
    lazy.over.set()


@pytest.mark.usefixtures("held")
async def test_connection_ends_when_the_relay_gives_it_up(relay: FakeRelay, door: Door) -> None:
    carry = await dial(relay)
    await carry.send(b"x")
    await received(carry, 1)
    assert door.open
    carry.over.set()
    await eventually(lambda: not door.open)


@pytest.mark.usefixtures("held")
async def test_call_ends_when_the_door_breaks_the_connection(relay: FakeRelay, door: Door) -> None:
    carry = await dial(relay)
    await carry.send(b"x")
    await received(carry, 1)
    writer = next(iter(door.open))
    abruptly = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abruptly)
    writer.transport.abort()
    await asyncio.wait_for(carry.lost.wait(), 10)


@pytest.mark.usefixtures("held")
async def test_door_that_does_not_answer_ends_the_call(relay: FakeRelay, door: Door) -> None:
    door.port = 1
    carry = await dial(relay)
    await asyncio.wait_for(carry.lost.wait(), 10)


@pytest.mark.usefixtures("held")
async def test_tunnel_that_is_cut_is_opened_again(relay: FakeRelay) -> None:
    await relay.tunnels[0].put(None)
    await eventually(lambda: len(relay.tunnels) == 2, within=5)
    carry = await dial(relay)
    await carry.send(b"again")
    assert await received(carry, 5) == b"again"


@pytest.mark.usefixtures("held")
async def test_tunnel_comes_back_within_seconds_of_a_new_relay(relay: FakeRelay, door: Door) -> None:
    carry = await dial(relay)
    await carry.send(b"x")
    await received(carry, 1)
    await relay.stop()
    await eventually(lambda: not door.open, within=5)
    await relay.start(relay.port)
    await eventually(lambda: len(relay.tunnels) == 2, within=5)
    carry = await dial(relay, "d2")
    await carry.send(b"again")
    assert await received(carry, 5) == b"again"


@pytest.mark.usefixtures("held")
async def test_too_many_are_refused(relay: FakeRelay, monkeypatch: pytest.MonkeyPatch, door: Door) -> None:
    monkeypatch.setattr(tunnel, "MOST_CARRIES", 1)
    first = await dial(relay)
    await first.send(b"x")
    await received(first, 1)
    for name in ("d2", "d3"):
        refused = await dial(relay, name)
        await asyncio.wait_for(refused.lost.wait(), 10)
    await first.send(b"z")
    assert await received(first, 1) == b"z"
    first.over.set()
    await eventually(lambda: not door.open)
    carry = await dial(relay, "d4")
    await carry.send(b"y")
    assert await received(carry, 1) == b"y"


async def test_host_that_ends_takes_its_carries_with_it(
    relay: FakeRelay, door: Door, held: "asyncio.Task[None]"
) -> None:
    carry = await dial(relay)
    await carry.send(b"x")
    await received(carry, 1)
    held.cancel()
    await asyncio.wait([held])
    await asyncio.wait_for(carry.lost.wait(), 10)
    await eventually(lambda: not door.open)


async def _send_all(carry: Carry, data: bytes) -> None:
    for start in range(0, len(data), CHUNK):
        await carry.send(data[start : start + CHUNK])
