"""``holdfast up`` with everything real: Temporal, controller, API, host, engine and model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

T = TypeVar("T")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ANSWER_WITHIN_S = 300.0
"""The first start installs the engine."""
RECOVERS_WITHIN_S = 60.0
STOPS_WITHIN_S = 90.0


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Installation:
    """One home with ports of its own, and the commands that one gives there."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.output = home.with_name(f"{home.name}.out")
        own = ("PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT", "RELAY_PORT", "RELAY_INTERNAL_PORT")
        names = [f"HOLDFAST_{name}" for name in own]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        ports = {name: str(port) for name, port in self.ports.items()}
        self.environment = {**clean, **ports, "HOLDFAST_HOME": str(home)}
        self.process: subprocess.Popen[bytes] | None = None

    def up(self, *arguments: str) -> "subprocess.Popen[bytes]":
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fleet.cli", "up", *arguments],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        return self.process

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def until_answered(self) -> None:
        def answered() -> bool:
            assert self.running(), self.said
            return "chat smollm2" in self.said

        until(answered, ANSWER_WITHIN_S, lambda: self.said)

    def stop(self) -> int:
        assert self.process is not None
        if self.running():
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOPS_WITHIN_S)

    def holdfast(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "fleet.cli", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)

    def read(self, *arguments: str) -> Any:
        done = self.holdfast(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def pid_of(self, child: str) -> int | None:
        pid: int | None = json.loads((self.home / "up.json").read_text())["children"][child]["pid"]
        return pid

    def engine(self) -> psutil.Process:
        """The one engine, as a process: equal only to itself, even if its pid is used again."""
        [instance] = self.read("instances")
        assert instance["state"] == "ready"
        return psutil.Process(instance["pid"])

    def processes(self) -> list[str]:
        """All that belong to this home."""
        return [line for process in psutil.process_iter() if (line := self._trace(process))]

    def _trace(self, process: psutil.Process) -> str:
        try:
            command, environment = " ".join(process.cmdline()), process.environ()
        except psutil.Error:
            return ""
        ours = environment.get("HOLDFAST_HOME") == str(self.home) or str(self.home) in command
        return f"{process.pid} {command}" if ours else ""


def until(condition: Callable[[], T], within_s: float, otherwise: Callable[[], object]) -> T:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {within_s:g} s: {otherwise()}")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    one = Installation(tmp_path_factory.mktemp("up") / "home")
    yield one
    if one.running():
        one.stop()


@pytest.fixture
def up(installed: Installation) -> Installation:
    """Running, with the demo answered."""
    if not installed.running():
        installed.up("--demo")
        installed.until_answered()
    return installed


def test_the_demo_answers_and_says_how_to_go_on(up: Installation) -> None:
    assert "Paris" in up.said
    for text in (f":{up.ports['HOLDFAST_PORT']}/docs", f":{up.ports['HOLDFAST_TEMPORAL_UI_PORT']}", "admin_key"):
        assert text in up.said
    assert (up.home / "admin_key").stat().st_mode & 0o777 == 0o600
    assert up.home.stat().st_mode & 0o777 == 0o700


def test_every_list_works_on_the_real_thing(up: Installation) -> None:
    [deployment] = up.read("deployments")
    assert deployment["status"]["phase"] == "ready"
    assert up.read("deployments", "smollm2")["name"] == "smollm2"
    [host] = up.read("hosts")
    assert host["state"] == "ready"
    assert up.read("keys", "list")
    assert up.read("join-token", "list")
    assert up.read("status")["ready"] is True
    for command in (["status"], ["deployments", "smollm2"], ["instances"], ["hosts", host["id"]], ["doctor"]):
        done = up.holdfast(*command)
        assert done.returncode == 0, done.stdout + done.stderr


def _works(up: Installation) -> bool:
    """Each part does what only it can: gateway and engine chat, the controller takes a change, the host reads a log."""
    [instance] = up.read("instances")
    return all(
        up.holdfast(*command).returncode == 0
        for command in (
            ["chat", "smollm2", "Hello!", "--max-tokens", "4"],
            ["scale", "smollm2", "1"],
            ["logs", instance["id"], "--tail", "1"],
        )
    )


@pytest.mark.parametrize("victim", ["controller", "api", "relay", "host", "temporal"])
def test_a_killed_process_comes_back_and_the_engine_never_noticed(up: Installation, victim: str) -> None:
    engine = up.engine()
    before = up.pid_of(victim)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    until(lambda: up.pid_of(victim) not in (before, None), RECOVERS_WITHIN_S, lambda: up.said)
    until(lambda: up.holdfast("status").returncode == 0, RECOVERS_WITHIN_S, lambda: up.said)
    until(lambda: _works(up), RECOVERS_WITHIN_S, lambda: up.said)
    assert up.engine() == engine
    assert engine.is_running()
    assert f"{victim} was ended by SIGKILL" in up.said


def test_ctrl_c_stops_everything_and_the_next_start_comes_back(up: Installation) -> None:
    assert up.stop() == 0
    assert "stopped" in up.said
    assert up.processes() == []
    assert not (up.home / "up.json").exists()

    up.up("--demo", "--exit")
    assert up.process is not None
    assert up.process.wait(ANSWER_WITHIN_S) == 0, up.said
    assert "Paris" in up.said
    assert up.processes() == []


def test_what_a_killed_up_leaves_behind_is_ended_by_the_next(up: Installation) -> None:
    assert up.process is not None
    up.process.kill()
    up.process.wait()
    up.up("--demo", "--exit")
    assert up.process.wait(ANSWER_WITHIN_S) == 0, up.said
    assert up.processes() == []


def test_a_taken_port_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    other = Installation(tmp_path / "home")
    number = other.ports["HOLDFAST_TEMPORAL_PORT"]
    with socket.create_server(("127.0.0.1", number)):
        done = other.holdfast("up")
    assert done.returncode == 1
    for text in (str(number), "HOLDFAST_TEMPORAL_PORT", f"pid {os.getpid()}"):
        assert text in done.stderr
    assert not (other.home / "temporal.db").exists()
    assert other.processes() == []
