"""Keys, tokens and credentials: how they are made, and how they are kept (as hashes)."""

import hashlib
import secrets


def new_secret(kind: str) -> str:
    """A secret of 256 bits, e.g. ``hf-key-…``; the prefix tells people and scanners what it is."""
    return f"hf-{kind}-{secrets.token_urlsafe(32)}"


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(5)}"


def digest(secret: str) -> str:
    """What we keep instead. A plain hash is enough: the secrets are random, not chosen by people."""
    return hashlib.sha256(secret.encode()).hexdigest()


def shown_prefix(secret: str) -> str:
    return secret[:12] + "…"
