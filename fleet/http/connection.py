"""One connection to an engine: sends a request, parses the reply, holds either side back when the other is slow.

UpstreamError
├── ConnectFailed   there is no connection, so nothing was sent
├── Died            the connection ended before the reply did
├── BadReply        what came is not HTTP
├── TimedOut        nothing came in time
└── Withdrawn       the engine was given up before it answered
"""

import asyncio
import re
from collections.abc import Callable
from typing import cast

import httptools

from fleet.http.door import LOAD, REFUSED

HOLD_LIMIT = 256 << 10
"""A reply of known length up to this is passed on whole: an engine that dies in it leaves no torso."""
_PAUSE_ABOVE = 512 << 10
"""Bytes of a reply that wait for the client before the engine is held back; above ``HOLD_LIMIT``."""
_JOIN_BELOW = 64 << 10
"""Up to this, copying a body is cheaper than a second write."""

_PASSED_ON = frozenset(
    {
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"openai-processing-ms",
        b"openai-version",
        b"retry-after",
    }
)
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_BODILESS = frozenset({204, 304})


class UpstreamError(Exception):
    """An engine did not answer as it should. The text completes "the engine of the model …"."""


class ConnectFailed(UpstreamError):
    pass


class Died(UpstreamError):
    def __init__(self, *, heard: bool) -> None:
        super().__init__("closed the connection in the middle of its answer" if heard else "gave no answer")
        self.heard = heard
        """Whether any byte of the reply had come."""


class BadReply(UpstreamError):
    def __init__(self, what: str) -> None:
        super().__init__(f"answered with something that is not HTTP ({what})")


class TimedOut(UpstreamError):
    def __init__(self) -> None:
        super().__init__("did not answer in time")


class Withdrawn(UpstreamError):
    def __init__(self) -> None:
        super().__init__("was given up before it answered")


class Connection(asyncio.Protocol):
    """For one exchange at a time: ``begin``, then ``head``, then ``read`` until ``ended``.

    A request that comes in parts goes on with ``write`` after ``begin``, until ``finish``. Afterwards the connection is
    good for another exchange if ``reusable``. After ``abort`` nothing may be called.
    """

    __slots__ = (
        "_begun",
        "_bodiless",
        "_buffered",
        "_chunks",
        "_complete",
        "_error",
        "_first_byte_timeout",
        "_framed",
        "_headed",
        "_heard",
        "_hold",
        "_idle_timeout",
        "_keep_alive",
        "_listener",
        "_loop",
        "_on_stall",
        "_parser",
        "_paused",
        "_sending",
        "_spoiled",
        "_transport",
        "_waiter",
        "_writable",
        "closed",
        "deadline",
        "event_stream",
        "exchanges",
        "headers",
        "idle",
        "load",
        "refused",
        "status",
        "waited",
    )

    status: int
    headers: list[tuple[bytes, bytes]]
    """Those that are passed on."""
    refused: bytes
    """Why a host's proxy answered instead of the engine; empty: it did not (``fleet.http.door``)."""
    load: bytes
    """How full the engine is, as the proxy of its host says (``fleet.policy.engine_load``); empty: it does not."""
    event_stream: bool
    """The body is plain server-sent events."""
    waited: float
    """Seconds until the first byte of the reply."""

    _chunks: list[bytes]
    _buffered: int
    _error: UpstreamError | None
    _heard: bool
    """A byte of the reply has come…"""
    _headed: bool
    """…its status and all its headers…"""
    _complete: bool
    """…the whole."""
    _framed: bool
    """The reply says where it ends."""
    _hold: bool
    """It is short: pass it on whole."""
    _keep_alive: bool
    _sending: bool
    """More of the request is to come."""

    passed_on: Callable[[bytes], bool] = _PASSED_ON.__contains__
    """Whether a header of the reply, by its name in lower case, is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, first_byte_timeout: float, idle_timeout: float) -> None:
        self._loop = loop
        self._first_byte_timeout = first_byte_timeout
        self._idle_timeout = idle_timeout
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._listener: Callable[[], None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._spoiled = False
        self.closed = False
        self.idle = False
        self.exchanges = 0
        self.deadline = float("inf")
        """When ``expire`` is due, by the loop's clock."""
        self._reset()

    # --- what a request does ---

    def begin(
        self, head: bytes, body: bytes, on_stall: Callable[[], None], *, more: bool = False, bodiless: bool = False
    ) -> None:
        """Send a request. ``on_stall`` is called when the deadline passes because nobody reads the reply.

        ``more``: ``body`` is not all of it. ``bodiless``: the reply has none, whatever its headers say (``HEAD``).
        """
        self._reset()
        self._on_stall = on_stall
        self._sending = more
        self._bodiless = bodiless
        self.idle = False
        self.exchanges += 1
        self._begun = now = self._loop.time()
        self.deadline = now + self._first_byte_timeout
        if len(body) <= _JOIN_BELOW:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def write(self, data: bytes) -> None:
        """More of the request. Waits while the other end does not read; returns at once when it has left."""
        if self.closed:
            return
        self._transport.write(data)
        if self._writable is not None:
            await self._writable

    def finish(self) -> None:
        """That was all of the request."""
        self._sending = False

    def limit(self, first_byte_timeout: float, idle_timeout: float) -> None:
        """Other timeouts for the exchanges to come, in seconds."""
        self._first_byte_timeout = first_byte_timeout
        self._idle_timeout = idle_timeout

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Be called, from the event loop, whenever ``progress`` or ``take`` may have something new; instead of
        ``head`` and ``read``, until None is set or the connection rests."""
        self._listener = listener

    def progress(self) -> bool:
        """Whether ``status`` and ``headers`` are known and the body may follow. Raises ``UpstreamError``."""
        if self._complete or (self._headed and not self._hold):
            return True
        if self._error is not None:
            raise self._error
        return False

    def take(self) -> bytes:
        """What there is of the body now. Raises ``UpstreamError`` after the last of it, when the reply broke off."""
        if self._chunks:
            return self._take()
        if self._error is not None and not self._complete:
            raise self._error
        return b""

    async def head(self) -> None:
        """Until ``status`` and ``headers`` are known and the body may follow. Raises ``UpstreamError``."""
        while not self._complete and (not self._headed or self._hold):
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """Next bytes of the body; empty only at its end. Raises ``UpstreamError`` after the last of them."""
        while not self._chunks:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        return self._take()

    @property
    def ended(self) -> bool:
        """Nothing is left to read."""
        return self._complete and not self._chunks

    @property
    def reused(self) -> bool:
        """Whether the current exchange is not the first one: the engine may have been closing just then."""
        return self.exchanges > 1

    @property
    def reusable(self) -> bool:
        return (
            self._complete
            and self._keep_alive
            and not self._sending
            and not self._spoiled
            and not self.closed
            and not self._transport.is_closing()
            and self._transport.get_write_buffer_size() == 0
        )

    def rest(self, until: float) -> None:
        """Wait, open, for the next exchange; ``expire`` is due at ``until``."""
        self._chunks.clear()
        self._listener = None
        self.idle = True
        self.deadline = until

    def abort(self) -> None:
        """Close at once. The engine sees it and may stop what it is doing."""
        self.closed = True
        self._transport.abort()

    def expire(self) -> None:
        """The deadline has passed: nothing came, or nobody read, or nobody wanted this connection."""
        self.abort()
        if self.idle:
            return
        if self._paused or self._complete:
            self._on_stall()
        self._fail(TimedOut())

    def give_up(self) -> None:
        """The engine was withdrawn: break off what it has not begun to answer. Nothing else is disturbed."""
        if not (self.idle or self._heard or self.closed):
            self._fail(Withdrawn())
            self.abort()

    # --- what the event loop says ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.resume_writing()
        if self._headed and not self._framed and exc is None and self._error is None:
            self._complete = True  # HTTP/1.0: the body goes on until the connection ends
            self._wake()
        else:
            self._fail(Died(heard=self._heard))

    def data_received(self, data: bytes) -> None:
        if self.idle:
            self._spoiled = True
            self.abort()
            return
        now = self._loop.time()
        if not self._heard:
            self._heard = True
            self.waited = now - self._begun
        self.deadline = now + self._idle_timeout
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._spoiled = True
            self._fail(BadReply(type(error).__name__))
        if self._buffered > _PAUSE_ABOVE and not self._paused and not self.closed:
            self._paused = True
            self._transport.pause_reading()
        if self._headed and (self._complete or not self._hold):
            self._wake()

    # --- what the parser says ---

    def on_message_begin(self) -> None:
        if self._complete:
            self._spoiled = True  # a reply that nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._headed:
            return  # trailers
        name = name.lower()
        if name in _FRAMING:
            self._framed = True
        if self.passed_on(name):
            if not _UNSAFE.search(value):
                self.headers.append((name, value))
        elif name == REFUSED:
            self.refused = value
        elif name == LOAD:
            self.load = value

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        if self.status > 599:
            self._fail(BadReply(f"status {self.status}"))
            return
        self._headed = True
        self._read_headers()

    def on_body(self, body: bytes) -> None:
        if not self._spoiled:
            self._chunks.append(body)
            self._buffered += len(body)

    def on_message_complete(self) -> None:
        if not self._headed:
            self.headers = []  # of a 1xx, which announces the reply
            self._framed = False
            return
        self._keep_alive = self._parser.should_keep_alive()
        self._complete = True

    # --- parts of the above ---

    def _reset(self) -> None:
        self.status = 0
        self.headers = []
        self.refused = b""
        self.load = b""
        self.event_stream = False
        self._chunks = []
        self._buffered = 0
        self._heard = self._headed = self._framed = False
        self._hold = self._complete = self._keep_alive = False
        self._error = None

    def _read_headers(self) -> None:
        if self.status in _BODILESS:
            self.headers = [h for h in self.headers if h[0] != b"content-length"]
            self._framed = True
            return
        if self._bodiless:
            self._complete = True
            self._spoiled = True  # the parser goes on waiting for a body
            return
        encoded = False
        for name, value in self.headers:
            if name == b"content-length":
                self._hold = int(value) <= HOLD_LIMIT
            elif name == b"content-type":
                self.event_stream = value.startswith(b"text/event-stream")
            elif name == b"content-encoding":
                encoded = True
        if self.event_stream:
            self._hold = False
            self.event_stream = not encoded

    def _take(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._buffered = 0
        if self._paused:
            self._paused = False
            if not self.closed:
                self.deadline = self._loop.time() + self._idle_timeout
                self._transport.resume_reading()
        return data

    def _fail(self, error: UpstreamError) -> None:
        if self._error is None and not self._complete:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._listener is not None:
            self._listener()
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
