"""Engines made of a bare TCP server, so that they can misbehave in any way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Reply = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request that an engine got, and the way back."""

    engine: "RawEngine"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: bytes
    body: bytes
    connection: int
    """Which connection of the engine, from 1."""
    number: int
    """Which request on this connection, from 1."""

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes, *, status: str = "200 OK", headers: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}"
        await self.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def start_events(self) -> None:
        await self.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_chunks(self) -> None:
        await self.write(b"0\r\n\r\n")

    async def gone(self) -> None:
        """Until the gateway has closed this connection."""
        with contextlib.suppress(OSError):
            while await self.reader.read(1 << 16):
                pass

    def hang_up(self) -> None:
        self.writer.transport.abort()


@dataclass
class RawEngine:
    url: str
    connections: int = 0
    open_connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    """Heads, in order."""
    bodies: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def raw_engine(reply: Reply) -> AsyncIterator[RawEngine]:
    """An engine that reads whole requests and lets ``reply`` do the rest, one at a time per connection."""
    engine = RawEngine("")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        engine.connections += 1
        engine.open_connections += 1
        connection = engine.connections
        number = 0
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_length(head))
                number += 1
                engine.requests.append(head)
                engine.bodies.append(body)
                await reply(Exchange(engine, reader, writer, head, body, connection, number))
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass
        finally:
            engine.open_connections -= 1
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    port = server.sockets[0].getsockname()[1]
    engine.url = f"http://127.0.0.1:{port}"
    try:
        yield engine
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


async def echo(exchange: Exchange) -> None:
    """Answers with the body that it got."""
    await exchange.answer(exchange.body)


async def silent(exchange: Exchange) -> None:
    """Never answers; notices when the gateway gives up."""
    await exchange.gone()


async def unused_port() -> int:
    """A port of this machine on which nothing listens."""
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


async def until(condition: Callable[[], bool], *, within: float = 5.0) -> None:
    """Waits for ``condition``; fails when it has not come true ``within`` seconds."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


async def stands_still(value: Callable[[], int]) -> None:
    """Until ``value()`` is above zero and has been the same for a while."""
    async with asyncio.timeout(20):
        last = same = 0
        while same < 25:
            await asyncio.sleep(0.01)
            now = value()
            same = same + 1 if now == last and now else 0
            last = now
