"""How a Temporal cluster of one's own is spoken to."""

from pathlib import Path

import pytest
from pydantic import SecretStr
from temporalio.service import TLSConfig

from fleet.settings import Settings
from fleet.temporal import connect


async def _tls_of(settings: Settings) -> object:
    client = await connect(settings, lazy=True)
    return client.service_client.config.tls


async def test_the_embedded_server_is_spoken_to_in_clear() -> None:
    assert await _tls_of(Settings()) is False


async def test_an_api_key_is_never_sent_in_clear() -> None:
    settings = Settings(temporal_address="cluster:7233", temporal_api_key=SecretStr("k"))
    assert await _tls_of(settings) is True


async def test_certificates_are_read_from_their_files(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_bytes(name.encode())
    settings = Settings(
        temporal_address="cluster:7233",
        temporal_tls_ca=tmp_path / "ca",
        temporal_tls_cert=tmp_path / "cert",
        temporal_tls_key=tmp_path / "key",
        temporal_tls_domain="cluster.example",
    )
    tls = await _tls_of(settings)
    assert isinstance(tls, TLSConfig)
    assert (tls.server_root_ca_cert, tls.client_cert, tls.client_private_key) == (b"ca", b"cert", b"key")
    assert tls.domain == "cluster.example"


async def test_the_address_and_namespace_are_those_that_were_set() -> None:
    client = await connect(Settings(temporal_address="cluster:7233", temporal_namespace="models"), lazy=True)
    assert client.service_client.config.target_host == "cluster:7233"
    assert client.namespace == "models"


@pytest.mark.parametrize("field", ["temporal_tls", "temporal_tls_domain"])
async def test_tls_without_certificates_trusts_what_the_system_trusts(field: str) -> None:
    tls = await _tls_of(Settings(**{field: True if field == "temporal_tls" else "cluster.example"}))
    assert isinstance(tls, TLSConfig)
    assert tls.server_root_ca_cert is None
