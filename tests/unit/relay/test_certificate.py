"""The relay's certificate."""

import asyncio
from datetime import timedelta

import grpc.aio
import pytest
from cryptography import x509

from api.relay.certificate import RelayCertificate
from fleet.access.authority import CertificateAuthority, NotOurs, check_pinned
from fleet.relay_address import RelayAddress


async def serials(renew_after: timedelta) -> list[int]:
    ca = CertificateAuthority.create()
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", RelayCertificate(ca, renew_after).credentials())
    await server.start()
    seen = []
    for _ in range(3):
        shown = await asyncio.to_thread(RelayAddress("127.0.0.1", port).certificate)
        check_pinned(shown, ca.pin)
        with pytest.raises(NotOurs):
            check_pinned(shown, CertificateAuthority.create().pin)
        seen.append(x509.load_der_x509_certificate(shown).serial_number)
    await server.stop(None)
    return seen


async def test_it_is_made_anew_while_the_relay_runs() -> None:
    assert len(set(await serials(timedelta(0)))) == 3


async def test_it_stays_while_it_is_young() -> None:
    assert len(set(await serials(timedelta(days=2)))) == 1
