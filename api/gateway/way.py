"""The way to one engine: straight to its URL, or through the one port of its host."""

import asyncio
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from api.gateway.known_routes import KnownProvider
from api.gateway.options import Options
from api.gateway.table import Endpoint, Host
from fleet.access.authority import name_of_host
from fleet.access.visitor import Visitor
from fleet.http.connection import BadReply, ConnectFailed, Connection, Died, UpstreamError, Withdrawn
from fleet.http.dial import Tunnel, connect, connect_through
from fleet.http.door import Reason

_ANTHROPIC_VERSION = "2023-06-01"
_SAME_TICKET_S = 5.0
"""For so long, heads of requests are used again as they are."""
_IDENTITY = "accept-encoding: identity\r\n"
_STARTS_KEPT = 256
"""Of heads; paths of the generic proxy are without number."""


class NotLetIn(ConnectFailed):
    """The host's proxy does not take our ticket, so the engine got nothing."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"is not reached: its host refuses the gateway's ticket ({reason}); are all clocks right?")


class HungUp(Died):
    """The engine closed a connection without a word that had been used before."""

    def __init__(self) -> None:
        super().__init__(heard=False)


class HostEnds(Withdrawn):
    """The process of the engine's host ends; the engine runs on, and the next process will let us in."""


class Way(Protocol):
    keep_idle: float
    """Seconds for which a connection is kept for the next request."""
    proxied: bool
    """An open connection says nothing of the engine, and an answer may be the proxy's."""

    def head(self, method: str, path: str) -> bytes:
        """Start of a request to ``path`` (with its query), below the engine's base: ``/v1/…``. What is about the body
        and an empty line are still to come."""
        ...

    async def connect(self, make: Callable[[], Connection], timeout: float) -> Connection:
        """Raises ``ConnectFailed``."""
        ...


def way_to(endpoint: Endpoint, options: Options, visitor: Visitor | None) -> Way:
    if endpoint.provider is not None:
        return ToProvider(endpoint.provider, options)
    if endpoint.host is None:
        return Straight(endpoint.url, options)
    return ThroughHost(endpoint.host, endpoint.instance_id, endpoint.fence, options, visitor)


class Straight:
    proxied = False

    def __init__(self, url: str, options: Options) -> None:
        parts = urlsplit(url)
        self.keep_idle = options.keep_idle
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        self._name = parts.netloc.rpartition("@")[2]
        self._heads: dict[tuple[str, str], bytes] = {}

    def head(self, method: str, path: str) -> bytes:
        head = self._heads.get((method, path))
        if head is None:
            if len(self._heads) >= _STARTS_KEPT:
                self._heads.clear()
            head = self._heads[method, path] = self._new_head(method, path)
        return head

    def _new_head(self, method: str, path: str) -> bytes:
        return f"{method} {self._path}{path} HTTP/1.1\r\nhost: {self._name}\r\n{_IDENTITY}".encode()

    async def connect(self, make: Callable[[], Connection], timeout: float) -> Connection:
        return await connect(make, self._host, self._port, tls=self._tls or None, timeout=timeout)


class ToProvider(Straight):
    """Somebody else's API, with our key for it."""

    def __init__(self, provider: KnownProvider, options: Options) -> None:
        super().__init__(provider.base_url, options)
        lines = dict(provider.headers)
        if provider.kind == "anthropic":
            lines.setdefault("anthropic-version", _ANTHROPIC_VERSION)
        if provider.api_key and provider.kind == "anthropic":
            lines["x-api-key"] = provider.api_key
        elif provider.api_key:
            lines["authorization"] = f"Bearer {provider.api_key}"
        self._lines = "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    def _new_head(self, method: str, path: str) -> bytes:
        # Its base already has the version.
        path = path.removeprefix("/v1")
        lines = f"{_IDENTITY}{self._lines}"
        return f"{method} {self._path}{path} HTTP/1.1\r\nhost: {self._name}\r\n{lines}".encode("latin-1", "replace")


class ThroughHost:
    """TLS with the host, known by its certificate wherever it is, and a ticket for this engine in each request."""

    proxied = True

    def __init__(self, host: Host, instance_id: str, fence: int, options: Options, visitor: Visitor | None) -> None:
        """``visitor`` None: the installation's keys are not known, and nothing can be reached."""
        self.keep_idle = options.keep_idle_at_host
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._instance_id = instance_id
        self._fence = fence
        self._visitor = visitor
        self._name = name_of_host(host.id)
        self._heads: dict[tuple[str, str], bytes] = {}
        self._until = 0.0

    def head(self, method: str, path: str) -> bytes:
        now = self._loop.time()
        if now >= self._until or len(self._heads) >= _STARTS_KEPT:
            self._heads.clear()
            self._until = now + _SAME_TICKET_S
        head = self._heads.get((method, path))
        if head is None:
            head = self._heads[method, path] = self._new_head(method, path)
        return head

    async def connect(self, make: Callable[[], Connection], timeout: float) -> Connection:
        host = self._host
        tls = self._known_visitor().tls
        if not host.tunnel_only:
            return await connect(make, host.address, host.port, tls=tls, server_name=self._name, timeout=timeout)
        parts = urlsplit(host.tunnel_url)
        if not parts.hostname:
            raise ConnectFailed("cannot be reached: its host holds no tunnel now")
        tunnel = Tunnel((parts.hostname, parts.port or 80), host.id, self._known_visitor().tunnel(host.id))
        return await connect_through(make, tunnel, tls=tls, server_name=self._name, timeout=timeout)

    def _new_head(self, method: str, path: str) -> bytes:
        ticket = self._known_visitor().engine(self._host.id, self._instance_id, self._fence)
        return (
            f"{method} /engines/{self._instance_id}{path} HTTP/1.1\r\nhost: {self._name}\r\n"
            f"authorization: Bearer {ticket}\r\n{_IDENTITY}"
        ).encode()

    def _known_visitor(self) -> Visitor:
        if self._visitor is None:
            raise ConnectFailed("cannot be reached: the gateway has no keys for its host")
        return self._visitor


_NOTHING_THERE = (Reason.GONE, Reason.UNREACHABLE, Reason.STALE_FENCE)


def failure_behind(refused: bytes) -> UpstreamError:
    """What the proxy of a host means by an answer of its own."""
    try:
        reason = Reason(refused.decode("latin-1"))
    except ValueError:
        return BadReply("its host's proxy is of another version")
    if reason in _NOTHING_THERE:
        return ConnectFailed("cannot be reached")
    match reason:
        case Reason.DIED:
            return Died(heard=False)
        case Reason.HUNG_UP:
            return HungUp()
        case Reason.BROKE_OFF:
            return Died(heard=True)
        case Reason.BAD_REPLY:
            return BadReply("says its host's proxy")
        case Reason.ENDING:
            return HostEnds()
        case _:
            return NotLetIn(reason.value)
