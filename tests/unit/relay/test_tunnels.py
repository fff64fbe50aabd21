"""Ways to hosts through the relay: gateways come in by CONNECT, hosts dial back."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from fleet.access.tickets import Scope, Ticket
from fleet.join import AUTHORIZATION, CARRY, DIAL_HEADER, TUNNEL, Dial
from tests.raw_host import RawHost
from tests.unit.relay.world import World, soon

Serve = Callable[[Any], Awaitable[None]]


class HostEnd:
    """A host that holds its tunnel and answers dials with ``serve``."""

    def __init__(self, host: RawHost, serve: Serve) -> None:
        self._host = host
        self._serve = serve
        self._channel = host.channel()
        self._metadata = ((AUTHORIZATION, host.authorization()),)
        self._carries: set[asyncio.Task[None]] = set()
        self.dials = self._channel.unary_stream(TUNNEL)(b"", metadata=self._metadata)
        self.dialled: list[str] = []
        self.ended = asyncio.Event()
        self._task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        try:
            async for message in self.dials:
                dial = Dial.model_validate_json(message)
                self.dialled.append(dial.id)
                task = asyncio.create_task(self._carry(dial.id))
                self._carries.add(task)
        except grpc.aio.AioRpcError:
            pass
        finally:
            self.ended.set()

    async def _carry(self, dial_id: str) -> None:
        call = self.carry(dial_id)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError):
            await self._serve(call)
            await call.done_writing()
            await call.read()

    def carry(self, dial_id: str) -> Any:
        return self._channel.stream_stream(CARRY)(metadata=(*self._metadata, (DIAL_HEADER, dial_id)))

    async def close(self) -> None:
        self._task.cancel()
        for task in self._carries:
            task.cancel()
        await asyncio.gather(self._task, *self._carries, return_exceptions=True)
        await self._channel.close()


async def echo(call: Any) -> None:
    while message := await call.read():
        if message is grpc.aio.EOF:
            return
        await call.write(message)
    await call.write(b"")


@asynccontextmanager
async def tunnel(world: World, host: RawHost, serve: Serve = echo) -> AsyncIterator[HostEnd]:
    before = world.relay.tunnels._open.get(host.host_id)
    end = HostEnd(host, serve)
    try:

        async def is_open() -> bool:
            return world.relay.tunnels._open.get(host.host_id) not in (None, before)

        await soon(is_open, what="the tunnel is open")
        yield end
    finally:
        await end.close()


def ticket(world: World, host_id: str, scope: Scope = Scope.TUNNEL, now: float | None = None) -> str:
    return world.keys.tickets.sign(Ticket(host_id, scope), now)


async def connect(
    world: World, target: str, token: str | None, head: bytes = b""
) -> tuple[int, str, asyncio.StreamReader, asyncio.StreamWriter]:
    """Status and head of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.settings.relay_internal_port)
    header = f"proxy-authorization: Bearer {token}\r\n" if token is not None else ""
    writer.write(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{header}\r\n".encode() + head)
    answer = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)).decode()
    return int(answer.split()[1]), answer, reader, writer


async def through(world: World, host: RawHost, head: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    status, answer, reader, writer = await connect(world, f"{host.host_id}:443", ticket(world, host.host_id), head)
    assert status == 200, answer
    return reader, writer


async def test_bytes_go_both_ways_and_each_direction_ends_by_itself(world: World) -> None:
    host = await world.host()
    async with tunnel(world, host):
        reader, writer = await through(world, host)
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        writer.write(b" and bye")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b" and bye"
        writer.close()


async def test_bytes_sent_together_with_the_request_arrive(world: World) -> None:
    host = await world.host()
    async with tunnel(world, host):
        reader, writer = await through(world, host, head=b"early")
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"early"
        writer.close()


async def test_megabytes_arrive_unchanged_on_many_connections_at_once(world: World) -> None:
    host = await world.host()

    async def one() -> None:
        data = os.urandom(3_000_000)
        reader, writer = await through(world, host)

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        _, back = await asyncio.gather(send(), reader.read())
        assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
        writer.close()

    async with tunnel(world, host):
        await asyncio.wait_for(asyncio.gather(*(one() for _ in range(8))), 60)


async def test_who_reads_slowly_stops_who_sends(world: World) -> None:
    host = await world.host()
    sent = 0

    async def pour(call: Any) -> None:
        nonlocal sent
        while True:
            await call.write(b"x" * 65536)
            sent += 65536

    async with tunnel(world, host, pour):
        reader, writer = await through(world, host)
        await reader.readexactly(1)

        async def settled() -> bool:
            before = sent
            await asyncio.sleep(0.3)
            return sent == before

        await soon(settled, what="the sender waits")
        assert sent < 32 << 20
        stopped = sent
        await reader.readexactly(stopped // 2)

        async def goes_on() -> bool:
            return sent > stopped

        await soon(goes_on, what="the sender goes on")
        writer.transport.abort()


async def test_a_gateway_that_goes_away_ends_the_host_s_call_at_once(world: World) -> None:
    host = await world.host()
    gone = asyncio.Event()

    async def wait(call: Any) -> None:
        try:
            while await call.read() not in (b"", grpc.aio.EOF):
                pass
        finally:
            gone.set()

    async with tunnel(world, host, wait):
        _, writer = await through(world, host)
        writer.write(b"x")
        await writer.drain()
        writer.transport.abort()
        await asyncio.wait_for(gone.wait(), 5)


async def test_a_host_that_breaks_off_resets_the_gateway_s_connection(world: World) -> None:
    host = await world.host()

    async def break_off(call: Any) -> None:
        await call.write(b"half an ans")
        call.cancel()

    async with tunnel(world, host, break_off):
        reader, writer = await through(world, host)
        with contextlib.suppress(ConnectionError):
            assert b"wer" not in await asyncio.wait_for(reader.read(), 5)
        writer.close()


async def test_a_host_that_dies_ends_what_went_through_it_and_is_not_asked_any_more(world: World) -> None:
    host = await world.host()
    async with tunnel(world, host):
        reader, writer = await through(world, host)
        writer.write(b"x")
        await reader.readexactly(1)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()

    async def closed() -> bool:
        return not world.relay.tunnels.hosts

    await soon(closed)
    status, *_ = await connect(world, f"{host.host_id}:443", ticket(world, host.host_id))
    assert status == 503


async def test_a_host_that_does_not_dial_back_in_time_is_a_504(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.relay.tunnels.DIAL_WITHIN_S", 0.3)
    host = await world.host()
    async with tunnel(world, host) as end:
        monkeypatch.setattr(end, "_carry", lambda _: asyncio.sleep(0))
        status, *_ = await connect(world, f"{host.host_id}:443", ticket(world, host.host_id))
        assert status == 504
        late = end.carry(end.dialled[0])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await late.read()
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_another_host_cannot_answer_a_dial(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host, thief = await world.host("victim"), await world.host("thief")
    async with tunnel(world, host) as end, tunnel(world, thief) as other:
        monkeypatch.setattr(end, "_carry", lambda _: asyncio.sleep(0))
        asking = asyncio.create_task(connect(world, f"{host.host_id}:443", ticket(world, host.host_id)))

        async def dialled() -> bool:
            return bool(end.dialled)

        await soon(dialled)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await other.carry(end.dialled[0]).read()
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await world.audited("host.carry", "dial")).actor == f"host:{thief.host_id}"
        mine = end.carry(end.dialled[0])
        status, *_ = await asking
        assert status == 200
        mine.cancel()


async def test_the_newest_tunnel_of_a_host_counts(world: World) -> None:
    host = await world.host()
    async with tunnel(world, host) as first, tunnel(world, host) as second:
        await asyncio.wait_for(first.ended.wait(), 5)
        reader, writer = await through(world, host)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        assert (len(first.dialled), len(second.dialled)) == (0, 1)
        writer.close()

    async def closed() -> bool:
        return not world.relay.tunnels.hosts

    await soon(closed)


WRONG: dict[str, tuple[Callable[[World, str], str | None], int, str]] = {
    "none": (lambda w, h: None, 407, "no_ticket"),
    "empty": (lambda w, h: "", 407, "no_ticket"),
    "noise": (lambda w, h: "x.y.z", 407, "invalid"),
    "expired": (lambda w, h: ticket(w, h, now=1_000_000), 407, "expired"),
    "for another host": (lambda w, h: ticket(w, "other-1"), 403, "other_host"),
    "for an engine": (lambda w, h: ticket(w, h, Scope.ENGINE), 403, "scope"),
    "for the host's own port": (lambda w, h: ticket(w, h, Scope.HOST), 403, "scope"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_without_a_ticket_for_this_tunnel_nobody_gets_through(world: World, what: str) -> None:
    host = await world.host()
    make, expected, reason = WRONG[what]
    async with tunnel(world, host) as end:
        status, *_ = await connect(world, f"{host.host_id}:443", make(world, host.host_id))
        assert status == expected
        assert not end.dialled
    assert (await world.audited("tunnel.connect", reason)).target == host.host_id


async def test_a_pass_of_a_host_opens_no_tunnel_to_another(world: World) -> None:
    host, other = await world.host("a"), await world.host("b")
    async with tunnel(world, other):
        credential = host.authorization().removeprefix("Bearer ")
        status, *_ = await connect(world, f"{other.host_id}:443", credential)
        assert status == 407


@pytest.mark.parametrize("target", ["box-1:22", "box-1", ":443", "127.0.0.1:8234", "[::1]:443x"])
async def test_only_hosts_of_ours_are_targets(world: World, target: str) -> None:
    status, *_ = await connect(world, target, ticket(world, target.rpartition(":")[0]))
    assert status in (400, 503)


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"CONNECT x:443 HTTP/1.1\r\n" + b"a: b\r\n" * 5000, b"\r\n"]
)
async def test_what_is_no_http_is_answered_or_closed(world: World, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.settings.relay_internal_port)
    writer.write(sent)
    writer.write_eof()
    with contextlib.suppress(ConnectionError):
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    writer.close()


async def test_the_internal_port_says_that_it_is_well_and_what_it_counted(world: World) -> None:
    host = await world.host()
    base = world.settings.relay_for_gateways
    async with httpx.AsyncClient(trust_env=False) as http, tunnel(world, host):
        assert (await http.get(f"{base}/healthz")).status_code == 200
        metrics = (await http.get(f"{base}/metrics")).text
        assert "holdfast_relay_tunnels 1.0" in metrics
        assert 'holdfast_relay_calls_total{code="OK",method="host.register"} 1.0' in metrics
        assert (await http.get(f"{base}/other")).status_code == 404


async def test_a_forgotten_host_loses_its_tunnel(world: World) -> None:
    from fleet.db import registry
    from fleet.db.tables import HostRow

    host = await world.host()
    async with tunnel(world, host) as end:

        def forget(session: Any) -> None:
            session.delete(session.get_one(HostRow, host.host_id))
            registry.bump(session)

        world.database.write(forget)
        await asyncio.wait_for(end.ended.wait(), 15)
