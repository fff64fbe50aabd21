"""Tickets and passes: good where, when and for what they were made, and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.access.authority import new_key, public_key_of
from fleet.access.tickets import (
    PASS_S,
    TICKET_S,
    Refused,
    Scope,
    Ticket,
    TicketReader,
    TicketSigner,
    issuer_of,
    read_pass,
    sign_pass,
)

NOW = 1_800_000_000.0
SIGNER = TicketSigner(new_key())
OTHER = TicketSigner(new_key())
HOST_KEY = new_key()


def reader(host: str = "a-1", now: float = NOW, *keys: str) -> TicketReader:
    return TicketReader(keys or (SIGNER.public_key,), host, lambda: now)


def reason(token: str, read: TicketReader) -> str:
    with pytest.raises(Refused) as refused:
        read.read(token)
    return refused.value.reason


@given(st.sampled_from(Scope), st.text(max_size=80), st.integers(0, 2**62))
def test_a_ticket_says_what_it_was_made_for(scope: Scope, instance: str, fence: int) -> None:
    token = SIGNER.sign(Ticket("a-1", scope, instance, fence), NOW)
    read = reader().read(token)
    assert (read.host_id, read.scope, read.instance_id, read.fence) == ("a-1", scope, instance, fence)


def test_a_ticket_is_good_on_its_host_only() -> None:
    token = SIGNER.sign(Ticket("a-1", Scope.HOST), NOW)
    assert reason(token, reader("b-2")) == "invalid"
    assert reader("").read(token).host_id == "a-1"  # a relay asks whom it is for


def test_a_ticket_ends_and_one_that_was_read_before_does_too() -> None:
    token = SIGNER.sign(Ticket("a-1", Scope.HOST), NOW)
    now = [NOW]
    read = TicketReader([SIGNER.public_key], "a-1", lambda: now[0])
    read.read(token)
    now[0] = NOW + TICKET_S + 59
    read.read(token)
    now[0] = NOW + TICKET_S + 61
    assert reason(token, read) == "expired"


def test_a_ticket_of_the_future_is_no_ticket() -> None:
    assert reason(SIGNER.sign(Ticket("a-1", Scope.HOST), NOW + 3600), reader()) == "invalid"


def test_keys_can_be_replaced_while_old_ones_are_still_trusted() -> None:
    old, new = SIGNER.sign(Ticket("a-1", Scope.HOST), NOW), OTHER.sign(Ticket("a-1", Scope.HOST), NOW)
    read = reader()
    assert reason(new, read) == "invalid"
    read.trust([SIGNER.public_key, OTHER.public_key])
    read.read(old)
    read.read(new)
    read.trust([OTHER.public_key])
    assert reason(old, read) == "invalid"


@given(st.text(max_size=300))
def test_nonsense_is_refused(token: str) -> None:
    assert reason(token, reader()) == "invalid"
    for read in (issuer_of, lambda t: read_pass(t, public_key_of(HOST_KEY))):
        with pytest.raises(Refused):
            read(token)


def test_a_changed_ticket_is_refused() -> None:
    token = SIGNER.sign(Ticket("a-1", Scope.ENGINE, "smol/0-a", 3), NOW)
    head, body, signature = token.split(".")
    other = SIGNER.sign(Ticket("a-1", Scope.ENGINE, "smol/1-b", 3), NOW).split(".")[1]
    assert reason(f"{head}.{other}.{signature}", reader()) == "invalid"
    assert reason(f"{head}.{body}.", reader()) == "invalid"


def test_a_pass_is_no_ticket_and_a_ticket_no_pass() -> None:
    ticket = SIGNER.sign(Ticket("a-1", Scope.HOST), NOW)
    with pytest.raises(Refused):
        read_pass(ticket, SIGNER.public_key, NOW)
    token = sign_pass(HOST_KEY, "a-1", "boot", NOW)
    assert reason(token, reader("a-1", NOW, public_key_of(HOST_KEY))) == "invalid"


def test_a_pass_says_which_machine_speaks() -> None:
    token = sign_pass(HOST_KEY, "a-1", "boot-7", NOW)
    assert issuer_of(token) == "a-1"
    read = read_pass(token, public_key_of(HOST_KEY), NOW)
    assert (read.host_id, read.boot_id) == ("a-1", "boot-7")
    with pytest.raises(Refused, match="not valid"):
        read_pass(token, public_key_of(new_key()), NOW)
    with pytest.raises(Refused, match="expired") as expired:
        read_pass(token, public_key_of(HOST_KEY), NOW + PASS_S + 61)
    assert expired.value.reason == "expired"
