"""Tickets by which the control plane speaks to gateways on behalf of a key, and nobody else does."""

import pytest

from fleet.access.authority import CertificateAuthority, new_key
from fleet.access.errands import BATCH_PRIORITY, GATEWAY_AUDIENCE, gateway_tickets, visitor_of
from fleet.access.secrets import new_secret
from fleet.access.tickets import TICKET_S, Refused, Scope, Ticket, TicketReader, TicketSigner
from fleet.access.visitor import Visitor

SIGNER = TicketSigner(new_key())
VISITOR = Visitor(CertificateAuthority.create().certificate_pem, SIGNER)


def read(token: str) -> tuple[str, int] | None:
    return visitor_of(token, gateway_tickets([SIGNER.public_key]))


def test_the_control_plane_speaks_for_a_key_with_low_priority() -> None:
    assert read(VISITOR.gateway("key-1")) == ("key-1", BATCH_PRIORITY)
    assert BATCH_PRIORITY < 0


def test_other_tickets_and_other_signers_are_nobody() -> None:
    others = [VISITOR.host("h", "key-1"), VISITOR.engine("h", "key-1", 1), VISITOR.tunnel("h"), VISITOR.gateway("")]
    others.append(SIGNER.sign(Ticket("h1", Scope.GATEWAY, "key-1")))
    others.append(SIGNER.sign(Ticket(GATEWAY_AUDIENCE, Scope.HOST, "key-1")))
    others.append(TicketSigner(new_key()).sign(Ticket(GATEWAY_AUDIENCE, Scope.GATEWAY, "key-1")))
    others.append(SIGNER.sign(Ticket(GATEWAY_AUDIENCE, Scope.GATEWAY, "key-1"), now=1_000_000.0))
    assert [read(token) for token in others] == [None] * len(others)


def test_even_a_reader_of_any_host_takes_only_those_for_gateways() -> None:
    anybody = TicketReader([SIGNER.public_key])
    assert visitor_of(SIGNER.sign(Ticket("h1", Scope.GATEWAY, "key-1")), anybody) is None


@pytest.mark.parametrize(
    "token",
    ["", "eyJ", "eyJhbGciOiJub25lIn0.e30.", "x.y.z", new_secret("key")],
    ids=["nothing", "begins", "unsigned", "dots", "key"],
)
def test_api_keys_and_nonsense_are_no_tickets(token: str) -> None:
    assert read(token) is None


def test_a_host_does_not_take_them() -> None:
    host = TicketReader([SIGNER.public_key], "h1")
    with pytest.raises(Refused):
        host.read(VISITOR.gateway("key-1"))


def test_it_ends_soon() -> None:
    now = 1_800_000_000.0
    token = SIGNER.sign(Ticket(GATEWAY_AUDIENCE, Scope.GATEWAY, "key-1"), now)
    for later, good in ((TICKET_S, True), (TICKET_S + 61, False)):
        reader = TicketReader([SIGNER.public_key], GATEWAY_AUDIENCE, clock=lambda at=now + later: at)  # type: ignore[misc]
        assert (visitor_of(token, reader) is not None) is good
