"""A port that is taken is named, with its owner and the setting that changes it."""

import os
import socket
from pathlib import Path

import pytest

from fleet.cli.app import run
from fleet.cli.ports import Port, PortsTaken, check, owner, wanted
from fleet.settings import Settings


def test_free_ports_pass(unused_port: int) -> None:
    check([Port("the API", "127.0.0.1", unused_port, "HOLDFAST_PORT")])


def test_a_taken_port_is_named_with_owner_and_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        with pytest.raises(PortsTaken) as raised:
            check([Port("the Temporal UI", "127.0.0.1", number, "HOLDFAST_TEMPORAL_UI_PORT")])
        assert owner(number).startswith(f"pid {os.getpid()} (")
    assert str(number) in raised.value.detail
    assert f"pid {os.getpid()}" in raised.value.detail
    assert "HOLDFAST_TEMPORAL_UI_PORT" in raised.value.hint


def test_a_port_taken_on_all_addresses_is_not_free() -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as server,
        pytest.raises(PortsTaken),
    ):
        check([Port("the API", "127.0.0.1", server.getsockname()[1], "HOLDFAST_PORT")])


def test_a_port_wanted_twice_is_named(unused_port: int) -> None:
    ports = [Port("the API", "127.0.0.1", unused_port, "A"), Port("Temporal", "127.0.0.1", unused_port, "B")]
    with pytest.raises(PortsTaken) as raised:
        check(ports)
    assert "the API" in raised.value.detail
    assert "A or B" in raised.value.hint


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(PortsTaken, match=r"192\.0\.2\.1"):
        check([Port("the API", "192.0.2.1", 8480, "HOLDFAST_PORT")])


def test_a_closed_connection_does_not_stand_in_the_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        client = socket.create_connection(address)
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first keeps the port in TIME_WAIT
        client.close()
    check([Port("the API", "127.0.0.1", address[1], "HOLDFAST_PORT")])


def test_an_external_temporal_needs_no_ports_here() -> None:
    embedded = {port.setting for port in wanted(Settings())}
    external = {port.setting for port in wanted(Settings(temporal_address="temporal.example:7233"))}
    ours = {"HOLDFAST_PORT", "HOLDFAST_RELAY_PORT", "HOLDFAST_RELAY_INTERNAL_PORT"}
    assert embedded == ours | {"HOLDFAST_TEMPORAL_PORT", "HOLDFAST_TEMPORAL_UI_PORT"}
    assert external == ours


def test_up_starts_nothing_while_a_port_is_taken(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        monkeypatch.setenv("HOLDFAST_PORT", str(number))
        assert run(["up"]) == 1
    said = capsys.readouterr().err
    assert str(number) in said
    assert "HOLDFAST_PORT" in said
    assert not (home / "holdfast.db").exists()
