"""The gateway: an ASGI application for ``/v1`` that answers from engines.

A request takes: key, body, model, endpoint, relay. Nothing on that way waits for the database.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from api.gateway import refusals
from api.gateway.metrics import NO_MODEL, Metrics
from api.gateway.options import Options
from api.gateway.refusals import Refusal
from api.gateway.relay import CLIENT_LEFT, Call, Relay
from api.gateway.request import ClientGone, Receive, Send, bearer_token, model_of, read_body, read_head
from api.gateway.route import Route
from api.gateway.table import Refresher, RoutingTable
from api.gateway.traffic import TrafficLog
from api.gateway.upstream import Upstreams
from fleet.access.secrets import digest
from fleet.access.visitor import Visitor
from fleet.db.authority import Authority
from fleet.db.session import Database

Scope = Mapping[str, Any]

_INFERENCE = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
_SCOPES = frozenset({"inference", "admin"})
_LINGER = 2.0
"""Seconds for which a body that is too large is read and dropped, so that its sender gets to read why."""
_MAY_BE_OUT_OF_DATE = (401, 404)
"""Refusals that a key or a model made a moment ago would turn into an answer."""


class Gateway:
    """Raw ASGI 3, for HTTP scopes with a path under ``/v1``; other paths get a 404.

    ``start`` before the first request and ``stop`` after the last, in the same event loop.
    """

    def __init__(
        self,
        database: Database,
        *,
        keys: Callable[[], Authority] | None = None,
        options: Options | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """``keys``: how to get at the installation's keys (blocks, and is asked again while the database is down);
        None: engines behind hosts cannot be reached. ``registry``: where its metrics go; None: one of its own, as
        ``metrics.registry``."""
        self._keys = keys
        self._options = options or Options()
        self._table: RoutingTable | None = None
        self._routes: dict[str, Route] = {}
        self._models = b""
        self._upstreams = Upstreams(self._options)
        self._traffic = TrafficLog(database, self._upstreams.sums, self._options.traffic_interval)
        self.metrics = Metrics(self._upstreams, registry)
        self._refresher = Refresher(
            database,
            self._adopt,
            poll_interval=self._options.poll_interval,
            reload_interval=self._options.reload_interval,
            prepare=self._read_keys,
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether a table was loaded and is being kept fresh; without one every request gets a 503."""
        return self._table is not None and not any(task.done() for task in self._tasks)

    async def start(self) -> None:
        """Load the table and keep it fresh. With the database down it goes on trying, and does not raise."""
        self._loop = asyncio.get_running_loop()
        self._relay = Relay(self.metrics, self._options, self._refresher.catch_up)
        await self._refresher.refresh()
        upkeep = (self._refresher.run(), self._sweep(), self._traffic.run())
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
        await self._traffic.flush()
        self._upstreams.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = self._loop.time()
        path: str = scope["path"]
        if path in _INFERENCE and scope["method"] == "POST":
            model, code = await self._infer(path, scope, receive, send, started)
        else:
            model, code = NO_MODEL, await self._answer_directly(path, scope, send)
        self.metrics.finished(model, code, self._loop.time() - started)

    def allows(self, authorization: bytes | None) -> bool:
        """Whether the value of an ``Authorization`` header carries a key that may ask models."""
        try:
            self._authorise(authorization)
        except Refusal:
            return False
        return True

    # --- inference ---

    async def _infer(self, path: str, scope: Scope, receive: Receive, send: Send, started: float) -> tuple[str, int]:
        """(model, or nothing while unknown; status), for the metrics."""
        model = NO_MODEL
        try:
            call = await self._admit(path, scope, receive, started)
            model = call.model
            return model, await self._relay_watched(call, receive, send)
        except Refusal as refusal:
            await _refuse(refusal, receive, send)
            return model, refusal.status
        except ClientGone:
            return model, CLIENT_LEFT

    async def _admit(self, path: str, scope: Scope, receive: Receive, started: float) -> Call:
        """Everything that can be wrong with a request before an engine is asked. Raises ``Refusal``."""
        head = read_head(scope["headers"])
        try:
            self._authorise(head.authorization)
        except Refusal:
            await self._refresher.catch_up()
            self._authorise(head.authorization)
        body = await read_body(receive, head.content_length, self._options.body_limit)
        model = model_of(body)
        try:
            route = self._route(model)
        except Refusal:
            await self._refresher.catch_up()
            route = self._route(model)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (an ASGI server calls from a task)
        return Call(model, path, body, head.forwarded, route, started, task)

    async def _relay_watched(self, call: Call, receive: Receive, send: Send) -> int:
        watcher = self._loop.create_task(_watch(receive, call))
        try:
            return await self._relay.run(call, send)
        except asyncio.CancelledError:
            if not call.gone:
                raise
            call.task.uncancel()
            return CLIENT_LEFT
        finally:
            watcher.cancel()

    def _authorise(self, authorization: bytes | None) -> None:
        if self._table is None:
            raise refusals.no_table()
        key = self._table.keys.get(digest(bearer_token(authorization)))
        if key is None or (key.expires_at is not None and key.expired()):
            raise refusals.bad_key()
        if key.scope not in _SCOPES:
            raise refusals.wrong_scope(key.scope)

    def _route(self, model: str) -> Route:
        route = self._routes.get(model)
        if route is not None and route.upstreams:
            return route
        assert self._table is not None  # noqa: S101 (the key was found in it)
        deployment = self._table.deployments.get(model)
        if deployment is None:
            raise refusals.unknown_model(model)
        raise refusals.not_ready(model, deployment.phase, deployment.desired_replicas)

    # --- everything else ---

    async def _answer_directly(self, path: str, scope: Scope, send: Send) -> int:
        """Returns the status."""
        try:
            try:
                body = self._document(path, scope)
            except Refusal as refusal:
                if refusal.status not in _MAY_BE_OUT_OF_DATE:
                    raise
                await self._refresher.catch_up()
                body = self._document(path, scope)
        except Refusal as refusal:
            await _answer(send, refusal.status, refusal.body, refusal.headers)
            return refusal.status
        await _answer(send, 200, body)
        return 200

    def _document(self, path: str, scope: Scope) -> bytes:
        method: str = scope["method"]
        listing = path == "/v1/models"
        if not listing and not path.startswith("/v1/models/"):
            if path in _INFERENCE:
                raise refusals.wrong_method(method, path, "POST")
            raise refusals.unknown_url(method, path)
        if method != "GET":
            raise refusals.wrong_method(method, path, "GET")
        self._authorise(read_head(scope["headers"]).authorization)
        if listing:
            return self._models
        name = path.removeprefix("/v1/models/")
        assert self._table is not None  # noqa: S101 (the key was found in it)
        deployment = self._table.deployments.get(name)
        if deployment is None:
            raise refusals.unknown_model(name)
        return orjson.dumps(_model(name, deployment.created_at))

    # --- upkeep ---

    async def _read_keys(self) -> None:
        if self._upstreams.visitor is None and self._keys is not None:
            authority = await asyncio.to_thread(self._keys)
            self._upstreams.visitor = Visitor(authority.ca.certificate_pem, authority.tickets)

    def _adopt(self, table: RoutingTable) -> None:
        before = self._table
        self._table = table
        self._adopt_routes(table)
        self._traffic.adopt(table.deployments.keys())
        data = [_model(d.name, d.created_at) for d in table.deployments.values()]
        self._models = orjson.dumps({"object": "list", "data": data})
        if before is not None:
            for gone in before.deployments.keys() - table.deployments.keys():
                self.metrics.forget(gone)

    def _adopt_routes(self, table: RoutingTable) -> None:
        endpoints = (endpoint for name in table.deployments for endpoint in table.endpoints.get(name, ()))
        upstreams = self._upstreams.adopt(endpoints, table.draining)
        for name, deployment in table.deployments.items():
            self._routes.setdefault(name, Route()).update(upstreams.get(name, ()), deployment.traffic)
        for gone in self._routes.keys() - table.deployments.keys():
            self._routes.pop(gone).update((), {})  # requests on their way find nothing to be sent to again
        self._upstreams.give_up(upstreams)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._options.sweep_interval)
            self._upstreams.sweep(self._loop.time())


async def _watch(receive: Receive, call: Call) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    call.abandon()


async def _refuse(refusal: Refusal, receive: Receive, send: Send) -> None:
    if not refusal.unread:
        await _answer(send, refusal.status, refusal.body, refusal.headers)
        return
    # Closing with unread bytes resets the connection, and the sender would never see the answer: finish it,
    # drop what comes for a moment, and only then let the server close.
    headers = (*refusal.headers, (b"connection", b"close"))
    await _answer(send, refusal.status, refusal.body, headers, more=True)
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


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "holdfast"}
