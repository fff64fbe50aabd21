"""How the control plane goes to hosts: by which certificates it knows them, and the tickets that it shows."""

import ssl
import time
from collections.abc import Callable

from fleet.access.errands import GATEWAY_AUDIENCE
from fleet.access.tickets import TICKET_S, Scope, Ticket, TicketSigner

_RENEWED_AFTER_S = TICKET_S / 2
_MOST_KEPT = 10_000


class Visitor:
    """One per process. Tickets are made when they are first needed, and again at half their life."""

    def __init__(self, ca_pem: str, signer: TicketSigner, clock: Callable[[], float] = time.time) -> None:
        self._signer = signer
        self._clock = clock
        self._kept: dict[Ticket, tuple[str, float]] = {}
        self.tls = ssl.create_default_context(cadata=ca_pem)
        """Trusts the certificates of our own hosts, and nobody else's."""

    def engine(self, host_id: str, instance_id: str, fence: int) -> str:
        return self._ticket(Ticket(host_id, Scope.ENGINE, instance_id, fence))

    def host(self, host_id: str, instance_id: str = "") -> str:
        """``instance_id``: to read the log and the metrics of that one."""
        return self._ticket(Ticket(host_id, Scope.HOST, instance_id))

    def tunnel(self, host_id: str) -> str:
        return self._ticket(Ticket(host_id, Scope.TUNNEL))

    def gateway(self, key_id: str) -> str:
        """For requests that the control plane makes on behalf of an API key: its batches."""
        return self._ticket(Ticket(GATEWAY_AUDIENCE, Scope.GATEWAY, key_id))

    def forget(self) -> None:
        """Make all tickets anew: a host does not take them, perhaps since a clock was set."""
        self._kept.clear()

    def _ticket(self, ticket: Ticket) -> str:
        now = self._clock()
        kept = self._kept.get(ticket)
        if kept is not None and kept[1] <= now < kept[1] + _RENEWED_AFTER_S:
            return kept[0]
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        token = self._signer.sign(ticket, now)
        self._kept[ticket] = (token, now)
        return token
