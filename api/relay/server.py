"""The gRPC server behind the one port that hosts dial: what is called, by whom, and how refusals are told."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import grpc.aio
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from api.relay.authenticate import Authenticator, Caller
from api.relay.hosts import METHODS, Call, Hosts, parse
from api.relay.passing import Answered, Temporal
from api.relay.refusal import Doorbook, Refused
from api.relay.temporal_calls import KNOWN_METHODS, POLL, SERVICE
from api.relay.tunnels import Tunnels
from fleet import errors, join
from fleet.errors import HoldfastError
from fleet.join import DIAL_HEADER, REASON_HEADER, JoinRequest, Reason

log = logging.getLogger("holdfast.relay")

CALLS_PER_HOST = 1000
"""At a time; the connections through its tunnel count too."""
_MESSAGE_MAX = 8 << 20
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", _MESSAGE_MAX),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.so_reuseport", 0),  # a second relay on this port is a mistake
    # A host that vanished without a word is noticed within 10 s.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Hosts look after us in the same way.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)
_STATUS = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PreconditionFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}
_AUDITED = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
    }
)

Context = grpc.aio.ServicerContext[bytes, bytes]
Metadata = Mapping[str, str | bytes]


class Door(grpc.GenericRpcHandler):
    """Every call of every host comes in here."""

    def __init__(
        self, authenticator: Authenticator, temporal: Temporal, hosts: Hosts, tunnels: Tunnels, doorbook: Doorbook
    ) -> None:
        self._authenticator = authenticator
        self._temporal = temporal
        self._hosts = hosts
        self._tunnels = tunnels
        self._doorbook = doorbook
        self._calls: dict[str, int] = {}
        """Of each host, at the moment."""

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        path = details.method
        metadata: Metadata = dict(details.invocation_metadata or ())

        async def unary(request: bytes, context: Context) -> bytes:
            return await self._unary(path, request, metadata, context)

        async def tunnel(_: bytes, context: Context) -> None:
            await self._tunnel(metadata, context)

        async def carry(_: AsyncIterator[bytes], context: Context) -> None:
            await self._carry(metadata, context)

        # gRPC looks at what kind of function it is given.
        if path == join.TUNNEL:
            return grpc.unary_stream_rpc_method_handler(tunnel)
        if path == join.CARRY:
            return grpc.stream_stream_rpc_method_handler(carry)
        return grpc.unary_unary_rpc_method_handler(unary)

    async def _unary(self, path: str, request: bytes, metadata: Metadata, context: Context) -> bytes:
        name = _action(path)
        began = time.perf_counter()

        async def answer(guest: "_Guest") -> bytes:
            if path == join.JOIN:
                body: Any = parse(JoinRequest, request)
                return (await self._hosts.join(body, guest.peer)).model_dump_json().encode()
            caller = guest.caller = await self._authenticator.identify(metadata)
            with self._counted(caller):
                if path in METHODS:
                    return await self._of_ours(path, request, guest, caller)
                _must_be_current(caller)
                if not path.startswith(SERVICE):
                    raise Refused(grpc.StatusCode.PERMISSION_DENIED, "method", f"{path[:80]} is not for hosts")
                method = path.removeprefix(SERVICE)
                return await self._temporal.call(method, request, caller, metadata, context.time_remaining())

        result: bytes = await self._guarded(name, path, context, answer)
        if not path.endswith(POLL):
            self._doorbook.metrics.seconds.labels(name).observe(time.perf_counter() - began)
        return result

    async def _of_ours(self, path: str, request: bytes, guest: "_Guest", caller: Caller) -> bytes:
        if path != join.REGISTER:
            _must_be_current(caller)
        model, method = METHODS[path]
        result = await method(self._hosts, Call(caller, guest.peer), parse(model, request))
        return b"" if result is None else result.model_dump_json().encode()

    async def _tunnel(self, metadata: Metadata, context: Context) -> None:
        async def enter(guest: "_Guest") -> str:
            caller = guest.caller = await self._authenticator.identify(metadata)
            _must_be_current(caller)
            return caller.host.id

        host_id = await self._guarded("host.tunnel", join.TUNNEL, context, enter)
        # At once, so that the host knows that it is open.
        await context.send_initial_metadata(())
        async with aclosing(self._tunnels.hold(host_id)) as dials:
            async for dial in dials:
                await context.write(dial.model_dump_json().encode())

    async def _carry(self, metadata: Metadata, context: Context) -> None:
        async def carry(guest: "_Guest") -> None:
            caller = guest.caller = await self._authenticator.identify(metadata)
            _must_be_current(caller)
            with self._counted(caller):
                await self._tunnels.carry(caller.host.id, str(metadata.get(DIAL_HEADER, "")), context)

        await self._guarded("host.carry", join.CARRY, context, carry)

    @contextmanager
    def _counted(self, caller: Caller) -> Any:
        """One host cannot take what all need."""
        host_id = caller.host.id
        if self._calls.get(host_id, 0) >= CALLS_PER_HOST:
            text = f"{CALLS_PER_HOST} calls of this host are open already; try again later"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "calls", text)
        self._calls[host_id] = self._calls.get(host_id, 0) + 1
        try:
            yield
        finally:
            self._calls[host_id] -= 1
            if not self._calls[host_id]:
                del self._calls[host_id]

    async def _guarded(self, name: str, path: str, context: Context, work: "Callable[[_Guest], Awaitable[Any]]") -> Any:
        """What ``work`` answers; what it raises becomes a status, is counted, and is in the audit log if refused."""
        guest = _Guest(_address_of(context.peer()))
        try:
            result = await work(guest)
        except Answered as error:
            self._doorbook.metrics.calls.labels(name, error.status.name).inc()
            context.set_trailing_metadata(error.trailing)
            await context.abort(error.status, error.text)
        except (Refused, HoldfastError, SQLAlchemyError) as error:
            refused = _as_refused(error, path)
            self._doorbook.metrics.calls.labels(name, refused.status.name).inc()
            if refused.status in _AUDITED:
                host_id = guest.caller.host.id if guest.caller else ""
                self._doorbook.refused(
                    host_id=host_id, action=name, reason=refused.reason, peer=guest.peer, target=guest.target(path)
                )
            context.set_trailing_metadata(refused.trailing)
            await context.abort(refused.status, refused.text)
        except asyncio.CancelledError:
            self._doorbook.metrics.calls.labels(name, "CANCELLED").inc()
            raise
        self._doorbook.metrics.calls.labels(name, "OK").inc()
        return result


class _Guest:
    """Who is at the door, as far as we know."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.caller: Caller | None = None

    def target(self, path: str) -> str:
        return "" if _action(path) != "other" else path[:100]


def _must_be_current(caller: Caller) -> None:
    if caller.is_current:
        return
    host_id = caller.host.id
    if not caller.host.boot_id:
        raise Refused(grpc.StatusCode.UNAVAILABLE, "not_registered", f"host {host_id} has not registered yet")
    trailing = ((REASON_HEADER, Reason.OTHER_MACHINE.value),)
    text = f"another machine speaks as host {host_id}: is this one a copy of its disk? Register first"
    raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "other_machine", text, trailing=trailing)


def _as_refused(error: Exception, path: str) -> Refused:
    match error:
        case Refused(reason="unknown_host") if path.startswith(join.SERVICE):
            return Refused(grpc.StatusCode.NOT_FOUND, error.reason, error.text, trailing=error.trailing)
        case Refused(status=grpc.StatusCode.FAILED_PRECONDITION) if path.startswith(SERVICE):
            # A worker of Temporal's takes this for a mistake in what it said; it is who said it.
            return Refused(grpc.StatusCode.UNAUTHENTICATED, error.reason, error.text, trailing=error.trailing)
        case Refused():
            return error
        case HoldfastError():
            status = _STATUS.get(type(error), grpc.StatusCode.INTERNAL)
            text = ": ".join(filter(None, [error.field, error.detail]))
            text = f"{text}; {error.hint}" if error.hint else text
            return Refused(status, type(error).__name__.lower(), text)
        case DataError() | IntegrityError():
            log.error("%s: the database does not take what a host says: %s", path, error.orig)
            return Refused(grpc.StatusCode.INVALID_ARGUMENT, "unkeepable", "it cannot be kept as it was said")
        case _:
            log.warning("the database does not answer: %s", error)
            text = "the control plane's database does not answer; try again"
            return Refused(grpc.StatusCode.UNAVAILABLE, "database", text)


def _action(path: str) -> str:
    """As counters and the audit log name it: one of few, whatever is sent."""
    if path.startswith(join.SERVICE):
        known = {join.JOIN, join.TUNNEL, join.CARRY, *METHODS}
        return f"host.{path.removeprefix(join.SERVICE).lower()}" if path in known else "other"
    name = path.removeprefix(SERVICE)
    return f"temporal.{name}" if path.startswith(SERVICE) and name in KNOWN_METHODS else "other"


def _address_of(peer: str) -> str:
    """``ipv4:10.0.0.1:4711`` → ``10.0.0.1``."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0].strip("[]").replace("%5B", "").replace("%5D", "") if kind.startswith("ip") else peer


def new_server(door: Door) -> grpc.aio.Server:
    return grpc.aio.server(handlers=[door], options=_OPTIONS)
