"""The installation's own certificate authority: who is a host of ours, who is our relay.

Everything is P-256: all TLS libraries know it. Keys and certificates travel as PEM.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

RELAY_NAME = "relay.holdfast.internal"
"""What the relay's certificate is for, wherever it listens."""
HOST_LIFETIME = timedelta(days=30)
SERVER_LIFETIME = timedelta(days=7)
_CA_LIFETIME = timedelta(days=20 * 365)
_BACKDATED = timedelta(hours=24)
"""Clocks differ."""


class NotOurs(Exception):
    """A certificate, request or key is not what it has to be; says what is wrong."""


def new_key() -> str:
    """A private key."""
    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def public_key_of(private_pem: str) -> str:
    return public_pem(load_private(private_pem).public_key())


def signing_request(private_pem: str, name: str) -> str:
    """A certificate request (PEM) for ``name``."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    request = (
        x509.CertificateSigningRequestBuilder().subject_name(subject).sign(load_private(private_pem), hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM).decode()


def key_of_request(request_pem: str) -> str:
    """The public key that a request is for. Raises NotOurs when it is damaged or not signed with that key."""
    return public_pem(_checked(request_pem).public_key())


def expires_at(certificate_pem: str) -> datetime:
    return x509.load_pem_x509_certificate(certificate_pem.encode()).not_valid_after_utc


def name_of_host(host_id: str) -> str:
    """What a host's certificate is for, wherever the host is."""
    return f"{host_id}.hosts.holdfast.internal"


def pin_of(ca_pem: str) -> str:
    """The CA's public key in 44 characters, for tokens: whoever has it can tell our relay from any other."""
    key = _ec(x509.load_pem_x509_certificate(ca_pem.encode()).public_key())
    point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    return base64.urlsafe_b64encode(point).decode()


def check_pinned(certificate_der: bytes, pin: str) -> None:
    """Raises NotOurs unless the certificate was signed by the CA with this ``pin``, is for the relay, and is valid."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), base64.urlsafe_b64decode(pin))
    except ValueError as error:
        raise NotOurs("the token carries no certificate pin, or a damaged one") from error
    certificate = x509.load_der_x509_certificate(certificate_der)
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256()))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (InvalidSignature, x509.ExtensionNotFound) as error:
        raise NotOurs("the server is not the one that the token was made for") from error
    if RELAY_NAME not in names.get_values_for_type(x509.DNSName):
        raise NotOurs("the server's certificate is not that of a relay")
    if certificate.not_valid_after_utc < datetime.now(UTC) - _BACKDATED:
        raise NotOurs("the server's certificate has expired, or this machine's clock is wrong")


@dataclass(frozen=True)
class CertificateAuthority:
    certificate_pem: str
    key_pem: str

    @classmethod
    def create(cls) -> "CertificateAuthority":
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Holdfast CA")])
        now = datetime.now(UTC)
        certificate = (
            _builder(name, name, key.public_key(), now, _CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(_pem(certificate), _private_pem(key))

    @property
    def pin(self) -> str:
        return pin_of(self.certificate_pem)

    def issue_to_host(self, request_pem: str, host_id: str) -> str:
        """A certificate for the host's key, whatever name it asked for. Raises NotOurs."""
        return self._issue(_ec(_checked(request_pem).public_key()), [name_of_host(host_id)], HOST_LIFETIME)

    def issue_to_relay(self) -> tuple[str, str]:
        """A fresh private key and its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        return _private_pem(key), self._issue(key.public_key(), [RELAY_NAME], SERVER_LIFETIME)

    def _issue(self, key: ec.EllipticCurvePublicKey, names: Sequence[str], lifetime: timedelta) -> str:
        ca = x509.load_pem_x509_certificate(self.certificate_pem.encode())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        certificate = (
            _builder(subject, ca.subject, key, datetime.now(UTC), lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(_ec(ca.public_key())), critical=False)
            .sign(load_private(self.key_pem), hashes.SHA256())
        )
        return _pem(certificate)


def load_private(pem: str) -> ec.EllipticCurvePrivateKey:
    """Raises NotOurs."""
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise NotOurs("the private key is damaged") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NotOurs("the private key is of another kind")
    return key


def public_pem(key: object) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return _ec(key).public_bytes(encoding, form).decode()


def _checked(request_pem: str) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        valid = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise NotOurs("the certificate request is damaged") from error
    if not valid:
        raise NotOurs("the certificate request was not signed with its own key")
    return request


def _ec(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NotOurs("the key must be of the kind P-256")
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
