"""A connection that is handed through: a client upgrades it to a websocket, and what both sides say passes as it is."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

_LONGEST_HEAD = 16 << 10
"""Bytes, of the far side's answer."""
_SWITCHING = 101
_BAD_GATEWAY = 502
_LEFT = 499


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    path: bytes
    """As it was sent, without the query."""
    query: bytes
    headers: list[tuple[bytes, bytes]]
    """Names in lower case."""
    peer: str


class NotPassed(Exception):
    """The client gets ``answer``, a whole HTTP answer, and is hung up on."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(answer.split(b"\r\n", 1)[0].decode())
        self.answer = answer


class Passage(asyncio.Protocol):
    """The client's side; for uvicorn's ``ws``, with ``open_`` bound.

    ``open_`` decides, dials with ``far_side`` as the protocol, and begins; or it raises ``NotPassed``. It is cancelled
    when the client leaves.
    """

    def __init__(
        self, open_: Callable[[UpgradeRequest, "Passage"], Awaitable[None]], *, server_state: Any, **_server: Any
    ) -> None:
        self._open = open_
        self._connections: set[asyncio.Protocol] = server_state.connections
        self._far: FarSide | None = None
        self._opening: asyncio.Task[None] | None = None
        self.status = _LEFT
        """Of the far side's answer; 499 until there is one."""
        self.bytes_in = self.bytes_out = 0
        """From the client, and to it, after the upgrade."""
        self.on_end: Callable[[Passage], None] = lambda _: None
        """Called once, when the client's side has ended, if set before."""

    def far_side(self) -> "FarSide":
        return FarSide(self)

    def begin(self, far: "FarSide", head: bytes) -> None:
        """Send the far side its request. All that comes from then on is passed on."""
        self._far = far
        far.write(head)
        self._transport.resume_reading()

    # --- what the event loop says ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._far is not None:
            self.bytes_in += len(data)
            self._far.write(data)
        elif self._opening is None:  # the web server hands the whole head on in one piece
            self._transport.pause_reading()
            self._opening = asyncio.create_task(self._open_or_refuse(self._request(data)))

    def pause_writing(self) -> None:
        if self._far is not None:
            self._far.hold(back=True)

    def resume_writing(self) -> None:
        if self._far is not None:
            self._far.hold(back=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._opening is not None:
            self._opening.cancel()
        if self._far is not None:
            self._far.abort()
        self.on_end(self)

    def shutdown(self) -> None:
        """The server ends."""
        self._transport.close()

    # --- what the far side does ---

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def refuse(self, answer: bytes) -> None:
        self.write(answer)
        self.close()

    def close(self) -> None:
        """After what is still to be sent."""
        self._transport.close()

    def hold(self, *, back: bool) -> None:
        if not self._transport.is_closing():
            (self._transport.pause_reading if back else self._transport.resume_reading)()

    async def _open_or_refuse(self, request: UpgradeRequest) -> None:
        try:
            await self._open(request, self)
        except NotPassed as refusal:
            self.status = int(refusal.answer.split(b" ", 2)[1])
            self.refuse(refusal.answer)

    def _request(self, head: bytes) -> UpgradeRequest:
        first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        path, _, query = first.split(b" ")[1].partition(b"?")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        peer = self._transport.get_extra_info("peername")
        return UpgradeRequest(path, query, headers, str(peer[0]) if isinstance(peer, tuple) else "")


class FarSide(asyncio.Protocol):
    """The other side of a ``Passage``."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self._head: bytes | None = b""
        """Of its answer, as far as it has come; None: it has agreed to the upgrade."""

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def hold(self, *, back: bool) -> None:
        if not self._transport.is_closing():
            (self._transport.pause_reading if back else self._transport.resume_reading)()

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._head is None:
            self._passage.bytes_out += len(data)
            self._passage.write(data)
            return
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._answered(*self._head.split(b"\r\n\r\n", 1))
        elif len(self._head) > _LONGEST_HEAD:
            self._refuse(_BAD_GATEWAY)

    def pause_writing(self) -> None:
        self._passage.hold(back=True)

    def resume_writing(self) -> None:
        self._passage.hold(back=False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head is not None and self._passage.status == _LEFT:
            self._refuse(_BAD_GATEWAY)
        self._passage.close()

    def _answered(self, head: bytes, rest: bytes) -> None:
        status = _status(head)
        if status != _SWITCHING:
            # Never the body: on a connection that was not upgraded the next request would pass by all checks.
            self._refuse(status if 300 <= status <= 599 else _BAD_GATEWAY)
            return
        self._head, self._passage.status = None, status
        self._passage.bytes_out += len(rest)
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"holdfast-")]
        self._passage.write(b"\r\n".join([*lines, b"", b""]) + rest)

    def _refuse(self, status: int) -> None:
        self._passage.status = status
        self._passage.refuse(plain_answer(status))
        self.abort()


def plain_answer(status: int, headers: bytes = b"", body: bytes = b"") -> bytes:
    """``headers``: lines, each with its end."""
    phrase = HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else ""
    lines = b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\nconnection: close\r\n\r\n"
    return lines % (status, phrase.encode(), headers, len(body)) + body


def _status(head: bytes) -> int:
    parts = head.split(b" ", 2)
    return int(parts[1]) if len(parts) > 1 and len(parts[1]) == 3 and parts[1].isdigit() else 0
