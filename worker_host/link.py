"""A host's one way out: calls to the relay, passes that prove who calls, and the control plane's time."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from temporalio.client import Client
from temporalio.runtime import Runtime

from fleet.access.authority import RELAY_NAME, NotOurs, pin_of
from fleet.access.tickets import PASS_S, sign_pass
from fleet.join import AUTHORIZATION, CARRY, DIAL_HEADER, TIME_HEADER, TUNNEL, Identity
from fleet.relay_address import NotTls, RelayAddress, WrongClock, check_certificate
from fleet.temporal import connect_to_relay

log = logging.getLogger("holdfast.host")

CALL_S = 10.0
_REFRESH_S = PASS_S / 10
"""How often the Temporal clients are given a new pass."""
_CLOCK_MOVED_S = 5.0
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.ssl_target_name_override", RELAY_NAME),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 5000),  # how long one attempt to connect may take
    # A link that is cut without a word is noticed within 8 s.
    ("grpc.keepalive_time_ms", 4000),
    ("grpc.keepalive_timeout_ms", 4000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

Carry = grpc.aio.StreamStreamCall[bytes, bytes]
Dials = grpc.aio.UnaryStreamCall[bytes, bytes]


class Clock:
    """The control plane's time, in seconds since 1970, as far as this machine knows it: at first, its own."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._steady = steady
        self._ahead = wall() - steady()

    def now(self) -> float:
        return self._steady() + self._ahead

    def heard(self, theirs: float, asked: float) -> float:
        """Their time, heard in answer to what was asked at ``asked`` (of ``now``). Answers by how much ours moved."""
        moved = theirs - (asked + self.now()) / 2
        self._ahead += moved
        return moved


def open_channel(address: RelayAddress, trusted: str) -> grpc.aio.Channel:
    """``trusted``: the CA, or the relay's own certificate (PEM)."""
    return grpc.aio.secure_channel(address.target, grpc.ssl_channel_credentials(trusted.encode()), options=_OPTIONS)


class Link:
    """Made inside a running event loop. One attempt per call; patience is for ``ControlPlane``."""

    def __init__(self, identity: Identity, address: RelayAddress, boot_id: str) -> None:
        self._identity = identity
        self._boot_id = boot_id
        self.address = address
        self.clock = Clock()
        self._channel = open_channel(address, identity.ca)
        self._clients: list[Client] = []
        self._pass, self._pass_until = "", 0.0

    def authorization(self) -> str:
        """A pass that is good for at least half its life."""
        now = self.clock.now()
        if now >= self._pass_until:
            token = sign_pass(self._identity.private_key, self._identity.host_id, self._boot_id, now)
            self._pass, self._pass_until = f"Bearer {token}", now + PASS_S / 2
        return self._pass

    async def ask(self, method: str, body: str, timeout_s: float = CALL_S) -> bytes:
        """Raises AioRpcError. A pass refused for the time on it is made anew, by the relay's clock, and tried again."""
        try:
            return await self._once(method, body, timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED or TIME_HEADER not in trailers(error):
                raise
        return await self._once(method, body, timeout_s)

    async def _once(self, method: str, body: str, timeout_s: float) -> bytes:
        asked = self.clock.now()
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)
        try:
            return bytes(await call(body.encode(), metadata=self._metadata(), timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            theirs = trailers(error).get(TIME_HEADER, "")
            if error.code() is grpc.StatusCode.UNAUTHENTICATED and _is_number(theirs):
                self.heard(float(theirs), asked)
                self._pass_until = 0.0
            raise

    def heard(self, theirs: float, asked: float) -> None:
        """The control plane's time came with an answer; ``asked``: our clock when we asked."""
        moved = self.clock.heard(theirs, asked)
        if abs(moved) > _CLOCK_MOVED_S:
            log.warning("our clock differs by %.0f s from the control plane's, which counts from now on", moved)
            self._pass_until = 0.0
            self._refresh()

    def dials(self) -> Dials:
        """The open line on which the relay asks for carries; waits until there is a connection."""
        call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(TUNNEL)
        return call(b"", metadata=self._metadata(), wait_for_ready=True)

    def carry(self, dial_id: str) -> Carry:
        return self._channel.stream_stream(CARRY)(metadata=(*self._metadata(), (DIAL_HEADER, dial_id)))

    async def temporal(self, *, lazy: bool = False, runtime: Runtime | None = None) -> Client:
        """A client whose calls go through the relay, with a valid pass until ``forget`` or ``aclose``.

        ``lazy``: it connects when first used. Raises RuntimeError, RPCError.
        """
        client = await connect_to_relay(
            self.address.target,
            self._identity.namespace,
            self._identity.ca,
            self.authorization(),
            lazy=lazy,
            runtime=runtime,
        )
        self._clients.append(client)
        return client

    def forget(self, client: Client) -> None:
        self._clients = [known for known in self._clients if known is not client]

    async def keep_fresh(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            self._refresh()

    def _refresh(self) -> None:
        for client in self._clients:
            client.rpc_metadata = {AUTHORIZATION: self.authorization()}

    async def trouble(self) -> str:
        """Why the relay may not have answered, for people; empty if nothing is found."""
        try:
            shown = await asyncio.to_thread(self.address.certificate)
            check_certificate(shown, pin_of(self._identity.ca))
        except NotOurs as error:
            return f"it is not the relay that this host joined ({error})"
        except (OSError, NotTls, WrongClock) as error:
            return str(error)
        return ""

    async def aclose(self) -> None:
        self._clients.clear()
        await self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return ((AUTHORIZATION, self.authorization()),)


def trailers(error: grpc.aio.AioRpcError) -> dict[str, str]:
    return {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}


def _is_number(text: str) -> bool:
    try:
        return 0 < float(text) < 1e11
    except ValueError:
        return False
