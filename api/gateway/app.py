"""The gateway: an ASGI application that answers from engines.

A request takes: key, body, route, replica, answer. Nothing on that way waits for the database.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import unquote

from prometheus_client import CollectorRegistry

from api.gateway import refusals
from api.gateway.admission import Admission
from api.gateway.call import Call
from api.gateway.cold import ColdHold, Wake
from api.gateway.handed import HANDED, Handed
from api.gateway.known_routes import OpenSealed
from api.gateway.listing import Listing
from api.gateway.metrics import NO_MODEL, Metrics
from api.gateway.operation import OPERATIONS, PROXIED, PROXY, ModelIn, Operation, Shape
from api.gateway.options import Options
from api.gateway.refusals import Refusal
from api.gateway.relay import BROKEN_OFF, CLIENT_LEFT, Relay
from api.gateway.request import Asked, ClientGone, Receive, Send, read_body, read_head
from api.gateway.routing import Routing
from api.gateway.table import KnownDeployment, Refresher, RoutingTable
from api.gateway.tracing import Tracing
from api.gateway.traffic import TrafficLog
from api.gateway.usage_log import UsageLog
from api.gateway.waiting import WaitingRoom
from fleet.access.errands import gateway_tickets
from fleet.access.visitor import Visitor
from fleet.db.authority import Authority
from fleet.db.session import Database
from fleet.usage import Usage, UsageRecord

Scope = Mapping[str, Any]

Kept = Callable[[Scope, Receive, Send, str], Awaitable[int]]
"""ASGI with the id of the key that was shown; returns the status."""
_KEPT = ("/v1/files", "/v1/batches")
_LINGER = 2.0
"""Seconds for which a body that is too large is read and dropped, so that its sender gets to read why."""
_MAY_BE_OUT_OF_DATE = (401, 403, 404, 503)
"""Refusals that a table, a key or a model made a moment ago would turn into an answer."""
T = TypeVar("T")


class Gateway:
    """Raw ASGI 3, for HTTP scopes that ``operation.is_inference`` is about; other paths get a 404.

    ``start`` before the first request and ``stop`` after the last, in the same event loop.
    """

    def __init__(
        self,
        database: Database,
        *,
        keys: Callable[[], Authority] | None = None,
        options: Options | None = None,
        registry: CollectorRegistry | None = None,
        wake: Wake | None = None,
        open_sealed: OpenSealed | None = None,
        usage: UsageLog | None = None,
        kept: Kept | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """``keys``: how to get at the installation's keys (blocks, and is asked again while the database is down);
        None: engines behind hosts cannot be reached. ``registry``: where its metrics go; None: one of its own, as
        ``metrics.registry``. ``wake``: how to start a deployment without replicas; None: nobody can from here.
        ``open_sealed``: opens the keys of providers; None: those that have one are left out. ``usage``: keeps what
        requests used; None: nobody does. ``kept``: answers what is below ``/v1/files`` and ``/v1/batches``; None:
        there is nothing. ``tracing``: where spans go; None: nowhere."""
        self._keys = keys
        self.options = options or Options()
        self._routing = Routing(self.options)
        self.admission = Admission(self._routing)
        self.admission.tracing = tracing
        self._listing = Listing()
        self._traffic = TrafficLog(database, self._routing.sums, self.options.traffic_interval)
        self.metrics = Metrics(self._routing.upstreams, registry, loads=self._routing.loads)
        self._wake = wake
        self._kept = kept
        self._refresher = Refresher(
            database,
            self._adopt,
            poll_interval=self.options.poll_interval,
            reload_interval=self.options.reload_interval,
            prepare=self._read_keys,
            open_sealed=open_sealed,
        )
        self.usage = usage
        self._tasks: list[asyncio.Task[None]] = []
        self._begun = False

    @property
    def ready(self) -> bool:
        """Whether a table was loaded and is being kept fresh; without one every request gets a 503."""
        return self.admission.table is not None and not any(task.done() for task in self._tasks)

    async def start(self) -> None:
        """Load the table and keep it fresh. With the database down it goes on trying, and does not raise."""
        self._loop = asyncio.get_running_loop()
        self._begun = True
        self._cold = ColdHold(self._wake)
        self.relay = Relay(
            self.metrics,
            self.options,
            self._refresher.catch_up,
            first_event=self.first_event,
            routes=self._routing.get,
            waiting=WaitingRoom(self._refresher.catch_up, self._cold, self._deployment),
        )
        await self._refresher.refresh()
        upkeep = [self._refresher.run(), self._sweep(), self._traffic.run()]
        if self.usage is not None:
            upkeep.append(self.usage.run())
        self._tasks = [asyncio.create_task(task) for task in upkeep]

    async def refresh(self) -> None:
        """Look for changes now instead of at the next poll. Does not raise when the database is down."""
        await self._refresher.refresh()

    async def stop(self) -> None:
        """Close all connections to engines; requests still on their way break off. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._begun:
            self._cold.close()
        await self._traffic.flush()
        self._routing.close()
        if self.usage is not None and self._begun:
            self._begun = False
            await self.usage.stop()
        self.metrics.stop()
        if self.admission.tracing is not None:
            await asyncio.to_thread(self.admission.tracing.stop)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = self._loop.time()
        path: str = scope["path"]
        operation = OPERATIONS.get(path)
        if operation is not None and scope["method"] == "POST":
            await self._infer(operation, scope, receive, send, started)
        elif path.startswith(PROXY):
            await self._infer(PROXIED, scope, receive, send, started)
        elif self._kept is not None and path.startswith(_KEPT):
            code = await self._answer_kept(self._kept, scope, receive, send)
            self.metrics.finished(NO_MODEL, code, self._loop.time() - started)
        else:
            code = await self._answer_directly(path, scope, send)
            self.metrics.finished(NO_MODEL, code, self._loop.time() - started)

    def allows(self, authorization: bytes | None) -> bool:
        """Whether the value of an ``Authorization`` header carries a key that may ask models."""
        try:
            self.admission.key(authorization)
        except Refusal:
            return False
        return True

    def finished(self, call: Call, status: int) -> None:
        """A request is over, whichever path it took."""
        duration = self._loop.time() - call.started
        self.metrics.finished(call.model, status, duration)
        exchange = call.exchange
        if exchange is None or not call.sent:
            if call.trace is not None:
                call.trace.end(status, None)
            return
        usage = exchange.meter.usage(left_early=status in (CLIENT_LEFT, BROKEN_OFF))
        self.metrics.settled(
            call.model,
            call.deployment,
            call.key.id,
            status,
            usage,
            queued=call.queued_s,
            first_token=call.first_at - exchange.sent_at if call.first_at is not None else None,
        )
        if call.trace is not None:
            call.trace.end(status, usage, target=call.deployment)
        if self.usage is not None:
            self.usage.note(self._record(call, usage, status, duration))

    @staticmethod
    def _record(call: Call, usage: Usage, status: int, duration: float) -> UsageRecord:
        return UsageRecord(
            request_id=call.request_id,
            at=datetime.fromtimestamp(call.at, UTC),
            key_id=call.key.id,
            route=call.model,
            deployment=call.deployment,
            operation=call.operation.name,
            status=status,
            usage=usage,
            duration_s=duration,
            ttft_s=call.first_at - call.started if call.first_at is not None else None,
        )

    def first_event(self, call: Call) -> None:
        """The first of a streamed answer is passed on."""
        call.first_at = now = self._loop.time()
        self.metrics.first_token(call.model, now - call.started)
        if call.trace is not None:
            call.trace.first_token(now - call.started)

    # --- inference ---

    async def _infer(self, operation: Operation, scope: Scope, receive: Receive, send: Send, started: float) -> None:
        handed: Handed | None = scope.get(HANDED)
        call = handed.call if handed is not None else None
        status = CLIENT_LEFT
        try:
            if call is None:
                call = await self._admit(operation, scope, receive, started)
            call.task = asyncio.current_task()
            status = await self._relay_watched(call, receive, send, handed)
        except Refusal as refusal:
            status = refusal.status
            await self._refuse(refusal, operation.shape, call, receive, send)
        except ClientGone:
            pass
        finally:
            if call is not None:
                self.finished(call, status)
            else:
                self.metrics.finished(NO_MODEL, status, self._loop.time() - started)

    async def _admit(self, operation: Operation, scope: Scope, receive: Receive, started: float) -> Call:
        """Everything that can be wrong with a request before an engine is asked. Raises ``Refusal``."""
        headers = scope["headers"]
        head = read_head(headers)
        await self._looking_again(lambda: self.admission.key(head.authorization))
        generic = operation is PROXIED
        large = generic or operation.model_in is ModelIn.FORM
        limit = self.options.form_limit if large else self.options.body_limit
        body = await read_body(receive, head.content_length, limit)
        how: dict[str, Any] = _of_proxy(scope) if generic else {}
        return await self._looking_again(lambda: self.admission.call(operation, head, headers, body, started, **how))

    async def _looking_again(self, ask: Callable[[], T]) -> T:
        """What ``ask`` says; when it refuses for something that may just have come to be, after another look."""
        try:
            return ask()
        except Refusal as refusal:
            if refusal.status not in _MAY_BE_OUT_OF_DATE:
                raise
        await self._refresher.catch_up()
        return ask()

    async def _relay_watched(self, call: Call, receive: Receive, send: Send, handed: Handed | None) -> int:
        watcher = self._loop.create_task(_watch(receive, call))
        try:
            return await self.relay.run(call, send, handed.begun if handed is not None else None)
        except asyncio.CancelledError:
            if not call.gone or call.task is None:
                raise
            call.task.uncancel()
            return CLIENT_LEFT
        finally:
            watcher.cancel()

    async def _refuse(self, refusal: Refusal, shape: Shape, call: Call | None, receive: Receive, send: Send) -> None:
        if call is not None and call.opened:
            event = call.error_event(refusal)
            await send({"type": "http.response.body", "body": event, "more_body": False})
            return
        await _refuse(refusal, refusal.body_in(shape), receive, send)

    # --- everything else ---

    async def _answer_kept(self, kept: Kept, scope: Scope, receive: Receive, send: Send) -> int:
        """Returns the status."""
        authorization = read_head(scope["headers"]).authorization
        try:
            key, _ = await self._looking_again(lambda: self.admission.key(authorization))
        except Refusal as refusal:
            await _refuse(refusal, refusal.body, receive, send)
            return refusal.status
        return await kept(scope, receive, send, key.id)

    async def _answer_directly(self, path: str, scope: Scope, send: Send) -> int:
        """Returns the status."""
        try:
            body = await self._looking_again(lambda: self._document(path, scope))
        except Refusal as refusal:
            await _answer(send, refusal.status, refusal.body, refusal.headers)
            return refusal.status
        await _answer(send, 200, body)
        return 200

    def _document(self, path: str, scope: Scope) -> bytes:
        method: str = scope["method"]
        listing = path == "/v1/models"
        if not listing and not path.startswith("/v1/models/"):
            if path in OPERATIONS:
                raise refusals.wrong_method(method, path, "POST")
            raise refusals.unknown_url(method, path)
        if method != "GET":
            raise refusals.wrong_method(method, path, "GET")
        self.admission.key(read_head(scope["headers"]).authorization)
        return self._listing.all if listing else self._listing.one(path.removeprefix("/v1/models/"))

    # --- upkeep ---

    async def _read_keys(self) -> None:
        if self._routing.visitor is None and self._keys is not None:
            authority = await asyncio.to_thread(self._keys)
            self._routing.visitor = Visitor(authority.ca.certificate_pem, authority.tickets)
            self.admission.tickets = gateway_tickets([authority.tickets.public_key])

    def _adopt(self, table: RoutingTable) -> None:
        before = self.admission.table
        self.admission.adopt(table)
        usable = self._routing.adopt(table, self._loop.time())
        self._traffic.adopt(table.deployments.keys())
        self._listing.adopt(table)
        self._cold.adopt(table.deployments)
        for name in usable:
            self._cold.ready(name)
        if before is not None:
            for gone in before.routes.keys() - table.routes.keys():
                self.metrics.forget(gone)
            for key in {key.id for key in before.keys.values()} - {key.id for key in table.keys.values()}:
                self.metrics.forget_tenant(key)
        for name in table.routes.keys() - (before.routes.keys() if before is not None else set()):
            self.metrics.know(name)

    def _deployment(self, name: str) -> KnownDeployment | None:
        table = self.admission.table
        return table.deployments.get(name) if table is not None else None

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.options.sweep_interval)
            self._routing.sweep(self._loop.time())
            self.metrics.flush()


def _of_proxy(scope: Scope) -> dict[str, Any]:
    """``/model/<route>/<path>``: what ``Admission.call`` is to know of it. Raises ``Refusal``."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    route, slash, path = raw.partition(b"?")[0].removeprefix(PROXY.encode()).partition(b"/")
    query: bytes = scope.get("query_string", b"")
    target = "/" + path.decode("latin-1") + ("?" + query.decode("latin-1") if query else "")
    plain = target.isascii() and target.isprintable() and " " not in target and b".." not in path.split(b"/")
    if not (route and slash and plain):
        raise refusals.unknown_url(scope["method"], scope["path"])
    return {"path": target, "method": scope["method"], "asked": Asked(unquote(route.decode("latin-1")), False, None)}


async def _watch(receive: Receive, call: Call) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    call.abandon()


async def _refuse(refusal: Refusal, body: bytes, receive: Receive, send: Send) -> None:
    if not refusal.unread:
        await _answer(send, refusal.status, body, refusal.headers)
        return
    # Closing with unread bytes resets the connection, and the sender would never see the answer: finish it,
    # drop what comes for a moment, and only then let the server close.
    headers = (*refusal.headers, (b"connection", b"close"))
    await _answer(send, refusal.status, body, headers, more=True)
    try:
        async with asyncio.timeout(_LINGER):
            more = True
            while more:
                message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer(send: Send, status: int, body: bytes, headers: refusals.Headers = (), *, more: bool = False) -> None:
    start = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": more})
