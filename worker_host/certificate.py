"""The certificate that this host shows at its own port: renewed in time, without anybody noticing."""

import asyncio
import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from fleet.access.authority import expires_at, name_of_host, public_key_of, public_pem, signing_request
from fleet.join import Identity
from worker_host.control_plane import ControlPlane
from worker_host.files import write_atomically
from worker_host.pauses import jittered

log = logging.getLogger("holdfast.host")

LEFT = 1 / 3
"""Renewed when this part of its life is left."""
_LOOK_EVERY_S = 3600.0
"""A timer of days would not notice a machine that slept."""


class HostCertificate:
    def __init__(self, identity: Identity, path: Path) -> None:
        """``path``: of the host's identity, which keeps the newest certificate."""
        self._identity = identity
        self._path = path
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        """For serving; new connections get the newest certificate."""
        self._load(identity)

    async def keep(self, control_plane: ControlPlane) -> None:
        """Until cancelled. Raises Gone."""
        while True:
            if is_due(self._identity.certificate, datetime.now(UTC)):
                await self._renew(control_plane)
            await asyncio.sleep(jittered(_LOOK_EVERY_S))

    async def _renew(self, control_plane: ControlPlane) -> None:
        key = self._identity.private_key
        answer = await control_plane.renew(signing_request(key, name_of_host(self._identity.host_id)))
        if _key_of(answer.certificate) != public_key_of(key):
            log.error("the control plane sent a certificate for another key: going on with the old one")
            return
        renewed = self._identity.model_copy(update={"certificate": answer.certificate, "ca": answer.ca})
        try:
            await asyncio.to_thread(write_atomically, self._path, renewed.model_dump_json(indent=2))
            self._load(renewed)
        except OSError as error:
            log.error("cannot keep the new certificate, going on with the old one: %s", error)
            return
        self._identity = renewed
        log.info("certificate renewed, good until %s", expires_at(answer.certificate).date())

    def _load(self, identity: Identity) -> None:
        # The ssl module takes certificates from files only.
        path, wanted = self._path.with_name("certificate.pem"), identity.certificate + identity.private_key
        if not path.exists() or path.read_text() != wanted:
            write_atomically(path, wanted)
        self.context.load_cert_chain(path)


def is_due(certificate_pem: str, now: datetime) -> bool:
    """Whether less than ``LEFT`` of its life is left."""
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    life: timedelta = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return now > certificate.not_valid_after_utc - life * LEFT


def _key_of(certificate_pem: str) -> str:
    return public_pem(x509.load_pem_x509_certificate(certificate_pem.encode()).public_key())
