"""Where a host finds the relay."""

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from cryptography import x509

from fleet.access.authority import RELAY_NAME, check_pinned

_DIAL_S = 5.0


class NotTls(Exception):
    """Whoever listens there does not speak TLS: it is not the relay's port."""


class WrongClock(Exception):
    """The relay's certificate is not valid at this machine's time; says what both are."""


@dataclass(frozen=True)
class RelayAddress:
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> "RelayAddress":
        """Of a URL such as ``https://relay.example:8481``. Raises ValueError with a sentence for people."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"{url!r} is no URL: {error}") from error
        if parts.scheme != "https" or not host:
            raise ValueError(f"{url!r} is no URL of a relay: that looks like https://relay.example:8481")
        return cls(host, port or 443)

    @property
    def target(self) -> str:
        """As gRPC wants it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"https://{self.target}"

    def certificate(self) -> bytes:
        """What whoever listens there shows (DER), not verified. Blocks. Raises OSError, NotTls."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        try:
            with (
                socket.create_connection((self.host, self.port), _DIAL_S) as connection,
                context.wrap_socket(connection, server_hostname=RELAY_NAME) as tls,
            ):
                shown = tls.getpeercert(binary_form=True)
        except ssl.SSLError as error:
            if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                raise NotTls(f"{self.url} does not speak TLS: it is not the port of a relay") from error
            raise
        if shown is None:
            raise OSError("it showed no certificate")
        return shown


def pem_of(certificate_der: bytes) -> str:
    return ssl.DER_cert_to_PEM_cert(certificate_der)


def check_certificate(certificate_der: bytes, pin: str, now: datetime | None = None) -> None:
    """Raises NotOurs unless it is that of the relay with this pin, and WrongClock if it is not valid now."""
    check_pinned(certificate_der, pin)
    now = now or datetime.now(UTC)
    certificate = x509.load_der_x509_certificate(certificate_der)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        raise WrongClock(
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, but the relay's certificate is good from "
            f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC: one of the two clocks is wrong"
        )
