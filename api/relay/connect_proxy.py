"""The relay's internal listener: ``CONNECT <host id>:443`` opens a way through the host's tunnel; also ``/healthz`` and
``/metrics``.

What goes through is TLS between the caller and the host: the relay sees bytes only.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable

import h11
from prometheus_client import Counter, generate_latest

from api.relay.refusal import Doorbook
from api.relay.tunnels import HostEnd, NotDialled, NoTunnel, Tunnels
from fleet.access import tickets
from fleet.access.authority import name_of_host
from fleet.access.tickets import Scope, TicketReader

log = logging.getLogger("holdfast.relay")

_ACTION = "tunnel.connect"
_CHUNK = 64 << 10
"""Bytes in a message through the tunnel, at most."""
_HEAD_WITHIN_S = 10.0
_LINGER_S = 60.0
"""One direction is over: so long may the other be silent."""


class _Answer(Exception):
    """A status other than 200, and a sentence."""

    def __init__(self, status: int, text: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = list(headers)


class ConnectProxy:
    def __init__(self, tunnels: Tunnels, reader: TicketReader, doorbook: Doorbook) -> None:
        self._tunnels = tunnels
        self._tickets = reader
        self._doorbook = doorbook

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for ``asyncio.start_server``."""
        http = h11.Connection(h11.SERVER)
        try:
            request = await asyncio.wait_for(_head(http, reader), _HEAD_WITHIN_S)
            if request is not None:
                await self._answer(http, request, reader, writer)
        except _Answer as answer:
            with contextlib.suppress(OSError, h11.LocalProtocolError):
                await _reply(http, writer, answer.status, answer.text.encode(), answer.headers)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the other side is gone
        finally:
            writer.close()

    async def _answer(
        self, http: h11.Connection, request: h11.Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        target = request.target.decode(errors="replace")
        if request.method == b"CONNECT":
            await self._connect(http, request, target, reader, writer)
        elif target == "/healthz":
            await _reply(http, writer, 200, b"ok\n")
        elif target == "/metrics":
            await _reply(http, writer, 200, generate_latest(self._doorbook.metrics.registry))
        else:
            raise _Answer(404, "this is a relay: CONNECT <host id>:443, /healthz or /metrics")

    async def _connect(
        self,
        http: h11.Connection,
        request: h11.Request,
        target: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        host_id, _, port = target.rpartition(":")
        host_id = host_id.removesuffix(name_of_host(""))  # HTTP clients name what the certificate is for
        if not host_id or port != "443":
            raise _Answer(400, f"no such target: {target[:100]!r}; it must be <host id>:443")
        self._check(request, host_id, _peer(writer))
        try:
            async with self._tunnels.dial(host_id) as host:
                writer.write(http.send(h11.Response(status_code=200, headers=[], reason=b"OK")) or b"")
                early, _ = http.trailing_data
                await self._pump(early, reader, writer, host)
        except NoTunnel:
            raise _Answer(503, f"host {host_id[:80]} holds no tunnel here") from None
        except NotDialled:
            raise _Answer(504, f"host {host_id[:80]} did not dial back in time") from None

    def _check(self, request: h11.Request, host_id: str, peer: str) -> None:
        header = dict(request.headers).get(b"proxy-authorization", b"").decode(errors="replace")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise self._refused(407, "no_ticket", "no ticket was sent", host_id, peer)
        try:
            ticket = self._tickets.read(token)
        except tickets.Refused as error:
            raise self._refused(407, error.reason, f"the ticket is not valid: {error}", host_id, peer) from None
        if ticket.scope is not Scope.TUNNEL:
            raise self._refused(403, "scope", "the ticket is for something else", host_id, peer)
        if ticket.host_id != host_id:
            raise self._refused(403, "other_host", "the ticket is for another host", host_id, peer)

    def _refused(self, status: int, reason: str, text: str, host_id: str, peer: str) -> _Answer:
        self._doorbook.refused(host_id="", action=_ACTION, reason=reason, peer=peer, target=host_id)
        return _Answer(status, text, [("proxy-authenticate", "Bearer")] if status == 407 else [])

    async def _pump(
        self, early: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: HostEnd
    ) -> None:
        """Until both directions are over, or one breaks: then the caller's connection is reset."""
        metrics = self._doorbook.metrics
        metrics.connections.inc()
        forth, back = metrics.carried.labels("to_host"), metrics.carried.labels("from_host")
        flow = _Flow()
        directions = {
            asyncio.create_task(flow.to_host(early, reader, host, forth)),
            asyncio.create_task(flow.from_host(host, writer, back)),
        }
        lost = asyncio.create_task(host.lost.wait())
        try:
            whole = await flow.until_over(directions, lost)
        finally:
            for task in (*directions, lost):
                task.cancel()
            await asyncio.gather(*directions, lost, return_exceptions=True)
            metrics.connections.dec()
        if not whole:
            writer.transport.abort()


class _Flow:
    """Bytes both ways, none kept: whoever sends waits for whoever receives."""

    def __init__(self) -> None:
        self._moved = 0

    async def to_host(self, early: bytes, reader: asyncio.StreamReader, host: HostEnd, count: Counter) -> None:
        data = early or await reader.read(_CHUNK)
        while data:
            await host.context.write(data)
            self._moved += 1
            count.inc(len(data))
            data = await reader.read(_CHUNK)
        await host.context.write(b"")

    async def from_host(self, host: HostEnd, writer: asyncio.StreamWriter, count: Counter) -> None:
        while data := await host.read():
            writer.write(data)
            await writer.drain()
            self._moved += 1
            count.inc(len(data))
        if writer.can_write_eof():
            writer.write_eof()

    async def until_over(self, directions: "set[asyncio.Task[None]]", lost: "asyncio.Task[bool]") -> bool:
        """True when both directions came to their end."""
        pending = set(directions)
        patience: float | None = None
        while pending:
            moved = self._moved
            done, _ = await asyncio.wait({*pending, lost}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            pending -= done
            if any(t.cancelled() or t.exception() is not None for t in done):
                return False
            if lost in done or (not done and moved == self._moved):
                return False
            patience = _LINGER_S
        return True


async def _head(http: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """None: the other side went away without a word. Raises _Answer when it speaks no HTTP."""
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as error:
            raise _Answer(400, f"no HTTP request: {error}") from error
        if isinstance(event, h11.Request):
            return event
        if not isinstance(event, type(h11.NEED_DATA)):
            return None
        http.receive_data(await reader.read(_CHUNK))


async def _reply(
    http: h11.Connection,
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    headers: Iterable[tuple[str, str]] = (),
) -> None:
    lines = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))), ("connection", "close")]
    parts = (h11.Response(status_code=status, headers=[*lines, *headers]), h11.Data(data=body), h11.EndOfMessage())
    writer.write(b"".join(http.send(part) or b"" for part in parts))
    await writer.drain()


def _peer(writer: asyncio.StreamWriter) -> str:
    found = writer.get_extra_info("peername")
    return str(found[0]) if found else ""
