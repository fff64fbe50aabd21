"""The installation's own CA: who can be told from whom, and that TLS libraries agree."""

import base64
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from fleet.access.authority import (
    HOST_LIFETIME,
    RELAY_NAME,
    CertificateAuthority,
    NotOurs,
    check_pinned,
    key_of_request,
    name_of_host,
    new_key,
    pin_of,
    public_key_of,
    signing_request,
)


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create()


def der(pem: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem)


def test_the_pin_recognises_the_relay_of_its_own_ca_only(ca: CertificateAuthority) -> None:
    _, certificate = ca.issue_to_relay()
    check_pinned(der(certificate), ca.pin)
    with pytest.raises(NotOurs, match="not the one that the token was made for"):
        check_pinned(der(certificate), CertificateAuthority.create().pin)


def test_a_hosts_certificate_is_not_taken_for_the_relays(ca: CertificateAuthority) -> None:
    certificate = ca.issue_to_host(signing_request(new_key(), "a"), "a-1")
    with pytest.raises(NotOurs, match="not that of a relay"):
        check_pinned(der(certificate), ca.pin)


@given(st.text(max_size=60))
def test_a_damaged_pin_is_said_to_be_damaged(pin: str) -> None:
    _, certificate = CertificateAuthority.create().issue_to_relay()
    with pytest.raises(NotOurs):
        check_pinned(der(certificate), pin)


def test_a_host_gets_a_certificate_for_its_id_whatever_name_it_asked_for(ca: CertificateAuthority) -> None:
    key = new_key()
    certificate = x509.load_pem_x509_certificate(ca.issue_to_host(signing_request(key, RELAY_NAME), "a-1").encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name_of_host("a-1")]
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc >= HOST_LIFETIME


def test_a_request_says_which_key_it_is_for(ca: CertificateAuthority) -> None:
    key = new_key()
    assert key_of_request(signing_request(key, "a")) == public_key_of(key)


BEGIN, END = "-----BEGIN CERTIFICATE REQUEST-----\n", "-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize("damage", ["", "nonsense", f"{BEGIN}AAAA\n{END}"])
def test_damaged_requests_are_refused(ca: CertificateAuthority, damage: str) -> None:
    with pytest.raises(NotOurs):
        ca.issue_to_host(damage, "a-1")


def test_a_request_that_somebody_changed_is_refused(ca: CertificateAuthority) -> None:
    request = x509.load_pem_x509_csr(signing_request(new_key(), "a").encode())
    raw = bytearray(request.public_bytes(Encoding.DER))
    raw[-3] ^= 1
    with pytest.raises(NotOurs):
        ca.issue_to_host(BEGIN + base64.encodebytes(bytes(raw)).decode() + END, "a-1")


def test_tls_trusts_what_the_ca_issued_under_its_name_only(ca: CertificateAuthority, tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "key").write_text(key)
    (tmp_path / "certificate").write_text(ca.issue_to_host(signing_request(key, "a"), "a-1"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    assert handshake(server, ca.certificate_pem, name_of_host("a-1")) == "ok"
    assert "Hostname mismatch" in handshake(server, ca.certificate_pem, name_of_host("b-2"))
    assert "verify failed" in handshake(server, CertificateAuthority.create().certificate_pem, name_of_host("a-1"))


def handshake(server: ssl.SSLContext, ca_pem: str, name: str) -> str:
    """``ok`` or what the client says is wrong."""
    client = ssl.create_default_context(cadata=ca_pem)
    here, there = socket.socketpair()
    other = threading.Thread(target=_serve, args=(server, there))
    other.start()
    try:
        with client.wrap_socket(here, server_hostname=name):
            return "ok"
    except ssl.SSLError as error:
        return str(error)
    finally:
        here.close()
        other.join(10)


def _serve(context: ssl.SSLContext, connection: socket.socket) -> None:
    try:
        context.wrap_socket(connection, server_side=True).close()
    except OSError:
        connection.close()


def test_the_pin_is_that_of_the_certificate_and_short(ca: CertificateAuthority) -> None:
    assert pin_of(ca.certificate_pem) == ca.pin
    assert len(ca.pin) == 44
