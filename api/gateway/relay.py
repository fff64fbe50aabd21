"""Sends a request to an engine and the answer back: which engine, and what a failure leads to."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from api.gateway import refusals
from api.gateway.call import Call
from api.gateway.destination import Destination
from api.gateway.errors import Unspoken, look_at_error
from api.gateway.exchange import Exchange
from api.gateway.filters import Headers
from api.gateway.metrics import Metrics
from api.gateway.options import Options
from api.gateway.prepare import prepare
from api.gateway.refusals import Refusal
from api.gateway.request import Send
from api.gateway.route import Routes
from api.gateway.upstream import Upstream
from api.gateway.waiting import WaitingRoom
from api.gateway.way import HostEnds, HungUp, NotLetIn
from fleet.http.connection import ConnectFailed, Connection, Died, TimedOut, UpstreamError, Withdrawn

_log = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""In metrics only: nobody is there to get an answer."""
BROKEN_OFF = 502
_BUSY = frozenset({429, 502, 503})
_BAD_GATEWAY = 502
_LONGEST_REST_S = 60.0
_MOVES = 2
"""How often a request is asked elsewhere because its engine was withdrawn."""
_WHOLE_AT_MOST = 64 << 20
"""Bytes of an answer that must be read whole before it can be said in another protocol."""


class Busy(UpstreamError):
    """The engine answered 429, 502 or 503, and another may be asked."""

    def __init__(self, status: int) -> None:
        super().__init__(f"answered {status}")


@dataclass(slots=True)
class Trail:
    """What a call has tried at one destination."""

    tried: list[Upstream] = field(default_factory=list)
    """Endpoints that are not asked again."""
    resent: bool = False
    """It was sent again because a connection ended without a word."""
    hung_up: Upstream | None = None
    """In ``tried`` only because an old connection to it ended: asked again when nobody else can be reached."""
    away: list[Upstream] = field(default_factory=list)
    """In ``tried`` only because their hosts could not be reached."""
    patient_until: float | None = None
    """By the loop's clock; None: it did not have to wait yet."""
    moved: int = 0


@dataclass(slots=True)
class Begun:
    """What the fast path has done of a call before it needed patience."""

    exchange: Exchange
    failure: UpstreamError | None
    """None: the engine has answered with something that needs a closer look."""


class Relay:
    def __init__(
        self,
        metrics: Metrics,
        options: Options,
        look_again: Callable[[], Awaitable[None]],
        *,
        first_event: Callable[[Call], None],
        routes: Routes,
        waiting: WaitingRoom,
    ) -> None:
        """``look_again`` takes over what has changed in the database since the last look."""
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._options = options
        self._look_again = look_again
        self._routes = routes
        self._first_event = first_event
        self._waiting = waiting

    async def run(self, call: Call, send: Send, begun: Begun | None = None) -> int:
        """Answer the call; returns the status for the metrics.

        Raises ``Refusal`` only while nothing of an answer was sent. When an answer broke off it returns
        without completing it, which makes the server close the client's connection.
        """
        first: Refusal | None = None
        asked: set[str] = set()
        left = deque([call.route])
        while left:
            route = call.route = left.popleft()
            asked.add(route.name)
            try:
                return await self._targets(call, send, begun)
            except Refusal as refusal:
                first = first or refusal
                begun = None
                if (reason := refusal.reason) is not None:
                    left += [r for r in map(self._routes, route.fallbacks(reason)) if r and r.name not in asked]
                    asked.update(r.name for r in left)
                if left:
                    self._metrics.fell_back(call.model, left[0].name)
        assert first is not None  # noqa: S101 (the loop ended without an answer)
        raise first

    async def _targets(self, call: Call, send: Send, begun: Begun | None) -> int:
        route = call.route
        tried: list[Destination] = []
        destination = begun.exchange.destination if begun else route.choose()
        assert destination is not None  # noqa: S101 (a route has targets)
        while True:
            try:
                return await self._attempts(call, destination, send, begun)
            except Refusal as refusal:
                begun = None
                tried.append(destination)
                following = route.choose(tried) if refusal.reason == "general" else None
                if following is None:
                    raise
                destination = following

    async def _attempts(self, call: Call, destination: Destination, send: Send, begun: Begun | None) -> int:
        trail = Trail()
        if begun is None or begun.exchange.connection is None:
            destination.pool.budget.note_request()
        while True:
            exchange = begun.exchange if begun else await self._exchange(call, destination, trail, send)
            try:
                if exchange.connection is None:
                    connection = await exchange.ask(fresh=trail.resent)
                elif begun is not None and begun.failure is not None:
                    raise exchange.failed(begun.failure)
                else:
                    connection = exchange.connection
                return await self._pass_on(call, exchange, connection, trail, send)
            except Unspoken:
                continue
            except UpstreamError as failure:
                await self._prepare_retry(call, destination, trail, exchange, failure)
            finally:
                begun = None
                exchange.settle()

    async def _exchange(self, call: Call, destination: Destination, trail: Trail, send: Send) -> Exchange:
        prepared = prepare(call, destination)
        upstream = destination.pool.take(call.ask, trail.tried, self._loop.time())
        if upstream is None:
            upstream = await self._waiting.replica(call, destination, trail.tried, send)
        return Exchange(call, destination, upstream, prepared)

    # --- after a failure ---

    async def _prepare_retry(
        self, call: Call, destination: Destination, trail: Trail, exchange: Exchange, failure: UpstreamError
    ) -> None:
        """Returns when the call may be tried again; raises the refusal when not."""
        pool = destination.pool
        refusal = self._refusal_after(call, destination, trail, exchange, failure)
        if not pool.others(trail.tried) and trail.hung_up in trail.tried:
            trail.tried.remove(trail.hung_up)
            trail.hung_up = None
        if not pool.others(trail.tried):
            await self._look_again()  # an engine that took its place may be known to all but us
        if pool.others(trail.tried):
            # Those who withdrew an engine have said that it is at fault, and not the load.
            allowed = isinstance(failure, Withdrawn) or pool.may_retry(self._loop.time())
        else:
            exchange.settle()  # nothing is booked while it waits
            allowed = await self._returned(destination, trail)
        if not allowed:
            raise refusal from failure
        call.resent += 1
        self._metrics.retried(call.model)

    def _refusal_after(
        self, call: Call, destination: Destination, trail: Trail, exchange: Exchange, failure: UpstreamError
    ) -> Refusal:
        """Note whom not to ask again; what the client is told if nobody else can be asked. Raises it if none may be."""
        upstream = exchange.upstream
        refusal = refusals.engine_failed(call.model, str(failure))
        match failure:
            case ConnectFailed():
                trail.tried.append(upstream)
                if not isinstance(failure, NotLetIn):
                    refusal = refusals.unreachable(call.model)
                    if upstream.may_return:
                        trail.away.append(upstream)
            case Busy():
                trail.tried.append(upstream)
            case TimedOut():
                raise refusals.engine_too_slow(call.model) from failure
            case Withdrawn() if trail.moved < _MOVES:
                trail.moved += 1
                trail.tried.append(upstream)
                if isinstance(failure, HostEnds):
                    trail.away.append(upstream)
            case Died(heard=False) if not trail.resent:
                # Sent once more and no further: it may be this request that kills engines.
                trail.resent = True
                self._leave(destination, trail, upstream, tired=exchange.reused or isinstance(failure, HungUp))
            case _:
                raise refusal from failure
        return refusal

    async def _returned(self, destination: Destination, trail: Trail) -> bool:
        """Wait a moment for a host to come back; whether those that were away may be asked once more."""
        now, options, pool = self._loop.time(), self._options, destination.pool
        if trail.patient_until is None:
            trail.patient_until = now + options.return_patience
        if not trail.away or now >= trail.patient_until or destination.patient >= options.waiting_at_most:
            return False
        destination.patient += 1
        try:
            await asyncio.sleep(options.return_interval)
            await self._look_again()
        finally:
            destination.patient -= 1
        trail.tried = [upstream for upstream in trail.tried if upstream not in trail.away]
        trail.away.clear()
        return pool.others(trail.tried)

    @staticmethod
    def _leave(destination: Destination, trail: Trail, upstream: Upstream, *, tired: bool) -> None:
        """Stay away from an engine that hung up, unless it may just have been ``tired`` of an idle connection."""
        if tired:
            upstream.close_idle()  # they are as old
            trail.hung_up = upstream
        if not tired or destination.pool.others([*trail.tried, upstream]):
            trail.tried.append(upstream)

    # --- the answer ---

    async def _pass_on(self, call: Call, exchange: Exchange, connection: Connection, trail: Trail, send: Send) -> int:
        begun = b""
        if connection.status >= 400 and not connection.event_stream:
            begun = await self._look_at(call, exchange, connection, trail)
        answer = exchange.answer
        status, headers = answer.head(connection.status, connection.headers, event_stream=connection.event_stream)
        if call.opened and not connection.event_stream:
            raise refusals.engine_failed(call.model, f"answered {status}")  # an event of the stream that was begun
        if answer.whole:
            return await self._pass_whole(exchange, connection, send, (status, headers), begun)
        await call.open(send, status, headers)
        try:
            await self._pass_pieces(call, exchange, connection, send, begun)
        except UpstreamError as failure:
            exchange.blame()
            _log.warning("an answer of %s broke off: the engine %s", exchange.upstream.instance_id, failure)
            event = answer.broken(f"The engine of the model '{call.model}' {failure}.")
            if event:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            return BROKEN_OFF
        return status

    async def _pass_pieces(
        self, call: Call, exchange: Exchange, connection: Connection, send: Send, begun: bytes
    ) -> None:
        answer = exchange.answer
        more = first = True
        while more:
            data = answer.feed(begun or await connection.read())
            begun = b""
            more = not connection.ended
            if not more:
                data += answer.end()
                exchange.settle()
            if first and data and connection.event_stream:
                first = False
                self._first_event(call)
            elif data and connection.event_stream:
                exchange.note_gap(self._metrics)
            if data or not more:
                await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _pass_whole(
        self, exchange: Exchange, connection: Connection, send: Send, head: tuple[int, Headers], begun: bytes
    ) -> int:
        """A short answer, said in another protocol: its length is known at its end."""
        answer, call = exchange.answer, exchange.call
        status, headers = head
        parts = [answer.feed(begun)] if begun else []
        size = 0
        while not connection.ended:
            data = await connection.read()  # an UpstreamError is one before the first byte
            size += len(data)
            if size > _WHOLE_AT_MOST:
                connection.abort()
                raise refusals.engine_failed(call.model, "answered with more than can be converted")
            parts.append(answer.feed(data))
        body = b"".join(parts) + answer.end()
        exchange.settle()
        await call.open(send, status, [*headers, (b"content-length", b"%d" % len(body))])
        await send({"type": "http.response.body", "body": body, "more_body": False})
        return status

    async def _look_at(self, call: Call, exchange: Exchange, connection: Connection, trail: Trail) -> bytes:
        """The beginning of an error that is passed on. Raises what is done instead."""
        destination = exchange.destination
        if connection.status in _BUSY:
            _note_busy(exchange, connection)
            if destination.pool.others([*trail.tried, exchange.upstream]):
                connection.abort()
                raise Busy(connection.status)
        try:
            return await look_at_error(call, exchange, connection, elsewhere=self._elsewhere(call))
        except UpstreamError:
            exchange.blame()
            raise

    @staticmethod
    def _elsewhere(call: Call) -> bool:
        """Whether somebody else could be asked after an error of this engine."""
        route = call.route
        return len(route.destinations) > 1 or bool(route.spec.fallbacks.general)


def _note_busy(exchange: Exchange, connection: Connection) -> None:
    """429 is no failure of the engine's, and 502 says nothing of its load; 503 is both."""
    if connection.status >= 500:
        exchange.blame()
    if connection.status != _BAD_GATEWAY:
        after = next((value for name, value in connection.headers if name == b"retry-after"), b"")
        exchange.overloaded(min(float(after), _LONGEST_REST_S) if after.isdigit() else 0.0)
