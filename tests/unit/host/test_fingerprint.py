"""Telling a machine from a copy of its disk."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.join import JoinRequest
from worker_host.fingerprint import Fingerprint, fingerprint

letters = st.text("0123456789abcdef", min_size=16, max_size=16)
maybe = st.one_of(st.just(""), letters)
prints = st.builds(Fingerprint, maybe, st.lists(letters, max_size=9, unique=True).map(tuple), maybe)


@given(prints)
def test_what_is_kept_of_a_machine_is_of_the_same_machine(machine: Fingerprint) -> None:
    kept = Fingerprint.parse(str(machine))
    assert machine.same_machine(kept)
    assert kept.same_machine(machine)
    sent = JoinRequest(token="t", name="n", machine_id=str(machine), certificate_request="c", credential_hash="0" * 64)
    assert sent.machine_id == str(machine)


@given(prints, prints)
def test_sameness_goes_both_ways(one: Fingerprint, other: Fingerprint) -> None:
    assert one.same_machine(other) == other.same_machine(one)


@pytest.mark.parametrize("text", ["", "v1", "v2:a:b:c", "v1:a:b", "0123abcd"])
def test_what_is_no_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no fingerprint"):
        Fingerprint.parse(text)


class Machine:
    """A root folder as Linux shows itself."""

    def __init__(self, root: Path, uuid: str = "", system: str = "one-installation") -> None:
        self.root = root
        for folder in ("etc", "sys/class/dmi/id", "sys/class/net"):
            (root / folder).mkdir(parents=True)
        if uuid:
            (root / "sys/class/dmi/id/product_uuid").write_text(uuid + "\n")
        (root / "etc/machine-id").write_text(system + "\n")

    def card(self, name: str, address: str, *, real: bool = True, assigned: str = "0") -> "Machine":
        card = self.root / "sys/class/net" / name
        card.mkdir()
        if real:
            (card / "device").mkdir()
        (card / "addr_assign_type").write_text(assigned + "\n")
        (card / "address").write_text(address + "\n")
        return self

    @property
    def print(self) -> Fingerprint:
        return fingerprint(self.root)


def test_copy_with_another_board_is_another_machine(tmp_path: Path) -> None:
    first, copy = Machine(tmp_path / "a", "uuid-1").print, Machine(tmp_path / "b", "uuid-2").print
    assert not first.same_machine(copy)


def test_copy_with_other_network_cards_is_another_machine(tmp_path: Path) -> None:
    first = Machine(tmp_path / "a").card("eth0", "02:00:00:00:00:01").print
    copy = Machine(tmp_path / "b").card("eth0", "02:00:00:00:00:02").print
    assert not first.same_machine(copy)


def test_cards_may_come_and_go(tmp_path: Path) -> None:
    before = Machine(tmp_path / "a").card("eth0", "02:00:00:00:00:01").card("eth1", "02:00:00:00:00:02").print
    after = Machine(tmp_path / "b").card("enp3s0", "02:00:00:00:00:02").card("usb0", "02:00:00:00:00:03").print
    assert Fingerprint.parse(str(before)).same_machine(after)


def test_same_board_is_the_same_machine_whatever_else_changed(tmp_path: Path) -> None:
    before = Machine(tmp_path / "a", "uuid-1").card("eth0", "02:00:00:00:00:01").print
    after = Machine(tmp_path / "b", "UUID-1", system="installed again").card("eth0", "02:00:00:00:00:02").print
    assert before.same_machine(after)


def test_board_that_this_user_may_not_read_does_not_count(tmp_path: Path) -> None:
    as_root = Machine(tmp_path / "a", "uuid-1").card("eth0", "02:00:00:00:00:01").print
    as_user = Machine(tmp_path / "b").card("eth0", "02:00:00:00:00:01").print
    assert as_root.same_machine(as_user)


def test_what_containers_and_bridges_have_is_not_looked_at(tmp_path: Path) -> None:
    machine = Machine(tmp_path).card("veth0", "02:00:00:00:00:01", real=False)
    machine.card("wlan0", "02:00:00:00:00:02", assigned="3").card("vf0", "02:00:00:00:00:03", assigned="1")
    assert machine.print.cards == ()


@pytest.mark.parametrize("uuid", ["00000000-0000-0000-0000-000000000000", "03000200-0400-0500-0006-000700080009"])
def test_number_that_many_boards_have_does_not_count(tmp_path: Path, uuid: str) -> None:
    assert Machine(tmp_path, uuid).print.board == ""


def test_this_machine_is_itself() -> None:
    assert fingerprint().same_machine(Fingerprint.parse(str(fingerprint())))
