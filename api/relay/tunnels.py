"""Ways to hosts that cannot be reached: each keeps one call open, and dials back when somebody wants to reach it."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

import grpc
import grpc.aio

from api.relay.refusal import Metrics, Refused
from fleet.join import Dial

log = logging.getLogger("holdfast.relay")

DIAL_WITHIN_S = 5.0
_WAITING_MAX = 1024
"""Dials of one host that have not been answered yet."""

CarryContext = grpc.aio.ServicerContext[bytes, bytes]


class NoTunnel(Exception):
    """The host holds none here."""


class NotDialled(Exception):
    """The host did not dial back in time."""


@dataclass(eq=False)
class _Tunnel:
    dials: asyncio.Queue[Dial | None] = field(default_factory=lambda: asyncio.Queue(_WAITING_MAX))


@dataclass(frozen=True, eq=False)
class HostEnd:
    """A host has dialled back: its call."""

    context: CarryContext
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when whoever asked for it needs it no more."""
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the call has ended, whoever ended it."""

    async def read(self) -> bytes:
        """Empty: the host sends no more."""
        message = await self.context.read()
        return message if isinstance(message, bytes) else b""


class Tunnels:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._open: dict[str, _Tunnel] = {}
        self._waiting: dict[str, tuple[str, asyncio.Future[HostEnd]]] = {}
        """By dial: the host that was asked, and who waits for it."""
        self._opened: set[str] = set()
        self.changed = asyncio.Event()
        """Set when a host opened or closed its tunnel."""

    @property
    def hosts(self) -> frozenset[str]:
        """Those that hold a tunnel here."""
        return frozenset(self._open)

    def opened(self) -> set[str]:
        """Those whose tunnel was opened since this was last asked."""
        opened, self._opened = self._opened, set()
        return opened

    def opened_anew(self, hosts: set[str]) -> None:
        """Say them again next time."""
        self._opened |= hosts

    async def hold(self, host_id: str) -> AsyncGenerator[Dial, None]:
        """What the host is to dial, for as long as it listens. Opening another one ends it: the newest counts."""
        tunnel = _Tunnel()
        self._end(self._open.get(host_id))
        self._open[host_id] = tunnel
        self._opened.add(host_id)
        self._count()
        log.info("tunnel of %s is open", host_id)
        try:
            while (dial := await tunnel.dials.get()) is not None:
                yield dial
        finally:
            if self._open.get(host_id) is tunnel:
                del self._open[host_id]
                log.info("tunnel of %s is closed", host_id)
            self._count()

    def close(self, host_id: str) -> None:
        """The host is none any more."""
        self._end(self._open.get(host_id))

    @contextlib.asynccontextmanager
    async def dial(self, host_id: str) -> AsyncIterator[HostEnd]:
        """A way to the host, inside the block. Raises NoTunnel or NotDialled."""
        tunnel = self._open.get(host_id)
        if tunnel is None:
            self._metrics.dials.labels("no_tunnel").inc()
            raise NoTunnel(host_id)
        dial = Dial(id=secrets.token_hex(16))
        answer: asyncio.Future[HostEnd] = asyncio.get_running_loop().create_future()
        self._waiting[dial.id] = (host_id, answer)
        try:
            end = await self._answered(tunnel, dial, answer)
            self._metrics.dials.labels("ok").inc()
            yield end
        finally:
            del self._waiting[dial.id]
            if answer.done() and not answer.cancelled():
                answer.result().over.set()

    async def _answered(self, tunnel: _Tunnel, dial: Dial, answer: "asyncio.Future[HostEnd]") -> "HostEnd":
        try:
            tunnel.dials.put_nowait(dial)
            return await asyncio.wait_for(answer, DIAL_WITHIN_S)
        except (TimeoutError, asyncio.QueueFull) as error:
            self._metrics.dials.labels("no_answer").inc()
            raise NotDialled from error

    async def carry(self, host_id: str, dial_id: str, context: CarryContext) -> None:
        """The host's call for a dial; returns when the connection is over. Raises Refused."""
        asked, answer = self._waiting.get(dial_id, ("", None))
        if answer is None or asked != host_id or answer.done():
            raise Refused(grpc.StatusCode.NOT_FOUND, "dial", "nobody waits for this dial (any more)")
        end = HostEnd(context)
        answer.set_result(end)
        try:
            await end.over.wait()
        finally:
            end.lost.set()

    def _end(self, tunnel: _Tunnel | None) -> None:
        if tunnel is not None:
            while tunnel.dials.full():
                tunnel.dials.get_nowait()
            tunnel.dials.put_nowait(None)

    def _count(self) -> None:
        self._metrics.tunnels.set(len(self._open))
        self.changed.set()
