"""The relay's own connections to Temporal."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc
import grpc.aio

from fleet.settings import Settings

log = logging.getLogger("holdfast.relay")

POLL_AT_MOST_S = 75.0
"""Temporal answers a poll within 60 s; clients wait for 70."""
CALL_AT_MOST_S = 30.0
_POLLS_PER_CONNECTION = 90
"""Load balancers allow 100 calls at a time on a connection: what is beyond would wait for a poll to end."""
_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),  # Temporal takes it amiss when asked more often than each 10 s
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_PASSED_ON = frozenset({"client-name", "client-version", "supported-server-versions", "supported-features"})
"""Metadata of the host's client. Its pass is for us, and where a call goes is not for it to say."""


@dataclass(eq=False)
class _Connection:
    channel: grpc.aio.Channel
    polls: int = 0


@dataclass
class Upstream:
    """Calls to Temporal, as bytes, with our credentials and under our namespace."""

    settings: Settings
    _calls: _Connection | None = None
    _polling: list[_Connection] = field(default_factory=list)

    async def call(
        self,
        path: str,
        request: bytes,
        metadata: Iterable[tuple[str, str | bytes]],
        *,
        poll: bool,
        within_s: float | None,
    ) -> bytes:
        """The answer. Raises grpc.aio.AioRpcError as Temporal (or its absence) has it; cancelling cancels there too."""
        limit = POLL_AT_MOST_S if poll else CALL_AT_MOST_S
        connection = self._connection(poll=poll)
        connection.polls += poll
        try:
            stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.channel.unary_unary(path)
            return await stub(
                request, metadata=self._metadata(metadata), timeout=limit if within_s is None else min(within_s, limit)
            )
        finally:
            connection.polls -= poll

    async def aclose(self) -> None:
        connections = [*self._polling, *([self._calls] if self._calls else [])]
        await asyncio.gather(*(c.channel.close() for c in connections))

    def _connection(self, *, poll: bool) -> _Connection:
        if not poll:
            if self._calls is None:
                self._calls = _Connection(self._dial())
            return self._calls
        free = next((c for c in self._polling if c.polls < _POLLS_PER_CONNECTION), None)
        if free is None:
            free = _Connection(self._dial())
            self._polling.append(free)
        return free

    def _dial(self) -> grpc.aio.Channel:
        address = self.settings.effective_temporal_address
        credentials = _credentials(self.settings)
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=_OPTIONS)
        name = self.settings.temporal_tls_domain
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", name)) if name else _OPTIONS
        return grpc.aio.secure_channel(address, credentials, options=options)

    def _metadata(self, sent: Iterable[tuple[str, str | bytes]]) -> list[tuple[str, str | bytes]]:
        kept = [(name, value) for name, value in sent if name in _PASSED_ON]
        kept.append(("temporal-namespace", self.settings.temporal_namespace))
        if self.settings.temporal_api_key is not None:
            kept.append(("authorization", f"Bearer {self.settings.temporal_api_key.get_secret_value()}"))
        return kept


def _credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """None: in the clear. The same rules as ``fleet.temporal.connect``."""
    files = (settings.temporal_tls_ca, settings.temporal_tls_key, settings.temporal_tls_cert)
    if not (settings.temporal_tls or settings.temporal_tls_domain or settings.temporal_api_key or any(files)):
        return None
    ca, key, cert = (f.read_bytes() if f else None for f in files)
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)
