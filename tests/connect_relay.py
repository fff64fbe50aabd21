"""The internal side of a relay, without tunnels: it answers CONNECT as a relay does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fleet.access.authority import name_of_host
from fleet.access.tickets import Refused, Scope, TicketReader
from tests.doors import authority


@dataclass
class ConnectRelay:
    """Leads to the ports of ``hosts``."""

    url: str = ""
    hosts: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Targets, as they were named."""
    carried: set["asyncio.Task[None]"] = field(default_factory=set)

    def cut(self) -> None:
        """Break off what it carries."""
        for task in list(self.carried):
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.carried.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._serve(reader, writer)
        self.carried.discard(task)
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        target = head.split(" ")[1]
        lines = (line.partition(": ") for line in head.split("\r\n"))
        token = next((v for n, _, v in lines if n.lower() == "proxy-authorization"), "").removeprefix("Bearer ")
        self.asked.append(target)
        host = target.removesuffix(":443").removesuffix(name_of_host(""))
        try:
            ticket = TicketReader([authority().tickets.public_key], host).read(token)
            assert ticket.scope is Scope.TUNNEL
        except Refused:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        if host not in self.hosts:
            writer.write(b"HTTP/1.1 503 No Tunnel\r\nContent-Length: 0\r\n\r\n")
            return
        to_host, from_host = await asyncio.open_connection("127.0.0.1", self.hosts[host])
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            await asyncio.gather(pipe(reader, from_host), pipe(to_host, writer))
        finally:
            from_host.transport.abort()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    raise ConnectionResetError


@asynccontextmanager
async def connect_relay() -> AsyncIterator[ConnectRelay]:
    relay = ConnectRelay()
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        relay.cut()
        await asyncio.gather(*relay.carried, return_exceptions=True)
