"""A relay as a host sees it: real gRPC over TLS with a CA of its own, and scripted answers."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import grpc
from pydantic import BaseModel

from fleet import join
from fleet.access import tickets
from fleet.access.authority import CertificateAuthority, key_of_request, name_of_host, new_key, signing_request
from fleet.join import Dial, Identity, JoinAnswer, JoinRequest, JoinToken
from fleet.relay_address import RelayAddress
from worker_host.fingerprint import fingerprint

HOST = "box-1"
Context = grpc.aio.ServicerContext[bytes, bytes]


class Say(Exception):
    """An answer that is an error."""

    def __init__(self, code: grpc.StatusCode, details: str = "because", **trailing: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailing = tuple((key.replace("_", "-"), value) for key, value in trailing.items())


Answer = BaseModel | bytes | Say | Callable[[bytes], BaseModel]


class FakeRelay:
    """``script[method]`` is answered in turn, its last entry for ever."""

    def __init__(self, ca: CertificateAuthority | None = None) -> None:
        self.ca = ca or CertificateAuthority.create()
        self.script: dict[str, list[Answer]] = {join.JOIN: [self._joined]}
        self.asked: list[tuple[str, bytes]] = []
        self.passes: list[tickets.Pass] = []
        self.public_key = ""
        self.ahead_s = 0.0
        """By how much the relay's clock is ahead of ours."""
        self.tunnels: list[asyncio.Queue[Dial | None]] = []
        self.carries: dict[str, asyncio.Future[Carry]] = defaultdict(asyncio.Future)
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def address(self) -> RelayAddress:
        return RelayAddress.parse(self.url)

    @property
    def token(self) -> JoinToken:
        return JoinToken(secret="hf-join-secret", pin=self.ca.pin)

    def sent(self, method: str) -> list[bytes]:
        return [body for asked, body in self.asked if asked == method]

    def identity(self, **changes: object) -> Identity:
        """Of a host that has joined here."""
        key = new_key()
        request = signing_request(key, name_of_host(HOST))
        self.public_key = key_of_request(request)
        identity = Identity(
            host_id=HOST,
            name="box",
            server=self.url,
            machine_id=str(fingerprint()),
            credential="hf-host-x",
            private_key=key,
            certificate=self.ca.issue_to_host(request, HOST),
            ca=self.ca.certificate_pem,
            namespace="default",
            joined_at=datetime.now(UTC),
        )
        return identity.model_copy(update=changes)

    async def start(self, port: int = 0) -> None:
        key, certificate = self.ca.issue_to_relay()
        self._server = grpc.aio.server(options=[("grpc.http2.max_ping_strikes", 0), ("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers([_Handlers(self)])
        credentials = grpc.ssl_server_credentials([(key.encode(), certificate.encode())])
        self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def _joined(self, body: bytes) -> JoinAnswer:
        request = JoinRequest.model_validate_json(body)
        self.public_key = key_of_request(request.certificate_request)
        certificate = self.ca.issue_to_host(request.certificate_request, HOST)
        return JoinAnswer(host_id=HOST, ca=self.ca.certificate_pem, certificate=certificate, namespace="default")

    async def unary(self, method: str, body: bytes, context: Context) -> bytes:
        self.asked.append((method, body))
        if method != join.JOIN:
            await self._check_pass(context)
        script = self.script.get(method) or [Say(grpc.StatusCode.UNIMPLEMENTED)]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Say):
            context.set_trailing_metadata(answer.trailing)
            await context.abort(answer.code, answer.details)
        made = answer(body) if callable(answer) else answer
        if isinstance(made, bytes):
            return made
        assert isinstance(made, BaseModel)
        return made.model_dump_json().encode()

    async def _check_pass(self, context: Context) -> None:
        sent = dict(context.invocation_metadata() or ()).get(join.AUTHORIZATION, "")
        try:
            self.passes.append(
                tickets.read_pass(str(sent).removeprefix("Bearer "), self.public_key, time.time() + self.ahead_s)
            )
        except tickets.Refused as error:
            context.set_trailing_metadata(((join.TIME_HEADER, str(time.time() + self.ahead_s)),))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))

    async def hold(self, _body: bytes, context: Context) -> AsyncIterator[bytes]:
        await self._check_pass(context)
        dials: asyncio.Queue[Dial | None] = asyncio.Queue()
        self.tunnels.append(dials)
        while (dial := await dials.get()) is not None:
            yield dial.model_dump_json().encode()

    async def carry(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        await self._check_pass(context)
        dial_id = str(dict(context.invocation_metadata() or ())[join.DIAL_HEADER])
        carry = Carry(context)
        self.carries[dial_id].set_result(carry)
        try:
            await carry.over.wait()
        finally:
            carry.lost.set()


class Carry:
    """The relay's end of one connection through the tunnel."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.over = asyncio.Event()
        """Set by the test: the relay ends the call."""
        self.lost = asyncio.Event()
        """The call has ended."""

    async def send(self, data: bytes) -> None:
        await self._context.write(data)

    async def receive(self) -> bytes | None:
        """None: the call is over."""
        message = await self._context.read()
        return message if isinstance(message, bytes) else None


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, relay: FakeRelay) -> None:
        self._relay = relay

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method: str = details.method
        if method == join.TUNNEL:
            return grpc.unary_stream_rpc_method_handler(self._relay.hold)
        if method == join.CARRY:
            return grpc.stream_stream_rpc_method_handler(self._relay.carry)
        return grpc.unary_unary_rpc_method_handler(self._unary(method))

    def _unary(self, method: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def answer(body: bytes, context: Context) -> bytes:
            return await self._relay.unary(method, body, context)

        return answer
