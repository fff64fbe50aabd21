"""A host can use only the task tokens that it was given.

The relay remembers none: each token leaves sealed for its host (AES-256-GCM, the host's id as associated data, under a
key that comes of the master key), so that any relay, now or after a restart, can tell whose it is.
"""

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_VERSION = b"\x01"
_NONCE = 12


class ForeignToken(Exception):
    """It was given to another host, never came through a relay, or is damaged."""


class TaskTokens:
    def __init__(self, master_secret: str) -> None:
        self._aead = AESGCM(hashlib.sha256(f"holdfast|task-token|{master_secret}".encode()).digest())

    def seal(self, token: bytes, host_id: str) -> bytes:
        nonce = os.urandom(_NONCE)
        return _VERSION + nonce + self._aead.encrypt(nonce, token, host_id.encode())

    def open(self, sealed: bytes, host_id: str) -> bytes:
        """Raises ForeignToken."""
        version, nonce, rest = sealed[:1], sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
        if version != _VERSION or len(rest) < 16:
            raise ForeignToken
        try:
            return self._aead.decrypt(nonce, rest, host_id.encode())
        except InvalidTag as error:
            raise ForeignToken from error
