"""Sends one request to an engine and the answer back: which engine, and what a failure leads to."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from api.gateway import refusals
from api.gateway.connection import ConnectFailed, Connection, Died, TimedOut, UpstreamError
from api.gateway.events import EventStream, error_event
from api.gateway.metrics import Metrics
from api.gateway.request import Send
from api.gateway.upstream import Upstream
from fleet.policy.blame import clients_fault
from fleet.policy.least_load import least_loaded
from fleet.policy.retry_budget import RetryBudget

_log = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""In metrics only: nobody is there to get an answer."""
_BROKEN_OFF = 502
_MAY_BE_THE_CLIENTS = (500, 501)
_JUDGED_BYTES = 64 << 10


@dataclass(slots=True)
class Call:
    """One request on its way."""

    model: str
    path: str
    body: bytes
    forwarded: bytes
    """Header lines of the client that the engine gets."""
    upstreams: Sequence[Upstream]
    """Not empty."""
    started: float
    """By the loop's clock."""
    task: "asyncio.Task[None]"
    tried: list[Upstream] = field(default_factory=list)
    """Endpoints that are not asked again."""
    resent: bool = False
    gone: bool = False
    """The client left, or does not read."""

    def abandon(self) -> None:
        """Stop whatever is being done for it, at once."""
        self.gone = True
        self.task.cancel()


class Relay:
    def __init__(self, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._budget = RetryBudget()
        self._turn = 0

    async def run(self, call: Call, send: Send) -> int:
        """Answer the call; returns the status for the metrics.

        Raises ``Refusal`` only while nothing of an answer was sent. When an answer broke off it returns
        without completing it, which makes the server close the client's connection.
        """
        self._budget.note_request()
        while True:
            exchange = _Exchange(self._choose(call))
            try:
                connection = await exchange.ask(call)
                return await self._pass_on(call, exchange, connection, send)
            except UpstreamError as failure:
                self._prepare_retry(call, exchange, failure)
            finally:
                exchange.settle()

    def _choose(self, call: Call) -> Upstream:
        upstreams = call.upstreams
        if len(upstreams) == 1:
            return upstreams[0]
        now = self._loop.time()
        left = [u for u in upstreams if u not in call.tried] if call.tried else upstreams
        reachable = [u for u in left if u.avoided_until <= now]
        if not call.tried:
            self._turn += 1  # not for retries: with two replicas, one of them dead, it would always be first
        chosen = least_loaded(reachable or left, self._turn)
        chosen.note_trial()
        return chosen

    def _prepare_retry(self, call: Call, exchange: "_Exchange", failure: UpstreamError) -> None:
        """Returns when the call may be tried again; raises the refusal when not."""
        if isinstance(failure, ConnectFailed):
            call.tried.append(exchange.upstream)
            refusal = refusals.unreachable(call.model)
        elif isinstance(failure, TimedOut):
            raise refusals.engine_too_slow(call.model) from failure
        elif isinstance(failure, Died) and not failure.heard and not call.resent:
            # Sent once more and no further: it may be this request that kills engines.
            call.resent = True
            if exchange.reused:
                exchange.upstream.close_idle()  # they are as old; the next attempt connects anew
            else:
                call.tried.append(exchange.upstream)
            refusal = refusals.engine_failed(call.model, str(failure))
        else:
            raise refusals.engine_failed(call.model, str(failure)) from failure
        left = any(u not in call.tried for u in call.upstreams)
        if not left or not self._budget.take(self._loop.time()):
            raise refusal from failure
        self._metrics.retried(call.model)

    async def _pass_on(self, call: Call, exchange: "_Exchange", connection: Connection, send: Send) -> int:
        status = connection.status
        begun = b""
        if status in _MAY_BE_THE_CLIENTS and not connection.event_stream:
            begun = await self._judge(connection, status)
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
            _log.warning("an answer of %s broke off: the engine %s", exchange.upstream.instance_id, failure)
            if connection.event_stream:
                event = error_event(f"The engine of the model '{call.model}' {failure}.", "engine_failed")
                await send({"type": "http.response.body", "body": event, "more_body": True})
            return _BROKEN_OFF
        return status

    @staticmethod
    async def _judge(connection: Connection, status: int) -> bytes:
        """The beginning of an error that is the engine's own. Raises ``Refusal`` when the request is at fault."""
        body = b""
        while not connection.ended and len(body) < _JUDGED_BYTES:
            body += await connection.read()
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

    __slots__ = ("_connection", "_settled", "upstream")

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._connection: Connection | None = None
        self._settled = False
        upstream.in_flight += 1

    @property
    def reused(self) -> bool:
        return self._connection is not None and self._connection.reused

    async def ask(self, call: Call) -> Connection:
        """Send the request; returns when the engine has begun to answer. Raises ``UpstreamError``."""
        upstream = self.upstream
        connection = self._connection = await upstream.acquire()
        body = call.body
        head = b"%bcontent-length: %d\r\n%b\r\n" % (
            upstream.request_head(call.path),
            len(body),
            call.forwarded,
        )
        connection.begin(head, body, call.abandon)
        await connection.head()
        return connection

    def settle(self) -> None:
        if self._settled:
            return
        self._settled = True
        self.upstream.in_flight -= 1
        if self._connection is not None:
            self.upstream.release(self._connection)
