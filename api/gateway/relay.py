"""Sends one request to an engine and the answer back: which engine, and what a failure leads to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from api.gateway import refusals
from api.gateway.events import EventStream, error_event
from api.gateway.metrics import Metrics
from api.gateway.options import Options
from api.gateway.request import Send
from api.gateway.route import Route
from api.gateway.upstream import Upstream
from api.gateway.way import HostEnds, HungUp, NotLetIn
from fleet.http.connection import ConnectFailed, Connection, Died, TimedOut, UpstreamError, Withdrawn
from fleet.http.door import FRESH
from fleet.policy.blame import clients_fault
from fleet.policy.latency import bucket

_log = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""In metrics only: nobody is there to get an answer."""
_BROKEN_OFF = 502
_MAY_BE_THE_CLIENTS = (500, 501)
_JUDGED_BYTES = 64 << 10
_OVER_A_NEW_ONE = FRESH + b": 1\r\n"
_MOVES = 2
"""How often a request is asked elsewhere because its engine was withdrawn."""


@dataclass(slots=True)
class Call:
    """One request on its way."""

    model: str
    path: str
    body: bytes
    forwarded: bytes
    """Header lines of the client that the engine gets."""
    route: Route
    """With at least one engine."""
    started: float
    """By the loop's clock."""
    task: "asyncio.Task[None]"
    tried: list[Upstream] = field(default_factory=list)
    """Endpoints that are not asked again."""
    resent: bool = False
    """It was sent again because a connection ended without a word."""
    hung_up: "Upstream | None" = None
    """In ``tried`` only because an old connection to it ended: asked again when nobody else can be reached."""
    away: list[Upstream] = field(default_factory=list)
    """In ``tried`` only because their hosts could not be reached."""
    patient_until: float | None = None
    """By the loop's clock; None: it did not have to wait yet."""
    moved: int = 0
    gone: bool = False
    """The client left, or does not read."""

    def abandon(self) -> None:
        """Stop whatever is being done for it, at once."""
        self.gone = True
        self.task.cancel()


class Relay:
    def __init__(self, metrics: Metrics, options: Options, look_again: Callable[[], Awaitable[None]]) -> None:
        """``look_again`` takes over what has changed in the database since the last look."""
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._options = options
        self._look_again = look_again

    async def run(self, call: Call, send: Send) -> int:
        """Answer the call; returns the status for the metrics.

        Raises ``Refusal`` only while nothing of an answer was sent. When an answer broke off it returns
        without completing it, which makes the server close the client's connection.
        """
        route = call.route
        route.budget.note_request()
        route.in_flight += 1
        try:
            while True:
                exchange = _Exchange(route.choose(call.tried, self._loop.time()))
                try:
                    connection = await exchange.ask(call)
                    return await self._pass_on(call, exchange, connection, send)
                except UpstreamError as failure:
                    await self._prepare_retry(call, exchange, failure)
                finally:
                    exchange.settle()
        finally:
            route.in_flight -= 1

    async def _prepare_retry(self, call: Call, exchange: "_Exchange", failure: UpstreamError) -> None:
        """Returns when the call may be tried again; raises the refusal when not."""
        refusal = self._refusal_after(call, exchange, failure)
        if not call.route.others(call.tried) and call.hung_up in call.tried:
            call.tried.remove(call.hung_up)
            call.hung_up = None
        if not call.route.others(call.tried):
            await self._look_again()  # an engine that took its place may be known to all but us
        if call.route.others(call.tried):
            # Those who withdrew an engine have said that it is at fault, and not the load.
            allowed = isinstance(failure, Withdrawn) or self._may_retry(call.route)
        else:
            allowed = await self._returned(call)
        if not allowed:
            raise refusal from failure
        self._metrics.retried(call.model)

    def _refusal_after(self, call: Call, exchange: "_Exchange", failure: UpstreamError) -> refusals.Refusal:
        """Note whom not to ask again; what the client is told if nobody else can be asked. Raises it if none may be."""
        refusal = refusals.engine_failed(call.model, str(failure))
        match failure:
            case ConnectFailed():
                call.tried.append(exchange.upstream)
                if not isinstance(failure, NotLetIn):
                    refusal = refusals.unreachable(call.model)
                    if exchange.upstream.may_return:
                        call.away.append(exchange.upstream)
            case TimedOut():
                raise refusals.engine_too_slow(call.model) from failure
            case Withdrawn() if call.moved < _MOVES:
                call.moved += 1
                call.tried.append(exchange.upstream)
                if isinstance(failure, HostEnds):
                    call.away.append(exchange.upstream)
            case Died(heard=False) if not call.resent:
                # Sent once more and no further: it may be this request that kills engines.
                call.resent = True
                self._leave(call, exchange, tired=exchange.reused or isinstance(failure, HungUp))
            case _:
                raise refusal from failure
        return refusal

    async def _returned(self, call: Call) -> bool:
        """Wait a moment for a host to come back; whether those that were away may be asked once more."""
        now, options, route = self._loop.time(), self._options, call.route
        if call.patient_until is None:
            call.patient_until = now + options.return_patience
        if not call.away or now >= call.patient_until or route.waiting >= options.waiting_at_most:
            return False
        route.waiting += 1
        try:
            await asyncio.sleep(options.return_interval)
            await self._look_again()
        finally:
            route.waiting -= 1
        call.tried = [upstream for upstream in call.tried if upstream not in call.away]
        call.away.clear()
        return route.others(call.tried)

    @staticmethod
    def _leave(call: Call, exchange: "_Exchange", *, tired: bool) -> None:
        """Stay away from an engine that hung up, unless it may just have been ``tired`` of an idle connection."""
        upstream = exchange.upstream
        if tired:
            upstream.close_idle()  # they are as old
            call.hung_up = upstream
        if not tired or call.route.others([*call.tried, upstream]):
            call.tried.append(upstream)

    def _may_retry(self, route: Route) -> bool:
        return route.budget.take(self._loop.time(), route.in_flight)

    async def _pass_on(self, call: Call, exchange: "_Exchange", connection: Connection, send: Send) -> int:
        status = connection.status
        begun = b""
        if status in _MAY_BE_THE_CLIENTS and not connection.event_stream:
            begun = await self._judge(exchange, connection, status)
        if status >= 500:
            exchange.blame()
        await send({"type": "http.response.start", "status": status, "headers": connection.headers})
        try:
            if begun:
                await self._finish(exchange, connection, send, begun)
                return status
            if connection.event_stream:
                await self._pass_events(call, exchange, connection, send)
            else:
                await self._pass_bytes(exchange, connection, send)
        except UpstreamError as failure:
            exchange.blame()
            _log.warning("an answer of %s broke off: the engine %s", exchange.upstream.instance_id, failure)
            if connection.event_stream:
                event = error_event(f"The engine of the model '{call.model}' {failure}.", "engine_failed")
                await send({"type": "http.response.body", "body": event, "more_body": True})
            return _BROKEN_OFF
        return status

    @staticmethod
    async def _judge(exchange: "_Exchange", connection: Connection, status: int) -> bytes:
        """The beginning of an error that is the engine's own. Raises ``Refusal`` when the request is at fault."""
        body = b""
        try:
            while not connection.ended and len(body) < _JUDGED_BYTES:
                body += await connection.read()
        except UpstreamError:
            exchange.blame()
            raise
        if (message := clients_fault(status, body)) is not None:
            raise refusals.refused_by_engine(message)
        return body

    async def _finish(self, exchange: "_Exchange", connection: Connection, send: Send, begun: bytes) -> None:
        ended = connection.ended
        if ended:
            exchange.settle()
        await send({"type": "http.response.body", "body": begun, "more_body": not ended})
        if not ended:
            await self._pass_bytes(exchange, connection, send)

    async def _pass_bytes(self, exchange: "_Exchange", connection: Connection, send: Send) -> None:
        more = True
        while more:
            data = await connection.read()
            more = not connection.ended
            if not more:
                exchange.settle()
            await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _pass_events(self, call: Call, exchange: "_Exchange", connection: Connection, send: Send) -> None:
        events = EventStream()
        more = first = True
        while more:
            data = events.feed(await connection.read())
            more = not connection.ended
            if first and data:
                first = False
                self._metrics.first_token(call.model, self._loop.time() - call.started)
            if not more:
                data += events.rest()
                exchange.settle()
            if data or not more:
                await send({"type": "http.response.body", "body": data, "more_body": more})


class _Exchange:
    """One attempt at one engine, counted as in flight until ``settle``, which may be called again."""

    __slots__ = ("_blamed", "_connection", "_settled", "upstream")

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._connection: Connection | None = None
        self._settled = self._blamed = False
        upstream.in_flight += 1

    @property
    def reused(self) -> bool:
        return self._connection is not None and self._connection.reused

    async def ask(self, call: Call) -> Connection:
        """Send the request; returns when the engine has begun to answer. Raises ``UpstreamError``."""
        upstream = self.upstream
        try:
            # A second time over a new connection: an old one might end without a word as well.
            connection = self._connection = await (upstream.connect() if call.resent else upstream.acquire())
            body = call.body
            head = b"%bcontent-length: %d\r\n%b%b\r\n" % (
                upstream.request_head(call.path),
                len(body),
                call.forwarded,
                _OVER_A_NEW_ONE if call.resent and upstream.may_return else b"",
            )
            connection.begin(head, body, call.abandon)
            try:
                await connection.head()
            except Died as failure:
                if upstream.may_return and not failure.heard:
                    raise HungUp from failure  # the host did, and has said nothing about the engine
                raise
            upstream.check(connection)
        except Withdrawn:
            raise
        except UpstreamError:
            upstream.failures += 1
            raise
        upstream.latency[bucket(connection.waited)] += 1
        return connection

    def blame(self) -> None:
        """The answer that was begun is a failure of the engine's. Counts once."""
        if not self._blamed:
            self._blamed = True
            self.upstream.broken += 1

    def settle(self) -> None:
        if self._settled:
            return
        self._settled = True
        self.upstream.in_flight -= 1
        if self._connection is not None:
            self.upstream.release(self._connection)
