"""Sealing secret values, so that what travels through Temporal can be read only by whom it is addressed to.

The control plane seals with its master key. Before a value goes to a host it is opened and sealed again with a key
that only that host and the control plane can derive from the host's credential.
"""

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fleet.errors import InvalidInput

_PREFIX = "sealed:v1:"
MASK = "********"
"""What people see instead of a sealed value; sending it back keeps the value."""


class CannotOpen(Exception):
    """The value was sealed with another key, or is damaged."""


class Sealer:
    """AES-256-GCM under a key derived from ``secret``."""

    def __init__(self, secret: str, purpose: str) -> None:
        self._aead = AESGCM(hashlib.sha256(f"holdfast|{purpose}|{secret}".encode()).digest())

    def seal(self, value: str) -> str:
        nonce = os.urandom(12)
        return _PREFIX + base64.urlsafe_b64encode(nonce + self._aead.encrypt(nonce, value.encode(), None)).decode()

    def open(self, sealed: str) -> str:
        try:
            raw = base64.urlsafe_b64decode(sealed.removeprefix(_PREFIX))
            return self._aead.decrypt(raw[:12], raw[12:], None).decode()
        except (InvalidTag, ValueError) as error:
            raise CannotOpen("the value was sealed with another master key or credential") from error


def is_sealed(value: str) -> bool:
    return value.startswith(_PREFIX)


def host_sealer(credential_hash: str) -> Sealer:
    """For values addressed to one host; both sides know the hash of its credential."""
    return Sealer(credential_hash, "host-env")


def master_sealer(secret: str) -> Sealer:
    return Sealer(secret, "master")


def read_or_create_secret(path: Path, make: str) -> str:
    """The secret in ``path``, made (mode 0600) from ``make`` if there is none. Two at once get the same.

    Raises InvalidInput for an empty file: going on with an empty secret would protect nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if not path.exists():
        temporary.touch(mode=0o600)
        temporary.write_text(make + "\n")
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    secret = path.read_text().strip()
    if not secret:
        raise InvalidInput(
            f"{path} is empty", hint="restore it from a backup; what was sealed or signed with it needs it"
        )
    return secret
