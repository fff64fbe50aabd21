"""One attempt at one engine."""

import asyncio
from collections.abc import Callable

from api.gateway.answer import Answer
from api.gateway.call import Call
from api.gateway.destination import Destination
from api.gateway.meter import Meter
from api.gateway.metrics import Metrics
from api.gateway.prepare import Prepared
from api.gateway.series import Distribution
from api.gateway.upstream import Upstream
from api.gateway.way import HungUp
from fleet.http.connection import Connection, Died, UpstreamError, Withdrawn
from fleet.http.door import FRESH
from fleet.policy.latency import bucket
from fleet.policy.outlier import Fate, Outcome

_ANSWERED, _FAILED, _UNUSED = Outcome(Fate.ANSWERED), Outcome(Fate.FAILED), Outcome(Fate.UNUSED)
_OVER_A_NEW_ONE = FRESH + b": 1\r\n"


class Exchange:
    """Booked at its engine, which was taken from the pool, until ``settle``, which may be called again."""

    __slots__ = (
        "_blamed",
        "_gaps",
        "_last_at",
        "_loop",
        "_pool",
        "_settled",
        "_timer",
        "answer",
        "call",
        "connection",
        "destination",
        "meter",
        "outcome",
        "prepared",
        "sent_at",
        "upstream",
    )

    def __init__(self, call: Call, destination: Destination, upstream: Upstream, prepared: Prepared) -> None:
        self._loop = asyncio.get_running_loop()
        self._settled = self._blamed = False
        self._timer: asyncio.TimerHandle | None = None
        self._gaps: Distribution | None = None
        self._last_at = 0.0
        self.sent_at = 0.0
        self.call = call
        self.destination = destination
        self.upstream = upstream
        self.prepared = prepared
        self.connection: Connection | None = None
        self.outcome = _UNUSED
        call.deployment = destination.label
        call.exchange = self
        self._pool = destination.pool
        self.meter = Meter(
            prepared.operation, call.document or {}, prepared.injected, prompt_tokens=call.ask.prompt_tokens
        )
        self.answer = Answer(call, prepared, self.meter)

    @property
    def reused(self) -> bool:
        return self.connection is not None and self.connection.reused

    async def ask(self, *, fresh: bool) -> Connection:
        """Send the request; returns when the engine has begun to answer. Raises ``UpstreamError``.

        ``fresh``: over a new connection, as an old one might end without a word.
        """
        try:
            connection = await (self.upstream.connect() if fresh else self.upstream.acquire())
            self.send(connection, self.call.abandon, fresh=fresh)
            await connection.head()
            self.arrived()
        except UpstreamError as failure:
            raise self.failed(failure) from failure
        return connection

    def send(self, connection: Connection, on_stall: Callable[[], None], *, fresh: bool = False) -> None:
        """Raises ``UpstreamError``."""
        prepared, upstream = self.prepared, self.upstream
        self.connection = connection
        self.call.sent = True
        self.sent_at = self._loop.time()
        if self.call.trace is not None:
            self.call.trace.sent(self.destination.label, upstream.instance_id)
        extra = _OVER_A_NEW_ONE if fresh and upstream.may_return else b""
        head = b"%b%b%b\r\n" % (upstream.request_head(prepared.method, prepared.path), prepared.lines, extra)
        timeouts = self.call.route.spec.timeouts
        if timeouts.first_byte_s is not None or timeouts.between_bytes_s is not None:
            upstream.limit(connection, timeouts.first_byte_s, timeouts.between_bytes_s)
        if timeouts.total_s is not None:
            self._timer = self._loop.call_later(timeouts.total_s, self._expire)
        connection.begin(head, prepared.body, on_stall)

    def arrived(self) -> None:
        """The head of the answer is there. Raises ``UpstreamError`` when it is not the engine's."""
        connection = self.connection
        assert connection is not None  # noqa: S101 (it has sent the request)
        upstream = self.upstream
        upstream.check(connection)
        waited = connection.waited
        upstream.latency[bucket(waited)] += 1
        self.outcome = _ANSWERED
        if connection.load and (load := upstream.said(connection)) is not None:
            self._pool.heard(upstream, load, self._loop.time())
        if connection.event_stream:
            self._pool.first_byte(upstream, self.call.ask, waited, self._loop.time())

    def failed(self, failure: UpstreamError) -> UpstreamError:
        """Note why nothing of an answer came; what that means to the caller."""
        if self.call.trace is not None:
            self.call.trace.failed(str(failure))
        if isinstance(failure, Withdrawn):
            self.outcome = _UNUSED
            return failure
        self.upstream.failures += 1
        self.outcome = _FAILED
        if isinstance(failure, Died) and self.upstream.may_return and not failure.heard:
            # The host hung up, and has said nothing about the engine.
            hung_up = HungUp()
            hung_up.__cause__ = failure
            return hung_up
        return failure

    def blame(self) -> None:
        """The answer that was begun is a failure of the engine's. Counts once."""
        if not self._blamed:
            self._blamed = True
            self.upstream.broken += 1
            self.outcome = _FAILED

    def overloaded(self, retry_after_s: float) -> None:
        """The engine, or provider, said itself that it has too much to do."""
        self.outcome = Outcome(Fate.OVERLOADED, retry_after_s)

    def note_gap(self, metrics: Metrics) -> None:
        """Another piece of a streamed answer is passed on."""
        now = self._loop.time()
        if self._gaps is None:
            self._gaps = metrics.gaps(self.call.model, self.destination.label)
            self._last_at = self.call.first_at or now
        self._gaps.observe(now - self._last_at)
        self._last_at = now

    def settle(self) -> None:
        if self._settled:
            return
        self._settled = True
        if self._timer is not None:
            self._timer.cancel()
        upstream, connection, call = self.upstream, self.connection, self.call
        if connection is not None:
            upstream.release(connection)
        self._pool.give_back(upstream, call.ask, self.outcome, self._loop.time())

    def _expire(self) -> None:
        if self.connection is not None and not self._settled:
            self.connection.expire()
