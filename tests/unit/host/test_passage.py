"""Connections that are upgraded go through the host's door byte for byte, under the same rules as requests."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fleet.access.authority import name_of_host
from fleet.access.tickets import Scope
from tests.doors import HostDoor, ticket, visitor
from tests.unit.gateway.engines import Exchange, RawEngine, raw_engine, stands_still, until, unused_port

INSTANCE = "chat/1-a"
REALTIME = f"/engines/{INSTANCE}/v1/realtime?model=m"
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n"

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def parrot(exchange: Exchange) -> None:
    """Agrees, and from then on says what it hears."""
    await exchange.write(AGREED + b"Holdfast-Refused: gone\r\n\r\nhello")
    while data := await exchange.reader.read(1 << 16):
        await exchange.write(data)


@asynccontextmanager
async def client(door: HostDoor, path: str = REALTIME, token: str | None = None) -> AsyncIterator[Client]:
    tls, name = visitor().tls, name_of_host(door.host)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=tls, server_hostname=name)
    token = ticket(door.host, Scope.ENGINE, INSTANCE, 1) if token is None else token
    lines = [f"GET {path} HTTP/1.1", "Host: h", "Connection: keep-alive, Upgrade", "Upgrade: websocket"]
    lines += [f"Authorization: Bearer {token}", "Sec-WebSocket-Key: k", "Sec-WebSocket-Version: 13"]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.transport.abort()


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def load(door: HostDoor) -> tuple[int, int]:
    loads = list(door.server.loads().values())
    return (loads[0].requests, loads[0].in_flight) if loads else (0, 0)


def behind(door: HostDoor, engine: RawEngine) -> None:
    door.runs(INSTANCE, engine.url)


async def test_what_both_sides_say_passes_and_is_counted(door: HostDoor) -> None:
    async with raw_engine(parrot) as engine:
        behind(door, engine)
        async with client(door) as (reader, writer):
            assert await head_of(reader) == AGREED + b"\r\n"
            assert await reader.readexactly(5) == b"hello"
            noise = os.urandom(3 << 20)  # more than any buffer on the way takes
            writer.write(noise)
            assert await reader.readexactly(len(noise)) == noise
            assert load(door) == (1, 1)
        await until(lambda: load(door) == (1, 0))
        await until(lambda: engine.open_connections == 0)
        head = engine.requests[0].lower()
        assert head.startswith(b"get /v1/realtime?model=m http/1.1\r\n")
        assert b"connection: upgrade\r\nupgrade: websocket\r\n" in head
        assert b"sec-websocket-key: k" in head
        assert b"authorization" not in head


async def test_a_client_hears_that_the_engine_left(door: HostDoor) -> None:
    async def leaves(exchange: Exchange) -> None:
        await exchange.write(AGREED + b"\r\nbye")
        exchange.writer.close()

    async with raw_engine(leaves) as engine:
        behind(door, engine)
        async with client(door) as (reader, _):
            await head_of(reader)
            assert await reader.read() == b"bye"
        await until(lambda: load(door) == (1, 0))


async def test_who_does_not_read_holds_the_engine_back(door: HostDoor) -> None:
    sent = 0

    async def floods(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.write(AGREED + b"\r\n")
        while True:
            await exchange.write(bytes(1 << 16))
            sent += 1 << 16

    async with raw_engine(floods) as engine:
        behind(door, engine)
        async with client(door) as (reader, _):
            await head_of(reader)
            await stands_still(lambda: sent)
            assert sent < 64 << 20
        await until(lambda: engine.open_connections == 0)


@pytest.mark.parametrize(
    ("path", "token", "status", "reason"),
    [
        (REALTIME, "", 401, "no_ticket"),
        (REALTIME, "nonsense", 401, "invalid"),
        (REALTIME.replace("1-a", "1-b"), None, 403, "other_instance"),
        (f"/engines/{INSTANCE}/v1/models", None, 404, ""),
        ("/metrics", None, 404, ""),
    ],
)
async def test_who_may_not_is_refused(door: HostDoor, path: str, token: str | None, status: int, reason: str) -> None:
    async with raw_engine(parrot) as engine:
        behind(door, engine)
        async with client(door, path, token) as (reader, _):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert (f"holdfast-refused: {reason}\r\n".encode() in answer) == bool(reason)
        assert engine.connections == 0


async def test_an_old_fence_and_an_engine_that_is_away_are_told(door: HostDoor) -> None:
    door.runs(INSTANCE, f"http://127.0.0.1:{await unused_port()}", fence=1)
    async with client(door) as (reader, _):
        assert b"holdfast-refused: unreachable" in await reader.read()
    door.runs(INSTANCE, "http://127.0.0.1:1", fence=2)
    async with client(door) as (reader, _):
        assert b"holdfast-refused: stale_fence" in await reader.read()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", 404),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 502),
        (b"SSH-2.0\r\n\r\n", 502),
        (b"x" * (17 << 10), 502),
        (b"", 502),
    ],
)
async def test_an_engine_that_does_not_agree_gets_nothing_more(door: HostDoor, answer: bytes, status: int) -> None:
    async def refuses(exchange: Exchange) -> None:
        await exchange.write(answer)
        if not answer:
            exchange.writer.close()

    async with raw_engine(refuses) as engine:
        behind(door, engine)
        async with client(door) as (reader, writer):
            got = await reader.read()
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 %d " % status)
        await until(lambda: engine.open_connections == 0)
        assert len(engine.requests) == 1
    await until(lambda: load(door) == (1, 0))
