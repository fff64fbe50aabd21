"""The engines that requests may go to: their connections, their load, and whether they can be reached."""

import asyncio
from collections.abc import Container, Iterable, Iterator

from api.gateway.options import Options
from api.gateway.standing import Standing
from api.gateway.table import Endpoint, EngineKey
from api.gateway.way import Way, failure_behind, way_to
from fleet.access.visitor import Visitor
from fleet.db.traffic import Sums
from fleet.http.connection import ConnectFailed, Connection, Withdrawn
from fleet.policy import engine_load
from fleet.policy.latency import BUCKETS
from fleet.policy.replica import EngineLoad

_REMEMBERED = 4096
"""Sums of engines that are gone."""


class Upstream:
    """One engine under one fence. Lives as long as the table names it or a request is in it."""

    __slots__ = (
        "_connections",
        "_failures",
        "_idle",
        "_loop",
        "_options",
        "_visitor",
        "_way",
        "_where",
        "adapters",
        "avoided_until",
        "broken",
        "capacity",
        "deployment",
        "engine",
        "failures",
        "fence",
        "in_flight",
        "instance_id",
        "latency",
        "launch",
        "load",
        "prefill_rate",
        "revision",
        "speed",
        "standing",
        "suspect",
        "tokens",
        "withdrawn",
    )

    def __init__(
        self, endpoint: Endpoint, options: Options, before: Sums | None = None, visitor: Visitor | None = None
    ) -> None:
        """``before``: what it had answered when it was last forgotten."""
        self._options = options
        self._visitor = visitor
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._failures = 0
        self.avoided_until = 0.0
        self.in_flight = 0
        self.instance_id = endpoint.instance_id
        self.fence = endpoint.fence
        self.deployment = endpoint.deployment
        self.launch = endpoint.launch
        self.revision = endpoint.revision
        self.engine = endpoint.engine
        self.adapters = endpoint.adapters
        self.tokens = 0
        """Booked by the requests that are in it (``fleet.policy.replica``)."""
        self.speed = 1.0
        self.prefill_rate = 0.0
        self.load: EngineLoad | None = None
        self.standing = Standing()
        self.withdrawn = False
        """The table does not know it any more, not even as draining: the engine is gone, or lost with its host."""
        self.latency = list(before.latency) if before else [0] * BUCKETS
        """Answers that were begun, by the time until their first byte."""
        self.failures = before.requests - sum(before.latency) if before else 0
        """Requests that the engine did not begin to answer, although their clients waited."""
        self.broken = before.errors - self.failures if before else 0
        """Of the answers that were begun: broken off, or an error of the engine's own."""
        self._way: Way
        self._where: tuple[object, ...] = ()
        self.update(endpoint)

    def update(self, endpoint: Endpoint) -> None:
        """Take over what the table says now. Requests that are in it stay in it."""
        self.capacity = endpoint.capacity
        self.suspect = endpoint.suspect
        where = (endpoint.host, endpoint.provider, None if endpoint.host or endpoint.provider else endpoint.url)
        if where == self._where:
            return
        self._where = where
        self._way = way_to(endpoint, self._options, self._visitor)
        self._note_reached()
        self.close_idle()

    def request_head(self, method: str, path: str) -> bytes:
        """Start of every such request; what is about the body and an empty line are still to come."""
        return self._way.head(method, path)

    @property
    def may_return(self) -> bool:
        """It is behind a host, which may be away for a moment while the engine runs on."""
        return self._way.proxied

    def check(self, connection: Connection) -> None:
        """Raises ``UpstreamError`` when it was not the engine that began to answer, but the proxy of its host."""
        if not self._way.proxied:
            return
        if not connection.refused:
            if self._failures:
                self._note_reached()
            return
        failure = failure_behind(connection.refused)
        if isinstance(failure, ConnectFailed):
            self._note_unreachable()
        raise failure

    def said(self, connection: Connection) -> EngineLoad | None:
        """What the host's proxy said of its load with this answer."""
        if not (connection.load and self._way.proxied):
            return None
        return engine_load.parse(connection.load, self._loop.time(), self.in_flight)

    def limit(self, connection: Connection, first_byte_s: float | None, between_bytes_s: float | None) -> None:
        """Other timeouts than those that are usual; None: these."""
        options = self._options
        connection.limit(first_byte_s or options.first_byte_timeout, between_bytes_s or options.idle_timeout)

    async def acquire(self) -> Connection:
        """An open connection. Raises ``ConnectFailed`` or ``Withdrawn``."""
        return self.idle() or await self.connect()

    def idle(self) -> Connection | None:
        """A connection that was used before."""
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.deadline > now:
                return connection
            connection.abort()
        return None

    def release(self, connection: Connection) -> None:
        """Keep the connection for the next request, or close it when its exchange did not come to its end."""
        if connection.reusable:
            connection.limit(self._options.first_byte_timeout, self._options.idle_timeout)
            connection.rest(self._loop.time() + self._way.keep_idle)
            self._idle.append(connection)
        else:
            connection.abort()
            self._connections.discard(connection)

    def note_trial(self) -> None:
        """A request tries an endpoint that was avoided: others stay away until it is known how that ends."""
        if self._failures >= self._options.avoid_after:
            self._avoid()

    def sweep(self, now: float) -> None:
        """Apply every timeout that is due."""
        for connection in list(self._connections):
            if not connection.closed and connection.deadline <= now:
                connection.expire()
            if connection.closed:
                self._connections.discard(connection)
        self._idle = [c for c in self._idle if not c.closed]

    def give_up(self) -> None:
        """Break off what it has not begun to answer, so that it can be asked elsewhere."""
        for connection in list(self._connections):
            connection.give_up()

    def sums(self) -> Sums:
        """What it has answered so far."""
        return Sums(
            instance_id=self.instance_id,
            fence=self.fence,
            deployment=self.deployment,
            launch=self.launch,
            requests=sum(self.latency) + self.failures,
            errors=self.failures + self.broken,
            latency=tuple(self.latency),
        )

    def close_idle(self) -> None:
        for connection in self._idle:
            connection.abort()
            self._connections.discard(connection)
        self._idle.clear()

    def close(self) -> None:
        for connection in self._connections:
            connection.abort()
        self._connections.clear()
        self._idle.clear()

    async def connect(self) -> Connection:
        """A connection that was not used before. Raises ``ConnectFailed`` or ``Withdrawn``."""
        options = self._options
        way = self._way
        try:
            connection = await way.connect(
                lambda: Connection(self._loop, options.first_byte_timeout, options.idle_timeout),
                options.connect_timeout,
            )
        except ConnectFailed:
            self._note_unreachable()
            raise
        if self.withdrawn:
            connection.abort()
            raise Withdrawn
        if not way.proxied:
            self._note_reached()
        self._connections.add(connection)
        return connection

    def _note_reached(self) -> None:
        self._failures = 0
        self.avoided_until = 0.0

    def _note_unreachable(self) -> None:
        self._failures += 1
        if self._failures >= self._options.avoid_after:
            self._avoid()

    def _avoid(self) -> None:
        options = self._options
        doublings = min(self._failures - options.avoid_after, 10)
        pause = min(options.avoid_for * 2**doublings, options.avoid_at_most)
        self.avoided_until = self._loop.time() + pause


class Upstreams:
    """All of them; a new table changes the set and leaves the counts of those that stay."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.visitor: Visitor | None = None
        """By whom hosts are reached; there before the first table that names one."""
        self._all: dict[EngineKey, Upstream] = {}
        self._named: frozenset[EngineKey] = frozenset()
        self._ended: dict[EngineKey, Sums] = {}
        """Of those that were forgotten; one that comes back under the same fence counts on from there."""

    def __iter__(self) -> Iterator[Upstream]:
        return iter(list(self._all.values()))

    def adopt(self, endpoints: Iterable[Endpoint], draining: frozenset[EngineKey]) -> dict[str, list[Upstream]]:
        """By deployment, or ``provider:<name>``, the upstreams of ``endpoints``. What is neither among them nor
        ``draining`` is gone."""
        routes: dict[str, list[Upstream]] = {}
        named = set()
        for endpoint in endpoints:
            key = (endpoint.instance_id, endpoint.fence)
            named.add(key)
            routes.setdefault(endpoint.deployment, []).append(self._get(key, endpoint))
        self._named = frozenset(named)
        for key, upstream in self._all.items():
            upstream.withdrawn = key not in named and key not in draining
        return routes

    def give_up(self, deployments: Container[str]) -> None:
        """Break off what waits for the first byte of an engine that is gone, where others could be asked instead."""
        for upstream in self._all.values():
            if upstream.withdrawn and upstream.deployment in deployments:
                upstream.give_up()

    def sums(self) -> list[Sums]:
        """What each has answered so far, those included that are gone by now."""
        return [*self._ended.values(), *(upstream.sums() for upstream in self._all.values())]

    def sweep(self, now: float) -> None:
        """Apply timeouts, and forget those that are neither named nor busy any more."""
        for key, upstream in list(self._all.items()):
            upstream.sweep(now)
            if key not in self._named and upstream.in_flight == 0:
                upstream.close()
                del self._all[key]
                self._ended[key] = upstream.sums()
        while len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def close(self) -> None:
        for upstream in self._all.values():
            upstream.close()

    def _get(self, key: EngineKey, endpoint: Endpoint) -> Upstream:
        known = self._all.get(key)
        if known is None:
            known = self._all[key] = Upstream(endpoint, self._options, self._ended.pop(key, None), self.visitor)
        else:
            known.update(endpoint)
        return known
