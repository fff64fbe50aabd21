"""Short-lived tickets by which the control plane proves itself to a host's HTTP server."""

import hashlib
import hmac
import time

LIFETIME_S = 60.0


def issue(credential_hash: str, host_id: str, now: float | None = None) -> str:
    """``<expiry>.<signature>``; valid on ``host_id`` only."""
    expires = int((time.time() if now is None else now) + LIFETIME_S)
    return f"{expires}.{_sign(credential_hash, host_id, expires)}"


def verify(ticket: str, credential_hash: str, host_id: str, now: float | None = None) -> bool:
    expires, _, signature = ticket.partition(".")
    if not expires.isascii() or not expires.isdigit() or len(expires) > 12:
        return False
    current = time.time() if now is None else now
    expected = _sign(credential_hash, host_id, int(expires))
    # As bytes: strings with anything but ASCII cannot be compared.
    return int(expires) > current and hmac.compare_digest(signature.encode(errors="replace"), expected.encode())


def _sign(credential_hash: str, host_id: str, expires: int) -> str:
    text = f"holdfast-ticket|{host_id}|{expires}".encode()
    return hmac.new(credential_hash.encode(), text, hashlib.sha256).hexdigest()
