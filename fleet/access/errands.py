"""Requests that the control plane itself makes to a gateway, on behalf of the API key whose batch they are of."""

from fleet.access.tickets import Refused, Scope, TicketReader

GATEWAY_AUDIENCE = "holdfast-gateway"
"""Whom such tickets are for; no host has such an id."""
BATCH_PRIORITY = -10
"""Behind everybody who waits for an answer; the first to be shed."""
PRIORITY_HEADER = b"holdfast-priority"
_JWT_BEGINS = "eyJ"
"""As every JSON object does in base64: API keys begin otherwise, and cost nothing here."""


def gateway_tickets(public_keys: list[str]) -> TicketReader:
    """Reads them in a gateway."""
    return TicketReader(public_keys, GATEWAY_AUDIENCE)


def visitor_of(token: str, tickets: TicketReader) -> tuple[str, int] | None:
    """(id of the API key on whose behalf, priority); None: it is no such ticket, so perhaps an API key.

    That the key is still good is for the caller to see.
    """
    if not token.startswith(_JWT_BEGINS):
        return None
    try:
        ticket = tickets.read(token)
    except Refused:
        return None
    if ticket.scope is not Scope.GATEWAY or ticket.host_id != GATEWAY_AUDIENCE or not ticket.instance_id:
        return None
    return ticket.instance_id, BATCH_PRIORITY
