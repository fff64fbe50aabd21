"""Tickets that the control plane carries: made when needed, used again, and renewed in time."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.access.authority import CertificateAuthority, new_key
from fleet.access.tickets import TICKET_S, Scope, Ticket, TicketReader, TicketSigner
from fleet.access.visitor import Visitor

SIGNER = TicketSigner(new_key())
CA = CertificateAuthority.create()
NOW = 1_800_000_000.0


def read(token: str, now: float) -> Ticket:
    return TicketReader([SIGNER.public_key], clock=lambda: now).read(token)


def test_each_ticket_says_just_what_it_is_for() -> None:
    visitor = Visitor(CA.certificate_pem, SIGNER, lambda: NOW)
    expires = NOW + TICKET_S
    assert read(visitor.engine("h", "m/1-a", 3), NOW) == Ticket("h", Scope.ENGINE, "m/1-a", 3, expires)
    assert read(visitor.host("h"), NOW) == Ticket("h", Scope.HOST, "", 0, expires)
    assert read(visitor.host("h", "m/1-a"), NOW) == Ticket("h", Scope.HOST, "m/1-a", 0, expires)
    assert read(visitor.tunnel("h"), NOW) == Ticket("h", Scope.TUNNEL, "", 0, expires)


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=30))
def test_a_ticket_is_always_good_for_a_while_however_the_clock_moves(steps: list[float]) -> None:
    now = NOW
    visitor = Visitor(CA.certificate_pem, SIGNER, lambda: now)
    for step in steps:
        now += step
        left = read(visitor.engine("h", "m/1-a", 1), now).expires - now
        assert TICKET_S / 2 - 1 <= left <= TICKET_S


def test_a_ticket_is_used_again_for_half_its_life() -> None:
    now = NOW
    visitor = Visitor(CA.certificate_pem, SIGNER, lambda: now)
    first = visitor.host("h")
    now += TICKET_S / 2 - 1
    assert visitor.host("h") == first
    now += 1
    assert visitor.host("h") != first
