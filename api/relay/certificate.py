"""The relay's own certificate: made anew while it runs, long before the old one ends."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import cast

import grpc

from fleet.access.authority import SERVER_LIFETIME, CertificateAuthority

_RENEW_AFTER = SERVER_LIFETIME / 3


class RelayCertificate:
    """For new connections; those that are open keep theirs."""

    def __init__(self, ca: CertificateAuthority, renew_after: timedelta = _RENEW_AFTER) -> None:
        self._ca = ca
        self._renew_after = renew_after.total_seconds()
        self._made = time.monotonic()

    def credentials(self) -> grpc.ServerCredentials:
        first = self._make()
        # gRPC takes None for "no change"; its type stubs do not know.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch)
        return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=False)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked at each handshake, in a thread of gRPC's; None: go on with the last one."""
        if time.monotonic() - self._made < self._renew_after:
            return None
        return self._make()

    def _make(self) -> grpc.ServerCertificateConfiguration:
        self._made = time.monotonic()
        key, certificate = self._ca.issue_to_relay()
        chain = (certificate + self._ca.certificate_pem).encode()
        return grpc.ssl_server_certificate_configuration([(key.encode(), chain)])
