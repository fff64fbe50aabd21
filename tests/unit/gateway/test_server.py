"""The gateway behind the real HTTP server, over real sockets."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn

from api.gateway.app import Gateway
from api.gateway.quick import quick_http
from api.gateway.standalone import standalone
from tests.unit.gateway.conftest import FAST
from tests.unit.gateway.engines import Exchange, RawEngine, echo, raw_engine, silent, stands_still, until
from tests.unit.gateway.world import KEY, World, in_flight

AUTH = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
async def server(world: World) -> AsyncIterator[tuple[str, Gateway]]:
    """(base URL, the gateway behind it)."""
    gateway = Gateway(world.database, options=FAST)
    config = uvicorn.Config(
        standalone(gateway),
        http=quick_http(gateway),
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve(sockets=[listening]))
    await until(lambda: running.started)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", gateway
    running.should_exit = True
    await task


@asynccontextmanager
async def raw_client(base: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = httpx.URL(base)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def request(path: str, body: bytes, headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def serve(world: World, gateway: Gateway, engine: RawEngine) -> None:
    world.serve("m", engine.url)
    await gateway.refresh()


@pytest.mark.parametrize("begun", [False, True])
async def test_a_closed_client_connection_stops_the_engine(
    world: World, server: tuple[str, Gateway], begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    base, gateway = server

    async def stream(exchange: Exchange) -> None:
        if begun:
            await exchange.start_events()
            await exchange.chunk(b"data: 1\n\n")
        await exchange.gone()

    async with raw_engine(stream) as engine:
        await serve(world, gateway, engine)
        async with raw_client(base) as (reader, writer):
            writer.write(request("/v1/chat/completions", b'{"model":"m","stream":true}'))
            if begun:
                await reader.readuntil(b"data: 1")
            await until(lambda: len(engine.requests) == 1)
        with caplog.at_level(logging.WARNING):
            await until(lambda: engine.open_connections == 0 and in_flight(gateway) == 0, within=0.5)
        assert caplog.records == []


async def test_many_clients_that_leave_leave_nothing_behind(world: World, server: tuple[str, Gateway]) -> None:
    base, gateway = server
    async with raw_engine(silent) as engine:
        await serve(world, gateway, engine)
        pairs = [await asyncio.open_connection("127.0.0.1", httpx.URL(base).port) for _ in range(30)]
        for _, writer in pairs:
            writer.write(request("/v1/completions", b'{"model":"m"}'))
        await until(lambda: len(engine.requests) == 30)
        for _, writer in pairs:
            writer.transport.abort()
        await until(lambda: engine.open_connections == 0 and in_flight(gateway) == 0)


async def test_a_client_connection_serves_many_requests(world: World, server: tuple[str, Gateway]) -> None:
    base, gateway = server
    async with raw_engine(echo) as engine, raw_client(base) as (reader, writer):
        await serve(world, gateway, engine)
        for n in range(5):
            body = json.dumps({"model": "m", "n": n}).encode()
            writer.write(request("/v1/completions", body))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(len(body)) == body


async def test_pipelined_requests_are_answered_in_order(world: World, server: tuple[str, Gateway]) -> None:
    base, gateway = server
    bodies = [json.dumps({"model": "m", "n": n}).encode() for n in range(5)]
    async with raw_engine(echo) as engine, raw_client(base) as (reader, writer):
        await serve(world, gateway, engine)
        writer.write(b"".join(request("/v1/completions", body) for body in bodies))
        for body in bodies:
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(body)) == body


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_sender_of_a_huge_body_gets_to_read_why_it_is_refused(
    world: World, server: tuple[str, Gateway], chunked: bool
) -> None:
    base, _ = server
    huge = b"x" * (50 << 20)

    async def pieces() -> AsyncIterator[bytes]:
        for i in range(0, len(huge), 1 << 16):
            yield huge[i : i + (1 << 16)]

    async with httpx.AsyncClient(base_url=base, headers=AUTH, timeout=30) as client:
        answer = await client.post("/v1/chat/completions", content=pieces() if chunked else huge)
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "body"


async def test_a_sender_that_never_stops_is_cut_off(server: tuple[str, Gateway]) -> None:
    base, _ = server
    async with raw_client(base) as (_, writer):
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"

        async def send() -> None:
            while True:
                writer.write(piece)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send(), 20)


@pytest.mark.parametrize(
    "bad",
    [
        b"nonsense\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\nhello",
        b"GET /v1/\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET /v1/%ff%fe HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_bad_http_is_the_clients_fault(server: tuple[str, Gateway], bad: bytes) -> None:
    async with raw_client(server[0]) as (reader, writer):
        writer.write(bad)
        status = await asyncio.wait_for(reader.readline(), 5)
        assert status.startswith(b"HTTP/1.1 4")


async def test_a_broken_stream_reaches_the_client_as_an_error_and_a_broken_connection(
    world: World, server: tuple[str, Gateway]
) -> None:
    base, gateway = server

    async def die(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.chunk(b"data: 1\n\nda")
        exchange.hang_up()

    async with raw_engine(die) as engine, httpx.AsyncClient(base_url=base, headers=AUTH) as client:
        await serve(world, gateway, engine)
        got = b""

        async def read() -> None:
            nonlocal got
            async with client.stream("POST", "/v1/completions", json={"model": "m"}) as answer:
                async for piece in answer.aiter_raw():
                    got += piece

        with pytest.raises(httpx.RemoteProtocolError):
            await read()
        assert got.startswith(b'data: 1\n\ndata: {"error":{')


async def test_a_client_that_stops_reading_holds_the_engine_back(world: World, server: tuple[str, Gateway]) -> None:
    base, gateway = server
    total, sent = 4000, 0

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.start_events()
        for _ in range(total):
            await exchange.chunk(b"data: " + b"x" * 16_000 + b"\n\n")
            sent += 1
        await exchange.end_chunks()

    async with (
        raw_engine(flood) as engine,
        httpx.AsyncClient(base_url=base, headers=AUTH, timeout=30) as client,
    ):
        await serve(world, gateway, engine)
        async with client.stream("POST", "/v1/completions", json={"model": "m"}) as answer:
            await stands_still(lambda: sent)
            assert sent < total
            size = 0
            async for piece in answer.aiter_raw():
                size += len(piece)
        assert size == total * 16_008


async def test_the_process_of_its_own_has_health_readiness_and_metrics(server: tuple[str, Gateway]) -> None:
    async with httpx.AsyncClient(base_url=server[0]) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.post("/healthz")).status_code == 405
        await client.get("/v1/models", headers=AUTH)
        metrics = await client.get("/metrics", headers=AUTH)
        assert 'holdfast_gateway_requests_total{code="200",model=""} 1.0' in metrics.text
        assert (await client.get("/elsewhere")).json()["error"]["code"] == "unknown_url"
