"""A host's credential in other hands: speaks to the relay as a host does, and as it must not."""

import uuid
from dataclasses import dataclass, field
from importlib.metadata import version

import grpc
import grpc.aio
from pydantic import BaseModel
from temporalio.client import Client

from fleet.access.authority import RELAY_NAME, new_key, signing_request
from fleet.access.secrets import digest, new_secret
from fleet.access.tickets import sign_pass
from fleet.inventory import Inventory, Registration
from fleet.join import AUTHORIZATION, JOIN, REGISTER, JoinAnswer, JoinRequest, JoinToken, Registered
from fleet.relay_address import RelayAddress, pem_of
from fleet.temporal import connect_to_relay


def join_request(token: str, name: str, key: str, secret: str, **more: str) -> JoinRequest:
    return JoinRequest(
        token=JoinToken.parse(token).secret,
        name=name,
        machine_id="v1:::0123456789abcdef",
        certificate_request=signing_request(key, name),
        credential_hash=digest(secret),
        **{"version": version("holdfast"), **more},
    )


def inventory(name: str, boot_id: str) -> Inventory:
    return Inventory(
        hostname=name,
        machine_id="v1:::0123456789abcdef",
        boot_id=boot_id,
        os="Linux",
        arch="x86_64",
        cpu_count=1,
        ram_bytes=1 << 34,
        ram_allocatable_bytes=1 << 33,
        disk_bytes=1 << 40,
        disk_free_bytes=1 << 39,
    )


@dataclass
class RawHost:
    """Joined and registered, but nobody runs there."""

    relay: str
    """URL."""
    ca: str
    name: str = "raw"
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    key: str = field(default_factory=new_key)
    secret: str = field(default_factory=lambda: new_secret("host"))
    host_id: str = ""
    namespace: str = ""

    @classmethod
    async def join(cls, relay: str, token: str, name: str = "raw") -> "RawHost":
        host = cls(relay, pem_of(RelayAddress.parse(relay).certificate()), name)
        answer = JoinAnswer.model_validate_json(
            await host.ask(JOIN, join_request(token, name, host.key, host.secret), credential="")
        )
        host.host_id, host.namespace, host.ca = answer.host_id, answer.namespace, answer.ca
        return host

    def copy(self) -> "RawHost":
        """The same disk in another machine."""
        return RawHost(
            self.relay, self.ca, self.name, str(uuid.uuid4()), self.key, self.secret, self.host_id, self.namespace
        )

    def authorization(self, now: float | None = None) -> str:
        return f"Bearer {sign_pass(self.key, self.host_id, self.boot_id, now)}"

    def channel(self) -> grpc.aio.Channel:
        options = (("grpc.ssl_target_name_override", RELAY_NAME), ("grpc.use_local_subchannel_pool", 1))
        credentials = grpc.ssl_channel_credentials(self.ca.encode())
        return grpc.aio.secure_channel(RelayAddress.parse(self.relay).target, credentials, options=options)

    async def ask(
        self, method: str, body: BaseModel | bytes, *, credential: str | None = None, timeout: float = 20
    ) -> bytes:
        """``credential``: instead of a valid pass. Raises AioRpcError."""
        credential = self.authorization() if credential is None else credential
        sent = body if isinstance(body, bytes) else body.model_dump_json().encode()
        async with self.channel() as channel:
            call = channel.unary_unary(method)
            return bytes(
                await call(sent, metadata=((AUTHORIZATION, credential),) if credential else (), timeout=timeout)
            )

    async def register(self, **changes: object) -> Registered:
        fields = {"address": "127.0.0.1", "http_port": 9, "version": version("holdfast"), "reach": "direct"}
        said = Registration.model_validate({"inventory": inventory(self.name, self.boot_id), **fields, **changes})
        return Registered.model_validate_json(await self.ask(REGISTER, said, timeout=30))

    async def temporal(self) -> Client:
        return await connect_to_relay(
            RelayAddress.parse(self.relay).target, self.namespace, self.ca, self.authorization()
        )
