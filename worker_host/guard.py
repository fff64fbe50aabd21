"""Who may pass the host's door: those with a ticket of the control plane for just this. Who may not is counted."""

import threading
from collections import Counter

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Counted

from fleet.access.tickets import Refused, Scope, Ticket, TicketReader
from fleet.http.door import ABOUT_TICKETS, Reason
from fleet.telemetry import Refusal

_MOST_KINDS = 200
"""Of refusals that are told apart until they are taken; further ones are counted without who and what."""
_LONGEST = 200


class NotAdmitted(Exception):
    """The text is for people, and says what a ticket would have to be."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Guard:
    def __init__(self, host_id: str, tickets: TicketReader, registry: CollectorRegistry) -> None:
        """``tickets``: reads those of any host, so that one for another can be told from one that is no good."""
        self._host_id = host_id
        self._tickets = tickets
        self._refusals: Counter[tuple[Reason, str, str]] = Counter()
        self._counted = Counted(
            "holdfast_host_refused", "Requests that were turned away at the host's door", ["reason"], registry=registry
        )
        for reason in ABOUT_TICKETS:
            self._counted.labels(reason)
        self._lock = threading.Lock()

    def admit(self, authorization: bytes | None, peer: str, scope: Scope, instance_id: str = "") -> Ticket:
        """Raises NotAdmitted unless ``authorization`` is a ticket of this scope that names just this instance."""
        try:
            return self._check(authorization, scope, instance_id)
        except NotAdmitted as refusal:
            self.note(refusal.reason, peer, instance_id)
            raise

    def note(self, reason: Reason, peer: str, instance_id: str) -> None:
        """Somebody was turned away."""
        self._counted.labels(reason).inc()
        kind = (reason, instance_id[:_LONGEST].replace("\x00", ""), peer[:_LONGEST])
        with self._lock:
            if kind not in self._refusals and len(self._refusals) >= _MOST_KINDS:
                kind = (reason, "", "")
            self._refusals[kind] += 1

    def take_refusals(self) -> tuple[Refusal, ...]:
        """Those since the last time, to be told to the control plane. May be called from any thread."""
        with self._lock:
            taken, self._refusals = self._refusals, Counter()
        return tuple(Refusal(reason=r, instance_id=i, peer=p, count=n) for (r, i, p), n in taken.items())

    def _check(self, authorization: bytes | None, scope: Scope, instance_id: str) -> Ticket:
        if authorization is None or authorization[:7].lower() != b"bearer ":
            raise NotAdmitted(Reason.NO_TICKET, "this takes a ticket of the control plane: 'Authorization: Bearer …'")
        try:
            ticket = self._tickets.read(authorization[7:].strip().decode("latin-1"))
        except Refused as refused:
            raise NotAdmitted(Reason(refused.reason), f"the ticket is not good: {refused}") from refused
        if ticket.host_id != self._host_id:
            raise NotAdmitted(Reason.OTHER_HOST, "the ticket is for another host")
        if ticket.scope is not scope:
            raise NotAdmitted(Reason.SCOPE, f"the ticket is one for {ticket.scope.value}, not for {scope.value}")
        if ticket.instance_id != instance_id:
            raise NotAdmitted(Reason.OTHER_INSTANCE, f"the ticket names {ticket.instance_id or 'no instance'}")
        return ticket
