"""The fast path: the web server's protocol relays a request itself, without a task, while nothing needs patience.

It makes one attempt at one replica over a connection that is there. Whatever else comes up (a queue, a new connection,
a failure, an error to be looked at) goes on in the patient path (``api.gateway.relay``), with all that was done so far.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from api.gateway.call import Call
from api.gateway.exchange import Exchange
from api.gateway.handed import HANDED, Handed
from api.gateway.operation import OPERATIONS, ModelIn, Operation
from api.gateway.prepare import prepare
from api.gateway.refusals import Refusal
from api.gateway.relay import BROKEN_OFF, CLIENT_LEFT, Begun
from api.gateway.request import read_head
from fleet.http.connection import UpstreamError
from fleet.http.server import BoundedHttp

if TYPE_CHECKING:
    from api.gateway.app import Gateway

_log = logging.getLogger(__name__)

_QUICK = {path.encode(): operation for path, operation in OPERATIONS.items() if operation.model_in is ModelIn.JSON}
_BODILESS = frozenset({204, 304})


class _Nothing:
    """What the web server sets when a client leaves."""

    def set(self) -> None:
        pass


_NOTHING = _Nothing()


class QuickHttp(BoundedHttp):
    """For uvicorn's ``http``, made for one gateway by ``quick_http``."""

    gateway: ClassVar["Gateway"]
    _quick: "Quick | None" = None
    """The request that is being relayed here; at times it is ``cycle``, too."""

    def on_headers_complete(self) -> None:
        operation = _QUICK.get(self.url)
        if operation is not None and self._is_simple():
            self._unread = 0
            self._quick = self.cycle = Quick(self, operation)  # type: ignore[assignment]
            if self._retired:
                self.cycle.keep_alive = False
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        quick = self._quick
        if quick is not None and self.cycle is quick:  # type: ignore[comparison-overlap]
            self._unread = 0
            quick.body = quick.body + body if quick.body else body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        quick = self._quick
        if quick is not None and self.cycle is quick:  # type: ignore[comparison-overlap]
            self._unread = 0
            quick.go()
        else:
            super().on_message_complete()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._quick is not None:
            self._quick.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        quick, self._quick = self._quick, None
        if quick is not None:
            quick.left()
        super().connection_lost(exc)

    def _is_simple(self) -> bool:
        """Everything else is for the web server's own cycle."""
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or parser.should_upgrade():
            return False
        if self.expect_100_continue or not (self.cycle is None or self.cycle.response_complete):
            return False
        lengths = [value for name, value in self.headers if name == b"content-length"]
        limit = self.gateway.options.quick_limit
        return len(lengths) == 1 and len(lengths[0]) < 12 and lengths[0].isdigit() and int(lengths[0]) <= limit

    def done(self, quick: "Quick") -> None:
        """Its answer is complete."""
        if self._quick is quick:
            self._quick = None
        self.on_response_complete()

    def hand_over(self, quick: "Quick", handed: Handed | None) -> None:
        """Go on with the request as any web server would."""
        if self._quick is quick:
            self._quick = None
        cycle = RequestResponseCycle(
            scope=self._scope_of(quick, handed),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=quick.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        if handed is None:
            cycle.body += quick.body
        cycle.message_event.set()
        if self.cycle is quick:  # type: ignore[comparison-overlap]
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)

    def _scope_of(self, quick: "Quick", handed: Handed | None) -> Any:
        path = quick.url.decode("ascii")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": quick.headers,
            "state": self.app_state.copy(),
            "method": "POST",
            "path": path,
            "raw_path": quick.url,
            "query_string": b"",
        }
        if handed is not None:
            scope[HANDED] = handed
        return scope


class Quick:
    """One request. Looks to the web server like a cycle of its own."""

    __slots__ = (
        "_begun",
        "_call",
        "_chunked",
        "_exchange",
        "_gateway",
        "_http",
        "_operation",
        "_pending",
        "_started",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "response_complete",
        "url",
    )

    message_event = _NOTHING
    more_body = False

    def __init__(self, http: QuickHttp, operation: Operation) -> None:
        self._http = http
        self._gateway = http.gateway
        self._operation = operation
        self._started = http.loop.time()
        self._call: Call | None = None
        self._exchange: Exchange | None = None
        self._begun = self._chunked = False
        self._pending = b""
        self.url = http.url
        self.headers = http.headers
        self.keep_alive = http.parser.should_keep_alive()
        self.body = b""
        self.disconnected = self.response_complete = False

    # --- what the web server says ---

    def go(self) -> None:
        """The request is there."""
        self._guarded(self._go)

    def _go(self) -> None:
        try:
            exchange = self._attempt()
        except Refusal:
            self._hand_over(None)  # the patient path looks again before it refuses
            return
        if exchange is None:
            self._hand_over(Handed(self._call) if self._call is not None else None)
            return
        self._exchange = exchange
        connection = exchange.upstream.idle()
        if connection is None:
            self._hand_over(Handed(exchange.call, Begun(exchange, None)))
            return
        exchange.destination.pool.budget.note_request()
        connection.listen(self._progress)
        try:
            exchange.send(connection, self._stalled)
        except UpstreamError as failure:
            self._hand_over(Handed(exchange.call, Begun(exchange, failure)))

    def resume(self) -> None:
        """The client reads again."""
        if self._begun:
            self._progress()

    def left(self) -> None:
        """The client has gone."""
        exchange, call = self._exchange, self._call
        if call is None or self.response_complete:
            return
        self.response_complete = True
        call.gone = True
        if exchange is not None:
            exchange.settle()
        self._gateway.finished(call, CLIENT_LEFT)

    # --- the request ---

    def _attempt(self) -> Exchange | None:
        """None: it cannot be sent from here now. Raises ``Refusal``."""
        gateway, operation = self._gateway, self._operation
        head = read_head(self.headers)
        call = gateway.admission.call(operation, head, self.headers, self.body, self._started)
        self._call = call
        destination = call.route.choose()
        if destination is None:
            return None
        prepared = prepare(call, destination)
        upstream = destination.pool.take(call.ask, (), self._started)
        if upstream is None:
            return None
        return Exchange(call, destination, upstream, prepared)

    def _hand_over(self, handed: Handed | None) -> None:
        self._http.hand_over(self, handed)

    def _stalled(self) -> None:
        call = self._call
        if call is not None and call.task is not None:  # it was handed over
            call.abandon()
        else:
            self._http.transport.abort()

    # --- the answer ---

    def _progress(self) -> None:
        """The connection to the engine has something new."""
        self._guarded(self._look)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Whatever goes wrong, the client must not wait for ever, nor anything stay booked."""
        try:
            step()
        except Exception:  # noqa: BLE001 (logged whole; nobody above would tell the client)
            _log.exception("a request was broken off")
            self._http.transport.abort()

    def _look(self) -> None:
        exchange = self._exchange
        if exchange is None or exchange.connection is None or self.response_complete:
            return
        connection = exchange.connection
        try:
            if not self._begun:
                if not connection.progress():
                    return
                exchange.arrived()
                if connection.status >= 400 and not connection.event_stream:
                    self._to_relay(exchange, None)
                    return
                self._begin(exchange)
            self._pump(exchange)
        except UpstreamError as failure:
            if self._begun and not exchange.answer.whole:
                self._break_off(exchange, failure)
            else:
                self._to_relay(exchange, failure)

    def _to_relay(self, exchange: Exchange, failure: UpstreamError | None) -> None:
        if exchange.connection is not None:
            exchange.connection.listen(None)
        self._hand_over(Handed(exchange.call, Begun(exchange, failure)))

    def _begin(self, exchange: Exchange) -> None:
        connection = exchange.connection
        assert connection is not None  # noqa: S101 (the caller has it)
        status, headers = exchange.answer.head(
            connection.status, connection.headers, event_stream=connection.event_stream
        )
        self._begun = True
        exchange.call.status = status
        lengths = [value for name, value in headers if name == b"content-length"]
        if not lengths and exchange.answer.whole:
            self._pending = self._head(status, headers)
            return
        self._chunked = not lengths and status not in _BODILESS
        self._pending = self._head(status, headers) + (
            b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
        )

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Without its last line."""
        parts = [STATUS_LINE[status]]
        for name, value in self._http.server_state.default_headers:
            parts.append(b"%b: %b\r\n" % (name, value))
        for name, value in headers:
            parts.append(b"%b: %b\r\n" % (name, value))
        assert self._call is not None  # noqa: S101 (it was sent)
        parts.append(b"x-request-id: %b\r\n" % self._call.request_id.encode())
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        return b"".join(parts)

    def _pump(self, exchange: Exchange) -> None:
        """Pass on what is there, as long as the client takes it."""
        connection, answer = exchange.connection, exchange.answer
        assert connection is not None  # noqa: S101 (the caller has it)
        while not self._http.flow.write_paused:
            data = connection.take()
            ended = connection.ended
            if not data and not ended:
                return
            out = answer.feed(data) if data else b""
            if ended:
                out += answer.end()
                exchange.settle()
                self._end(exchange, out)
                return
            if out:
                self._write(exchange, out)

    def _write(self, exchange: Exchange, out: bytes) -> None:
        call = exchange.call
        if exchange.answer.whole:
            exchange.answer.keep(out)
            return
        if call.stream:
            if call.first_at is None:
                self._gateway.first_event(call)
            else:
                exchange.note_gap(self._gateway.metrics)
        if self._chunked:
            out = b"%b%x\r\n%b\r\n" % (self._pending, len(out), out)
        elif self._pending:
            out = self._pending + out
        self._pending = b""
        self._http.transport.write(out)

    def _end(self, exchange: Exchange, out: bytes) -> None:
        self.response_complete = True
        http, call = self._http, exchange.call
        if exchange.answer.whole:
            out = exchange.answer.kept() + out
            out = b"%bcontent-length: %d\r\n\r\n%b" % (self._pending, len(out), out)
        elif self._chunked:
            out = b"%b%x\r\n%b\r\n0\r\n\r\n" % (self._pending, len(out), out) if out else self._pending + b"0\r\n\r\n"
        else:
            out = self._pending + out
        if out:
            http.transport.write(out)
        self._gateway.finished(call, call.status)
        if not self.keep_alive:
            http.transport.close()
        http.done(self)

    def _break_off(self, exchange: Exchange, failure: UpstreamError) -> None:
        exchange.blame()
        exchange.settle()
        call, http = exchange.call, self._http
        _log.warning("an answer of %s broke off: the engine %s", exchange.upstream.instance_id, failure)
        event = exchange.answer.broken(f"The engine of the model '{call.model}' {failure}.")
        if self._chunked and event:
            http.transport.write(b"%b%x\r\n%b\r\n" % (self._pending, len(event), event))
        elif self._pending:
            http.transport.write(self._pending)
        self.response_complete = True
        self._gateway.finished(call, BROKEN_OFF)
        http.transport.close()


def quick_http(gateway: "Gateway") -> type[QuickHttp]:
    """The protocol for a web server in front of ``gateway``."""
    return type("QuickHttpOfGateway", (QuickHttp,), {"gateway": gateway})
