"""The connection to Temporal, the same for every process."""

import asyncio
import logging
from datetime import timedelta

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.runtime import Runtime
from temporalio.service import KeepAliveConfig, RetryConfig, RPCError, TLSConfig

from fleet.access.authority import RELAY_NAME
from fleet.join import AUTHORIZATION
from fleet.settings import Settings

log = logging.getLogger("holdfast.temporal")

KIND = SearchAttributeKey.for_keyword("HoldfastKind")
DEPLOYMENT = SearchAttributeKey.for_keyword("HoldfastDeployment")
MODEL = SearchAttributeKey.for_keyword("HoldfastModel")
HOST = SearchAttributeKey.for_keyword("HoldfastHost")
POOL = SearchAttributeKey.for_keyword("HoldfastPool")
STATE = SearchAttributeKey.for_keyword("HoldfastState")
CLOUD = SearchAttributeKey.for_keyword("HoldfastCloud")
REVISION = SearchAttributeKey.for_int("HoldfastRevision")

_TYPES = {
    "Keyword": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "Int": IndexedValueType.INDEXED_VALUE_TYPE_INT,
}


async def connect(settings: Settings, *, lazy: bool = False) -> Client:
    """``lazy`` lets a process start while Temporal is down; workers cannot be lazy."""
    return await Client.connect(
        settings.effective_temporal_address,
        namespace=settings.temporal_namespace,
        data_converter=pydantic_data_converter,
        api_key=settings.temporal_api_key.get_secret_value() if settings.temporal_api_key else None,
        tls=_tls(settings),
        lazy=lazy,
    )


async def connect_patiently(settings: Settings) -> Client:
    """For workers: wait until Temporal answers, however long it takes, and say so in the log."""
    pause = 0.2
    while True:
        try:
            return await connect(settings)
        except (RuntimeError, RPCError) as error:
            log.warning("Temporal at %s does not answer yet: %s", settings.effective_temporal_address, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)


async def connect_to_relay(
    target: str, namespace: str, ca: str, authorization: str, *, lazy: bool = False, runtime: Runtime | None = None
) -> Client:
    """For a host: Temporal, as far as the relay at ``target`` (``host:port``) lets it through.

    ``authorization`` must be renewed while the client lives: ``client.rpc_metadata``. Raises RuntimeError, RPCError.
    """
    return await Client.connect(
        target,
        namespace=namespace,
        data_converter=pydantic_data_converter,
        tls=TLSConfig(server_root_ca_cert=ca.encode(), domain=RELAY_NAME),
        # A link that is cut without a word must be noticed, and used again when it is whole, before the lease is lost.
        keep_alive_config=KeepAliveConfig(interval_millis=3000, timeout_millis=3000),
        retry_config=RetryConfig(max_interval_millis=500, max_elapsed_time_millis=4000),
        rpc_metadata={AUTHORIZATION: authorization},
        lazy=lazy,
        runtime=runtime,
    )


def _tls(settings: Settings) -> TLSConfig | bool:
    files = (settings.temporal_tls_ca, settings.temporal_tls_cert, settings.temporal_tls_key)
    if not (settings.temporal_tls or settings.temporal_tls_domain or any(files)):
        return settings.temporal_api_key is not None
    ca, cert, key = (f.read_bytes() if f else None for f in files)
    return TLSConfig(
        server_root_ca_cert=ca,
        client_cert=cert,
        client_private_key=key,
        domain=settings.temporal_tls_domain or None,
    )


async def ensure_search_attributes(client: Client, wanted: dict[str, str]) -> list[str]:
    """Register what the namespace lacks (an unregistered one would fail the start of a workflow).

    ``wanted``: name → ``Keyword`` or ``Int``. Returns the names that were added. Doing it twice is harmless.
    """
    known = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace), timeout=timedelta(seconds=10)
    )
    missing = [name for name in wanted if name not in known.custom_attributes]
    if missing:
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                namespace=client.namespace, search_attributes={name: _TYPES[wanted[name]] for name in missing}
            ),
            timeout=timedelta(seconds=10),
        )
    return missing
