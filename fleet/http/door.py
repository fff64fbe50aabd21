"""The headers between a gateway and the proxy of a host; among them, that the proxy and not the engine has answered."""

from enum import StrEnum

REFUSED = b"holdfast-refused"
"""Never passed on from an engine, nor to a client of a gateway."""
FRESH = b"holdfast-fresh"
"""In a request that is sent again: the engine is to get it over a connection that was not used before."""
LOAD = b"holdfast-load"
"""In an answer of an engine: how full it is (``fleet.policy.engine_load``). For gateways, not for their clients."""


class Reason(StrEnum):
    """The value of that header."""

    # About the ticket.
    NO_TICKET = "no_ticket"
    EXPIRED = "expired"
    INVALID = "invalid"
    OTHER_HOST = "other_host"
    OTHER_INSTANCE = "other_instance"
    STALE_FENCE = "stale_fence"
    SCOPE = "scope"
    # About the engine.
    GONE = "gone"
    """None of that instance runs here."""
    UNREACHABLE = "unreachable"
    """It accepts no connection, so it got nothing."""
    DIED = "died"
    """It closed a new connection without a word."""
    HUNG_UP = "hung_up"
    """It closed one that had been used before: perhaps it was just tired of it."""
    BROKE_OFF = "broke_off"
    """It closed the connection in an answer of which nothing had been passed on."""
    BAD_REPLY = "bad_reply"
    """What it says is not HTTP."""
    # About the host.
    ENDING = "ending"
    """Its process ends, and cannot wait for the engine any longer, which runs on."""


STATUS = {
    Reason.NO_TICKET: 401,
    Reason.EXPIRED: 401,
    Reason.INVALID: 401,
    Reason.OTHER_HOST: 403,
    Reason.OTHER_INSTANCE: 403,
    Reason.STALE_FENCE: 403,
    Reason.SCOPE: 403,
    Reason.GONE: 404,
    Reason.UNREACHABLE: 502,
    Reason.DIED: 502,
    Reason.HUNG_UP: 502,
    Reason.BROKE_OFF: 502,
    Reason.BAD_REPLY: 502,
    Reason.ENDING: 503,
}
ABOUT_TICKETS = frozenset(reason for reason, status in STATUS.items() if status in (401, 403))
"""Counted as refusals, and told to the control plane."""
