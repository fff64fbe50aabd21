"""Short-lived tokens (JWT, ES256).

Tickets: by which the control plane proves itself to a host, or to a relay for a way through a tunnel.
Passes: by which a host proves itself to a relay, on each call.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import jwt

from fleet.access.authority import public_key_of

TICKET_S = 120
"""How long a ticket is good for: one may be used by many requests, and long answers go on after its end."""
PASS_S = 600
_LEEWAY_S = 60
"""Clocks differ."""
_ALGORITHM = "ES256"
_TICKET_ISSUER = "holdfast"
_RELAY_AUDIENCE = "holdfast-relay"


class Scope(StrEnum):
    ENGINE = "engine"
    """Requests to one engine, named by instance and fence."""
    HOST = "host"
    """What else a host shows: its metrics, its files, and the logs and metrics of its engines."""
    TUNNEL = "tunnel"
    """A way to a host through a relay; what it may do there is for another ticket to say."""
    GATEWAY = "gateway"
    """Requests to models on behalf of an API key, named as the subject (``fleet.access.errands``)."""


@dataclass(frozen=True)
class Ticket:
    host_id: str
    scope: Scope
    instance_id: str = ""
    fence: int = 0
    expires: float = 0.0
    """Seconds since 1970."""


@dataclass(frozen=True)
class Pass:
    host_id: str
    boot_id: str
    """Of the machine that speaks: a host is one machine at a time."""


class Refused(Exception):
    """``expired`` or ``invalid``, and a sentence about it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class TicketSigner:
    key_pem: str

    @property
    def public_key(self) -> str:
        return public_key_of(self.key_pem)

    def sign(self, ticket: Ticket, now: float | None = None) -> str:
        """Good for ``TICKET_S`` from ``now`` (seconds since 1970); ``ticket.expires`` is not looked at."""
        issued = int(time.time() if now is None else now)
        claims = {
            "iss": _TICKET_ISSUER,
            "aud": ticket.host_id,
            "scope": ticket.scope.value,
            "sub": ticket.instance_id,
            "fence": str(ticket.fence),
            "iat": issued,
            "exp": issued + TICKET_S,
        }
        return jwt.encode(claims, self.key_pem, _ALGORITHM)


class TicketReader:
    """Reads tickets for one host, or for a relay (``host_id`` empty: of any host). Remembers good ones until their end.

    ``clock``: the control plane's time as this machine knows it.
    """

    _REMEMBERED = 1024

    def __init__(self, public_keys: Sequence[str], host_id: str = "", clock: Callable[[], float] = time.time) -> None:
        self._keys = list(public_keys)
        self._host_id = host_id
        self._clock = clock
        self._known: dict[str, Ticket] = {}

    def trust(self, public_keys: Sequence[str]) -> None:
        """From now on tickets must be signed with one of these."""
        if list(public_keys) != self._keys:
            self._keys = list(public_keys)
            self._known.clear()

    def read(self, token: str) -> Ticket:
        """Raises Refused."""
        known = self._known.get(token)
        if known is not None and known.expires + _LEEWAY_S > self._clock():
            return known
        ticket = self._read(token)
        if len(self._known) >= self._REMEMBERED:
            self._known.clear()
        self._known[token] = ticket
        return ticket

    def _read(self, token: str) -> Ticket:
        claims = _claims(token, self._keys, _TICKET_ISSUER, self._host_id or None)
        try:
            ticket = Ticket(
                host_id=str(claims["aud"]),
                scope=Scope(str(claims["scope"])),
                instance_id=str(claims["sub"]),
                fence=int(str(claims["fence"])),
                expires=float(str(claims["exp"])),
            )
        except (KeyError, ValueError) as error:
            raise Refused("invalid", "it is no ticket of this control plane") from error
        _check_time(ticket.expires, TICKET_S, self._clock())
        return ticket


def sign_pass(key_pem: str, host_id: str, boot_id: str, now: float | None = None) -> str:
    """``now``: the control plane's time as the host knows it."""
    issued = int(time.time() if now is None else now)
    claims = {"iss": host_id, "aud": _RELAY_AUDIENCE, "boot": boot_id, "iat": issued, "exp": issued + PASS_S}
    return jwt.encode(claims, key_pem, _ALGORITHM)


def issuer_of(token: str) -> str:
    """The host that a pass says it is of, unverified: whose key to verify it with. Raises Refused."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError as error:
        raise Refused("invalid", "it is no pass of a host") from error
    issuer = claims.get("iss")
    if not isinstance(issuer, str):
        raise Refused("invalid", "it is no pass of a host")
    return issuer


def read_pass(token: str, public_key: str, now: float | None = None) -> Pass:
    """``public_key``: of the host that ``issuer_of`` names. Raises Refused."""
    claims = _claims(token, [public_key], None, _RELAY_AUDIENCE)
    try:
        found, expires = Pass(str(claims["iss"]), str(claims["boot"])), float(str(claims["exp"]))
    except (KeyError, ValueError) as error:
        raise Refused("invalid", "it is no pass of a host") from error
    _check_time(expires, PASS_S, time.time() if now is None else now)
    return found


def _claims(token: str, keys: Sequence[str], issuer: str | None, audience: str | None) -> dict[str, object]:
    """What a validly signed token says; its time is not looked at."""
    options = {"verify_exp": False, "verify_iat": False, "verify_aud": audience is not None, "require": ["exp", "aud"]}
    error: Exception = jwt.InvalidTokenError("nothing is trusted")
    for key in keys:
        try:
            return dict(
                jwt.decode(token, key, [_ALGORITHM], options=options, audience=audience, issuer=issuer)  # type: ignore[arg-type]
            )
        except jwt.InvalidTokenError as wrong:
            error = wrong
    raise Refused("invalid", f"it is not valid here ({error})") from error


def _check_time(expires: float, lifetime: float, now: float) -> None:
    if expires + _LEEWAY_S <= now:
        raise Refused("expired", f"it expired {now - expires:.0f} s ago")
    if expires - lifetime - _LEEWAY_S > now:
        raise Refused("invalid", f"it begins in {expires - lifetime - now:.0f} s: one of the clocks is wrong")
