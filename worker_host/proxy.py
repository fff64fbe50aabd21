"""The way through the host's door to its engines: raw ASGI, streamed both ways, nothing kept.

What it answers itself carries the header ``holdfast-refused`` (``fleet.http.door``). An answer that breaks off is not
completed, which makes the web server close the client's connection.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fleet.access.tickets import Scope
from fleet.http.connection import BadReply, ConnectFailed, Connection, Died, UpstreamError
from fleet.http.dial import connect
from fleet.http.door import FRESH, LOAD, REFUSED, STATUS, Reason
from fleet.http.passage import NotPassed, Passage, UpgradeRequest, plain_answer
from fleet.inventory import EngineRef
from worker_host.engine_load import LastLook
from worker_host.guard import Guard, NotAdmitted

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

ENGINE_ADDRESS = "127.0.0.1"
"""Engines listen here and nowhere else: nobody gets to them but through this proxy."""
_KEEP_IDLE_S = 4.0
"""Engines close theirs after 5 s."""
_CONNECT_S = 3.0
_NEVER = float("inf")
"""How long an engine may take is the gateways' to say: they hang up."""

_NONE_YET = 499
"""Status, in metrics, of what has no answer when its client leaves."""

_OF_ONE_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_FOR_ENGINES = _OF_ONE_HOP | {b"authorization", b"content-length", b"cookie", b"expect", b"host", FRESH}
_NOT_FOR_CLIENTS = _OF_ONE_HOP | {b"alt-svc", b"date", b"server", b"set-cookie"}
_BODILESS_METHODS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})


def _for_clients(name: bytes) -> bool:
    return name not in _NOT_FOR_CLIENTS and not name.startswith(b"holdfast-")


class _EngineConnection(Connection):
    __slots__ = ()
    passed_on = staticmethod(_for_clients)


@dataclass(frozen=True)
class Running:
    """Where an engine listens, on loopback."""

    fence: int
    port: int
    last_look: LastLook = field(default_factory=LastLook, compare=False)


@dataclass(frozen=True)
class Load:
    requests: int
    """Begun so far."""
    in_flight: int


class EngineProxy:
    def __init__(self, guard: Guard, running: Callable[[str], Running | None], registry: CollectorRegistry) -> None:
        """``running``: the engine of an instance, if one runs here."""
        self._guard = guard
        self._running = running
        self._engines: dict[str, _Engine] = {}
        registry.register(_Collected(self._engines))

    def loads(self) -> dict[EngineRef, Load]:
        """Of the engines that were asked anything. May be called from any thread."""
        return {EngineRef(instance_id=i, fence=e.running.fence): e.load for i, e in list(self._engines.items())}

    async def serve(
        self, instance_id: str, path: bytes, scope: Mapping[str, Any], receive: Receive, send: Send
    ) -> None:
        """Ask the engine of an instance for ``path`` (as it was sent, without the query)."""
        try:
            engine = self._admit(instance_id, scope["headers"], peer_of(scope))
        except NotAdmitted as refusal:
            await refuse(send, refusal.reason, str(refusal))
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (an ASGI server calls from a task)
        await _Exchange(engine, path, scope, task).run(receive, send)

    async def hand_through(self, instance_id: str, path: bytes, request: UpgradeRequest, passage: Passage) -> None:
        """The same for a connection that is upgraded. Raises NotPassed."""
        try:
            engine = self._admit(instance_id, request.headers, request.peer)
            far = await connect(passage.far_side, ENGINE_ADDRESS, engine.running.port, timeout=_CONNECT_S)
        except NotAdmitted as refusal:
            raise NotPassed(_whole(refusal.reason, str(refusal))) from refusal
        except ConnectFailed as failure:
            raise NotPassed(_whole(Reason.UNREACHABLE, f"the engine {failure}")) from failure
        engine.in_flight += 1
        engine.requests += 1
        passage.on_end = engine.note_passage
        lines, _ = _head("GET", path, request.query, engine.host, request.headers)
        passage.begin(far, b"".join([*lines, b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n"]))

    def _admit(self, instance_id: str, headers: Headers, peer: str) -> "_Engine":
        """Raises NotAdmitted."""
        ticket = self._guard.admit(authorization_of(headers), peer, Scope.ENGINE, instance_id)
        running = self._running(instance_id)
        if running is None:
            raise NotAdmitted(Reason.GONE, f"no engine of {instance_id} runs on this host")
        if ticket.fence != running.fence:
            self._guard.note(Reason.STALE_FENCE, peer, instance_id)
            raise NotAdmitted(Reason.STALE_FENCE, f"the ticket is for fence {ticket.fence}, {running.fence} runs here")
        engine = self._engines.get(instance_id)
        if engine is None or engine.running != running:
            self._forget_the_gone()
            engine = self._engines[instance_id] = _Engine(running)
        return engine

    def _forget_the_gone(self) -> None:
        for instance_id, engine in list(self._engines.items()):
            if self._running(instance_id) != engine.running and not engine.in_flight:
                engine.close_idle()
                del self._engines[instance_id]


class _Engine:
    """One engine under one fence: its idle connections, and what went through."""

    __slots__ = (
        "_idle",
        "_loop",
        "_prune",
        "answers",
        "bytes_in",
        "bytes_out",
        "host",
        "in_flight",
        "requests",
        "running",
    )

    def __init__(self, running: Running) -> None:
        self.running = running
        self.host = b"%b:%d" % (ENGINE_ADDRESS.encode(), running.port)
        self.in_flight = self.requests = 0
        self.answers: Counter[int] = Counter()
        """By status."""
        self.bytes_in = self.bytes_out = 0
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        """The youngest last."""
        self._prune: asyncio.TimerHandle | None = None

    async def acquire(self, *, fresh: bool) -> Connection:
        """One that was not used before, if ``fresh``. Raises ConnectFailed."""
        now = self._loop.time()
        while self._idle and not fresh:
            connection = self._idle.pop()
            if not connection.closed and connection.deadline > now:
                return connection
            connection.abort()
        return await connect(self._new, ENGINE_ADDRESS, self.running.port, timeout=_CONNECT_S)

    def release(self, connection: Connection) -> None:
        if not connection.reusable:
            connection.abort()
            return
        connection.rest(self._loop.time() + _KEEP_IDLE_S)
        self._idle.append(connection)
        if self._prune is None:
            self._prune = self._loop.call_later(_KEEP_IDLE_S, self._close_old)

    @property
    def load(self) -> Load:
        return Load(self.requests, self.in_flight)

    def note_passage(self, passage: Passage) -> None:
        """It has ended."""
        self.in_flight -= 1
        self.answers[passage.status] += 1
        self.bytes_in += passage.bytes_in
        self.bytes_out += passage.bytes_out

    def close_idle(self) -> None:
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def _new(self) -> Connection:
        return _EngineConnection(self._loop, _NEVER, _NEVER)

    def _close_old(self) -> None:
        self._prune = None
        now = self._loop.time()
        for connection in self._idle:
            if connection.deadline <= now:
                connection.abort()
        self._idle = [c for c in self._idle if not c.closed]
        if self._idle:
            self._prune = self._loop.call_at(self._idle[0].deadline, self._close_old)


class _Exchange:
    """One request and its answer."""

    __slots__ = ("_connection", "_engine", "_gone", "_path", "_scope", "_status", "_task")

    def __init__(self, engine: _Engine, path: bytes, scope: Mapping[str, Any], task: "asyncio.Task[Any]") -> None:
        self._engine = engine
        self._path = path
        self._scope = scope
        self._task = task
        self._connection: Connection | None = None
        self._status = _NONE_YET
        self._gone = False

    async def run(self, receive: Receive, send: Send) -> None:
        engine = self._engine
        engine.in_flight += 1
        engine.requests += 1
        feeder: asyncio.Task[None] | None = None
        try:
            message = await receive()
            if message["type"] != "http.request":
                return
            connection = self._connection = await engine.acquire(fresh=_has(self._scope["headers"], FRESH))
            chunked = self._begin(connection, message)
            feeder = asyncio.create_task(self._feed(connection, receive, message, chunked=chunked))
            await self._answer(connection, send)
        except UpstreamError as failure:
            if self._status == _NONE_YET:
                await self._refuse(send, _reason(failure, self._connection), f"the engine {failure}")
        except asyncio.CancelledError:
            self._task.uncancel()
            if not self._gone and self._status == _NONE_YET:
                await self._refuse(send, Reason.ENDING, "this host's process ends")
        finally:
            if feeder is not None:
                feeder.cancel()
            self._settle()
            engine.in_flight -= 1
            engine.answers[self._status] += 1

    def _begin(self, connection: Connection, message: Message) -> bool:
        """Whether the rest of the body goes in chunks."""
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        scope = self._scope
        method: str = scope["method"]
        lines, length = _head(method, self._path, scope["query_string"], self._engine.host, scope["headers"])
        chunked = more and length is None
        if chunked:
            lines.append(b"transfer-encoding: chunked\r\n\r\n")
        elif length is not None:
            lines.append(b"content-length: %b\r\n\r\n" % length)
        elif body or method not in _BODILESS_METHODS:
            lines.append(b"content-length: %d\r\n\r\n" % len(body))
        else:
            lines.append(b"\r\n")
        self._engine.bytes_in += len(body)
        first = _chunk(body) if chunked and body else body
        connection.begin(b"".join(lines), first, self._abandon, more=more, bodiless=method == "HEAD")
        return chunked

    async def _feed(self, connection: Connection, receive: Receive, message: Message, *, chunked: bool) -> None:
        """The rest of the body; then wait for the client to leave."""
        while message.get("more_body", False):
            message = await receive()
            if message["type"] != "http.request":
                self._abandon()
                return
            body: bytes = message.get("body", b"")
            self._engine.bytes_in += len(body)
            if body:
                await connection.write(_chunk(body) if chunked else body)
        if chunked:
            await connection.write(b"0\r\n\r\n")
        connection.finish()
        while (await receive())["type"] != "http.disconnect":
            pass
        self._abandon()

    async def _answer(self, connection: Connection, send: Send) -> None:
        """Raises UpstreamError."""
        await connection.head()
        self._status = connection.status
        load = self._engine.running.last_look.header(self._engine.in_flight, time.monotonic())
        headers = [*connection.headers, (LOAD, load)]
        await send({"type": "http.response.start", "status": connection.status, "headers": headers})
        more = True
        while more:
            data = await connection.read()
            more = not connection.ended
            self._engine.bytes_out += len(data)
            if not more:
                self._settle()  # the next request finds the connection
            await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _refuse(self, send: Send, reason: Reason, text: str) -> None:
        self._status = STATUS[reason]
        await refuse(send, reason, text)

    def _abandon(self) -> None:
        """The client left."""
        self._gone = True
        self._task.cancel()

    def _settle(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._engine.release(connection)


def authorization_of(headers: Headers) -> bytes | None:
    for name, value in headers:
        if name == b"authorization":
            return value
    return None


def _has(headers: Headers, wanted: bytes) -> bool:
    return any(name == wanted for name, _ in headers)


def peer_of(scope: Mapping[str, Any]) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


async def refuse(send: Send, reason: Reason, text: str) -> None:
    """An answer of the door's own."""
    status, headers, body = _refusal(reason, text)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _whole(reason: Reason, text: str) -> bytes:
    """The same where there is no web server to send it."""
    status, headers, body = _refusal(reason, text)
    lines = (b"%b: %b\r\n" % header for header in headers if header[0] != b"content-length")
    return plain_answer(status, b"".join(lines), body)


def _refusal(reason: Reason, text: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    status = STATUS[reason]
    body = orjson.dumps({"title": "Turned away at the host's door", "status": status, "detail": text})
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (REFUSED, reason.value.encode()),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return status, headers, body


def _head(method: str, path: bytes, query: bytes, host: bytes, headers: Headers) -> tuple[list[bytes], bytes | None]:
    """The lines that the engine gets, and the length that the client gave; that and an empty line are to come."""
    target = b"%b?%b" % (path, query) if query else path
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method.encode(), target, host)]
    length = None
    also: set[bytes] = set()
    for name, value in headers:
        if name not in _NOT_FOR_ENGINES:
            lines.append(b"%b: %b\r\n" % (name, value))
        elif name == b"content-length":
            length = value
        elif name == b"connection":
            also |= {token.strip().lower() for token in value.split(b",")}
    if also - {b"close", b"keep-alive"}:
        lines[1:] = [line for line in lines[1:] if line.partition(b":")[0] not in also]
    return lines, length


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _reason(failure: UpstreamError, connection: Connection | None) -> Reason:
    match failure:
        case ConnectFailed():
            return Reason.UNREACHABLE
        case Died(heard=False):
            return Reason.HUNG_UP if connection is not None and connection.reused else Reason.DIED
        case BadReply():
            return Reason.BAD_REPLY
        case _:
            return Reason.BROKE_OFF


class _Collected(Collector):
    def __init__(self, engines: Mapping[str, _Engine]) -> None:
        self._engines = engines

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "holdfast_host_requests", "Requests to engines through the host's proxy", labels=["instance", "code"]
        )
        sent = CounterMetricFamily("holdfast_host_request_bytes", "Of their bodies", labels=["instance"])
        received = CounterMetricFamily("holdfast_host_response_bytes", "Of the answers' bodies", labels=["instance"])
        in_flight = GaugeMetricFamily("holdfast_host_in_flight", "Requests in engines now", labels=["instance"])
        for instance_id, engine in list(self._engines.items()):
            for status, count in sorted(engine.answers.copy().items()):
                requests.add_metric([instance_id, str(status)], count)
            sent.add_metric([instance_id], engine.bytes_in)
            received.add_metric([instance_id], engine.bytes_out)
            in_flight.add_metric([instance_id], engine.in_flight)
        yield from (requests, sent, received, in_flight)
