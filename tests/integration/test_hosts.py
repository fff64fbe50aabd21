"""Hosts come, are copied, rebooted, upgraded and moved: their engines serve on, and nobody else speaks as them."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from fleet.timings import Timings
from tests.faults.load import steady_load
from tests.stack import ROOT, Process, Stack, eventually

pytestmark = pytest.mark.slow

ODD = (sys.executable, "-m", "tests.integration.odd_host")
SILENT_S = 25.0
"""After that another machine may speak as a host."""
LEASE_S = Timings().lease_heartbeat.total_seconds()


@pytest.fixture(scope="module")
def stack(new_stack: Callable[..., Stack]) -> Stack:
    return new_stack()


class Machine:
    """One host of its own, which only deployments made by ``deploy`` use."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.stack = stack
        self.name = name
        self.env: dict[str, str] = {
            "HOLDFAST_HOST_NAME": name,
            "HOLDFAST_HOST_LABELS": json.dumps({"machine": name}),
            "HOLDFAST_SERVER": stack.settings.relay_for_hosts,
        }
        self.process: Process | None = None

    @property
    def folder(self) -> Path:
        return self.stack.home / "hosts" / self.name

    def start(self, *, home: Path | None = None, **env: str) -> Process:
        """A process of this host, with the oddities of ``odd_host`` in ``env``."""
        more = {"HOLDFAST_HOME": str(home)} if home else {}
        self.process = Process(
            f"host-{self.name}",
            [*ODD, "host"],
            self.stack.env | self.env | more | env,
            self.stack.home / "logs" / f"host-{self.name}.log",
        )
        self.stack.hosts[self.name] = self.process
        self.process.start()
        return self.process

    def join(self, **env: str) -> None:
        self.start(HOLDFAST_HOST_TOKEN=new_token(self.stack), **env)
        self.until_ready()

    def until_ready(self, within: float = 40) -> None:
        self.until(lambda h: h["state"] == "ready", within=within)

    def until(self, condition: Callable[[dict[str, Any]], Any], within: float = 40) -> None:
        try:
            eventually(lambda: (seen := self.seen()) and condition(seen), within=within, what=f"host {self.name}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.seen()}\n{self.log()}") from None

    def seen(self) -> dict[str, Any]:
        return self.stack.host(self.name)

    def log(self) -> str:
        assert self.process is not None
        return self.process.log()

    def deploy(self, model: Path) -> None:
        self.stack.deploy(self.name, str(model), placement={"host_selector": {"machine": self.name}})
        self.stack.until_ready(self.name)

    def engines(self) -> list[int]:
        return [pid for pid, i in self.stack.engine_pids().items() if i.startswith(f"{self.name}/")]


def ask(stack: Stack, model: str) -> str:
    body = {"model": model, "prompt": "One, two, three,", "max_tokens": 4, "temperature": 0}
    headers = {"authorization": f"Bearer {stack.key}"}
    answer = httpx.post(f"{stack.url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def new_token(stack: Stack, **more: object) -> str:
    return str(stack.ok(stack.http.post("/join-tokens", json={"description": "test", **more}))["token"])


@pytest.fixture
def machine(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Machine]:
    name = f"m{abs(hash(request.node.name)) % 100_000}"
    made = Machine(stack, name)
    yield made
    stack.delete_everything()
    if made.process is not None:
        made.process.kill()
    if host := made.seen():
        stack.http.delete(f"/hosts/{host['id']}")
    stack.hosts.pop(name, None)


# -- joining -------------------------------------------------------------------------------------------------------


def joined(stack: Stack, home: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What becomes of ``holdfast host`` on a new machine that cannot join."""
    command = [sys.executable, "-m", "fleet.cli", "host", *options]
    environment = stack.env | {"HOLDFAST_HOME": str(home)} | env
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_a_machine_that_cannot_join_ends_and_says_why(stack: Stack, tmp_path: Path) -> None:
    url = stack.settings.relay_for_hosts
    token = new_token(stack)
    secret, _, pin = token.partition(".")
    other_pin = "A" + pin[1:-4] + "AAA="
    api = f"https://127.0.0.1:{stack.settings.port}"
    for options, why in (
        ((), "has not joined yet"),
        (("--token", "hf-key-nonsense"), "a join token looks like"),
        (("--token", f"hf-join-unknown.{pin}", "--server", url), "unknown"),
        (("--token", f"{secret}.{other_pin}", "--server", url), "pin|not the one that the token was made for"),
        (("--token", token, "--server", "http://127.0.0.1:1"), "is no URL of a relay"),
        (("--token", token, "--server", api), "does not speak TLS"),
    ):
        ended = joined(stack, tmp_path, *options)
        assert ended.returncode == 1, ended.stderr
        assert any(part in ended.stderr for part in why.split("|")), (why, ended.stderr)
        assert "Traceback" not in ended.stderr
        assert secret not in ended.stderr
        assert not list(tmp_path.glob("hosts/*/identity.json"))


def test_a_label_that_is_none_is_named(stack: Stack, tmp_path: Path) -> None:
    ended = joined(stack, tmp_path, "--label", "nonsense")
    assert ended.returncode != 0
    assert "write KEY=VALUE" in ended.stderr


def test_a_token_lets_in_one_machine_by_its_options_alone(stack: Stack, machine: Machine, tmp_path: Path) -> None:
    token = new_token(stack)
    options = ["--server", stack.settings.relay_for_hosts, "--token", token, "--name", machine.name, "--label", "a=b"]
    command = [sys.executable, "-m", "fleet.cli", "host", *options]
    machine.process = Process("host", command, stack.env, tmp_path / "host.log")
    stack.hosts[machine.name] = machine.process
    machine.process.start()
    machine.until_ready()
    assert machine.seen()["labels"] == {"a": "b"}
    second = joined(stack, tmp_path, "--token", token, "--server", stack.settings.relay_for_hosts)
    assert second.returncode == 1
    assert "used" in second.stderr
    assert "holdfast join-token create" in second.stderr


def test_an_expired_token_is_refused(stack: Stack, tmp_path: Path) -> None:
    token = new_token(stack, ttl_s=1)
    time.sleep(1.1)
    ended = joined(stack, tmp_path, "--token", token, "--server", stack.settings.relay_for_hosts)
    assert ended.returncode == 1
    assert "expired" in ended.stderr


# -- copies --------------------------------------------------------------------------------------------------------


def test_a_copy_of_the_disk_on_another_machine_does_not_run(stack: Stack, machine: Machine, tmp_path: Path) -> None:
    machine.join(ODD_BOARD="one")
    shutil.copytree(machine.folder, tmp_path / "hosts" / machine.name)
    env = stack.env | machine.env | {"HOLDFAST_HOME": str(tmp_path), "ODD_BOARD": "two"}
    copy = subprocess.run([*ODD, "host"], env=env, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert copy.returncode == 1
    assert "this is a copy of its disk" in copy.stderr
    assert "holdfast join-token create" in copy.stderr
    assert machine.seen()["state"] == "ready"


def test_a_copy_that_looks_like_the_same_machine_gets_no_work_and_no_engine(
    stack: Stack, machine: Machine, small_model: Path, tmp_path: Path
) -> None:
    machine.join()
    machine.deploy(small_model)
    [engine] = machine.engines()
    shutil.copytree(machine.folder, tmp_path / "hosts" / machine.name)
    (tmp_path / "models").mkdir()
    env = stack.env | machine.env | {"HOLDFAST_HOME": str(tmp_path), "ODD_BOOT": "the copy's"}
    copy = Process("copy", [*ODD, "host"], env, tmp_path / "copy.log")
    copy.start()
    try:
        eventually(
            lambda: copy.log().count("another machine") >= 2, within=40, what="the copy is refused, and asks again"
        )
        assert "taking work" not in copy.log()
        assert "adopted" not in copy.log()
        assert "copy of this one's disk" in machine.seen()["message"]
        assert machine.seen()["state"] == "ready"
        assert machine.engines() == [engine]
        assert ask(stack, machine.name)
    finally:
        assert copy.stop() == 0
    assert machine.engines() == [engine]


# -- the same machine again ----------------------------------------------------------------------------------------


def test_a_machine_that_was_rebooted_comes_back_by_itself(stack: Stack, machine: Machine, small_model: Path) -> None:
    machine.join(ODD_BOOT="first")
    machine.deploy(small_model)
    [engine] = machine.engines()
    assert machine.process is not None
    machine.process.kill()
    psutil.Process(engine).kill()
    machine.start(ODD_BOOT="second")
    eventually(lambda: set(machine.engines()) - {engine}, within=SILENT_S + 40)
    machine.until_ready()
    stack.until_ready(machine.name)
    eventually(lambda: ask(stack, machine.name), within=20)


@pytest.mark.parametrize("version", ["0.1.9", "0.2.0"])
def test_a_host_is_upgraded_under_its_engines(stack: Stack, machine: Machine, small_model: Path, version: str) -> None:
    machine.join()
    machine.deploy(small_model)
    [engine], before = machine.engines(), stack.instances(machine.name)
    assert machine.process is not None
    assert machine.process.stop() == 0
    assert machine.engines() == [engine]
    machine.start(ODD_VERSION=version)
    machine.until(lambda h: h["version"] == version)
    machine.until_ready()
    eventually(lambda: ask(stack, machine.name), within=20)
    assert machine.engines() == [engine]
    [after] = stack.instances(machine.name)
    assert {k: after[k] for k in ("id", "fence", "restarts", "pid")} == {
        k: before[0][k] for k in ("id", "fence", "restarts", "pid")
    }


def test_a_version_that_does_not_fit_is_refused_and_its_engines_run_on(
    stack: Stack, machine: Machine, small_model: Path
) -> None:
    machine.join()
    machine.deploy(small_model)
    [engine] = machine.engines()
    assert machine.process is not None
    machine.process.stop()
    wrong = machine.start(ODD_VERSION="0.9.0")
    eventually(lambda: not psutil.pid_exists(wrong.pid) or psutil.Process(wrong.pid).status() == "zombie", within=30)
    assert wrong.stop() == 1
    assert "more than one minor release newer than the control plane" in wrong.log()
    assert machine.engines() == [engine]
    machine.start()
    machine.until_ready()
    eventually(lambda: ask(stack, machine.name), within=20)
    assert machine.engines() == [engine]


def test_a_host_whose_address_changes_is_reached_at_the_new_one(
    stack: Stack, machine: Machine, small_model: Path, tmp_path: Path
) -> None:
    address = tmp_path / "address"
    address.write_text("127.0.0.1")
    machine.join(ODD_ADDRESS=str(address), HOLDFAST_HOST_BIND="0.0.0.0")
    machine.deploy(small_model)
    [engine], pid = machine.engines(), machine.process and machine.process.pid
    with steady_load(stack, machine.name) as load:
        address.write_text("127.0.0.2")
        machine.until(lambda h: h["address"] == "127.0.0.2")
        so_far = load.answered()
        eventually(lambda: load.answered() > so_far + 20)
    load.assert_unharmed()
    assert machine.engines() == [engine]
    assert machine.process is not None
    assert machine.process.pid == pid


def test_a_relay_that_is_killed_costs_neither_a_request_nor_the_lease(
    stack: Stack, machine: Machine, small_model: Path
) -> None:
    machine.join()
    machine.deploy(small_model)
    [engine] = machine.engines()
    with steady_load(stack, machine.name) as load:
        for _ in range(3):
            stack.relay.kill()
            killed = time.monotonic()
            stack.revive()
            away = time.monotonic() - killed
            seen = set()
            while time.monotonic() < killed + away + 5:
                seen.add(machine.seen()["state"])
                time.sleep(0.1)
            # A relay that a busy machine starts so slowly is away for longer than a lease is good for.
            assert seen == {"ready"} or (away > LEASE_S - 4 and "lost" not in seen), (seen, away, machine.log())
            machine.until_ready()
    load.assert_unharmed()
    assert machine.engines() == [engine]
