"""New connections: plain or TLS, straight or through the tunnel that a relay holds."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from fleet.http.connection import ConnectFailed

VANISHED_AFTER_S = 8
"""Without a sign of life of the other end's kernel."""
_KEEPALIVE = {
    "TCP_KEEPIDLE": 2,
    "TCP_KEEPINTVL": 2,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": VANISHED_AFTER_S * 1000,
}
_LONGEST_ANSWER = 16 << 10
"""Bytes, of a relay to CONNECT."""

C = TypeVar("C", bound=asyncio.Protocol)


async def connect(
    make: Callable[[], C],
    host: str,
    port: int,
    *,
    timeout: float,
    tls: ssl.SSLContext | bool | None = None,
    server_name: str | None = None,
) -> C:
    """``server_name``: what the other end's certificate must be for, instead of ``host``. Raises ``ConnectFailed``."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            transport, connection = await loop.create_connection(make, host, port, ssl=tls, server_hostname=server_name)
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError; UnicodeError: no host name at all
        raise ConnectFailed("cannot be reached") from error
    _notice_when_the_host_vanishes(transport)
    return connection


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A way to a host through a relay."""

    relay: tuple[str, int]
    """Its internal address and port."""
    host_id: str
    ticket: str
    """Of scope ``tunnel``."""


async def connect_through(
    make: Callable[[], C], tunnel: Tunnel, *, timeout: float, tls: ssl.SSLContext, server_name: str
) -> C:
    """TLS with the host at the other end of the tunnel. Raises ``ConnectFailed``."""
    connection = make()
    try:
        async with asyncio.timeout(timeout):
            connection.connection_made(await _inside(tunnel, connection, tls, server_name))
    except (OSError, UnicodeError) as error:
        raise ConnectFailed("cannot be reached through its tunnel") from error
    return connection


async def _inside(
    tunnel: Tunnel, connection: asyncio.Protocol, tls: ssl.SSLContext, server_name: str
) -> asyncio.BaseTransport:
    loop = asyncio.get_running_loop()
    transport, asking = await loop.create_connection(_Asking, *tunnel.relay)
    try:
        _notice_when_the_host_vanishes(transport)
        asking.ask(tunnel)
        await asking.answered
        inner = await loop.start_tls(transport, connection, tls, server_hostname=server_name)
    except BaseException:
        transport.abort()
        raise
    if inner is None:
        raise ConnectionResetError("it was closed meanwhile")
    return inner


class _Asking(asyncio.Protocol):
    """Asks a relay for a way to a host, and gives the connection up once there is one."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, tunnel: Tunnel) -> None:
        target = f"{tunnel.host_id}:443"
        lines = (f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"Proxy-Authorization: Bearer {tunnel.ticket}")
        self._transport.write("\r\n".join((*lines, "", "")).encode())

    def data_received(self, data: bytes) -> None:
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0 and len(self._head) <= _LONGEST_ANSWER:
            return
        status = self._head.split(b"\r\n", 1)[0].split(b" ")
        if end == len(self._head) - 4 and len(status) > 1 and status[1] == b"200":
            self._settle(None)
        else:
            self._settle(ConnectionRefusedError(self._head[:200].decode(errors="replace")))

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle(exc or ConnectionResetError("the relay hung up"))

    def _settle(self, error: Exception | None) -> None:
        if self.answered.done():
            return
        if error is None:
            self.answered.set_result(None)
        else:
            self.answered.set_exception(error)


def _notice_when_the_host_vanishes(transport: asyncio.BaseTransport) -> None:
    """A network that is cut says nothing, and an engine may think for long. The kernels of both ends can tell these
    apart; one that is not there for ``VANISHED_AFTER_S`` ends the connection."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # some are Linux only
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
