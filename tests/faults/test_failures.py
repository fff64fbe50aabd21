"""Engines that cannot run: the right class and hint, no more attempts than allowed, and nobody beside them notices."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.invariants import Checker, engines
from tests.faults.load import steady_load
from tests.stack import Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TWICE = {"max_failures": 2, "window_s": 600, "failures_per_host": 100}
SMALL: dict[str, Any] = {"max_model_len": 256, "concurrency": 1, "resources": {"cpu_threads": 1}}

HOLD_A_PORT = "import socket,sys,time; s=socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(3)"
SCRIPT = """#!/bin/sh
# The real engine, after something has gone wrong, as $MISHAP says.
case "$1" in
    --version) echo 'version: 1 (mishap)'; exit ;;
    --list-devices) exit ;;
esac
flag=$(dirname "$0")/$MISHAP
for argument; do
    case "$last" in
        --port) port=$argument ;;
        --model) model=$argument ;;
    esac
    last=$argument
done
case "$MISHAP" in
    crash) if [ -e "$flag" ]; then echo 'something is wrong'; exit 3; fi ;;
    model_deleted) case "$model" in */soon-gone.gguf) rm "$model" ;; esac ;;
    model_damaged) case "$model" in */soon-damaged.gguf) cp "$model.left" "$model" ;; esac ;;
    disk_full) cp /proc/cpuinfo /dev/full || exit 1 ;;
    port_taken)
        if [ ! -e "$flag" ]; then
            touch "$flag"
            env -i {python} -c "{hold}" "$port" &
            while ! grep -qi ":$(printf %04X "$port") " /proc/net/tcp; do sleep 0.01; done
        fi ;;
esac
exec {engine} "$@"
"""


@pytest.fixture(scope="module")
def mishaps(tmp_path_factory: pytest.TempPathFactory, llama_server_binary: Path) -> Path:
    """An engine of which ``env.MISHAP`` says what goes wrong; a file of that name beside it says whether it does."""
    program = tmp_path_factory.mktemp("mishaps") / "llama-server"
    program.write_text(
        SCRIPT.replace("{python}", sys.executable)
        .replace("{hold}", HOLD_A_PORT)
        .replace("{engine}", str(llama_server_binary))
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture(scope="module")
def failing_stack(new_stack: Callable[..., Stack], mishaps: Path, small_model: Path) -> Stack:
    """Host ``a`` serves ``steady``, which nothing may disturb; host ``m`` is where things go wrong."""
    stack = new_stack()
    stack.add_host("a", HOLDFAST_HOST_LABELS='{"for": "steady"}')
    stack.add_host("m", HOLDFAST_HOST_LABELS='{"for": "mishaps"}', HOLDFAST_LLAMA_SERVER=str(mishaps))
    stack.deploy("steady", str(small_model), placement={"host_selector": {"for": "steady"}}, **SMALL)
    stack.until_ready("steady")
    return stack


@contextmanager
def nobody_notices(stack: Stack) -> Iterator[None]:
    """``steady`` answers every request, with the same engine."""
    before = [e for e in engines(stack) if e.instance_id.startswith("steady/")]
    assert len(before) == 1
    with steady_load(stack, "steady", clients=1) as load:
        yield
        eventually(lambda: load.answered() >= 10, what="the others are asked too")
    load.assert_unharmed(at_least=10)
    assert [e for e in engines(stack) if e.instance_id.startswith("steady/")] == before


@pytest.fixture
def stack(failing_stack: Stack) -> Iterator[Stack]:
    """What fails is deleted after each test; then everything must be as it was."""
    yield failing_stack
    if failing_stack.http.delete("/deployments/failing").status_code != 404:
        failing_stack.until_gone("failing")
    checker = Checker(failing_stack)
    try:
        checker.settled()
    finally:
        checker.close()


def deploy(stack: Stack, model: Path, mishap: str, restart: dict[str, Any], **more: Any) -> None:
    where = {"placement": {"host_selector": {"for": "mishaps"}}, "engine_version": "1-mishap"}
    spec = {**SMALL, "restart": restart, "env": {"MISHAP": mishap}, **where, **more}
    stack.deploy("failing", str(model), **spec)


def failed(stack: Stack, within: float = 60.0) -> dict[str, Any]:
    """The replica, once no further attempt is made; its deployment says the same."""

    def given_up() -> dict[str, Any] | None:
        return next((i for i in stack.instances("failing") if i["state"] == "failed"), None)

    try:
        instance = eventually(given_up, within=within, what="the replica has failed")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{json.dumps(stack.instances('failing'), indent=1)}\n{stack.logs()}") from None
    assert instance is not None
    assert instance["endpoint"] is None
    status = eventually(lambda: (s := stack.deployment("failing")["status"])["phase"] == "failed" and s)
    assert status["hint"], "people who look at the deployment are told what to do"
    return instance


def test_crash_loop_ends_with_its_budget_and_goes_on_when_a_person_approves(
    stack: Stack, mishaps: Path, small_model: Path
) -> None:
    wrong = mishaps.with_name("crash")
    wrong.touch()
    with nobody_notices(stack):
        deploy(stack, small_model, "crash", TWICE)
        instance = failed(stack)
        assert instance["restarts"] == 2, "no more attempts than allowed"
        assert "gave up after 3 failures" in instance["message"]
        assert "exited with 3" in instance["message"]
        assert "retry" in instance["hint"]
        wrong.unlink()
        stack.ok(stack.http.post(f"/instances/{instance['id']}/approve-retry"))
        stack.until_ready("failing")


def test_model_deleted_between_placement_and_start_is_said_and_not_tried_for_ever(
    stack: Stack, tmp_path: Path, small_model: Path
) -> None:
    """llama.cpp logs in a thread of its own: ending at once, it may take its last words with it."""
    model = tmp_path / "soon-gone.gguf"
    shutil.copyfile(small_model, model)
    with nobody_notices(stack):
        deploy(stack, model, "model_deleted", TWICE)
        instance = failed(stack)
        assert instance["restarts"] <= 2
        if "not_found" in instance["message"]:
            assert "path on this host" in instance["hint"]
        else:
            assert instance["restarts"] == 2, instance
            assert "gave up after 3 failures" in instance["message"]


DAMAGES = {"cut off": b"", "overwritten": b"GGUF" + b"\xff" * 4096}
"""What is left of a model."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model_is_refused_at_once(stack: Stack, tmp_path: Path, small_model: Path, damage: str) -> None:
    model = tmp_path / "damaged.gguf"
    with small_model.open("rb") as whole:
        model.write_bytes(DAMAGES[damage] or whole.read(20 << 20))
    spec = {"model": {"path": str(model)}, "placement": {"host_selector": {"for": "mishaps"}}}
    answer = stack.http.post("/deployments", json={"name": "failing", "spec": spec})
    problem = answer.json()
    assert (answer.status_code, problem["field"]) == (422, "spec.model.path"), problem
    assert "damaged.gguf is" in problem["detail"]
    assert problem["hint"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_model_damaged_after_it_was_looked_at_is_tried_once_more_and_then_said(
    stack: Stack, tmp_path: Path, small_model: Path, damage: str
) -> None:
    model = tmp_path / "soon-damaged.gguf"
    shutil.copyfile(small_model, model)
    (tmp_path / "soon-damaged.gguf.left").write_bytes(DAMAGES[damage] or small_model.read_bytes()[: 20 << 20])
    with nobody_notices(stack):
        deploy(stack, model, "model_damaged", {**TWICE, "max_failures": 5})
        instance = failed(stack)
        assert "corrupt_file" in instance["message"]
        assert instance["restarts"] == 1
        assert "copy it again" in instance["hint"]


def test_taken_port_costs_one_attempt(stack: Stack, small_model: Path) -> None:
    with nobody_notices(stack):
        deploy(stack, small_model, "port_taken", TWICE)
        stack.until_ready("failing")
        [instance] = stack.instances("failing")
        assert instance["restarts"] == 1
        # As "(port)", unless the engine ended before its words were out.
        assert "engine exited with 1" in stack.hosts["m"].log()


def test_full_disk_is_said(stack: Stack, small_model: Path) -> None:
    with nobody_notices(stack):
        deploy(stack, small_model, "disk_full", {**TWICE, "max_failures": 1})
        instance = failed(stack)
        assert "disk_full" in instance["message"]
        assert instance["restarts"] == 1
        assert "Free disk space" in instance["hint"]


def test_context_that_does_not_fit_is_said(stack: Stack, small_model: Path) -> None:
    """The real engine, asked for terabytes, while the claim says that it needs little."""
    with nobody_notices(stack):
        memory = {"cpu_threads": 1, "memory_bytes": 64 << 20}
        restart, quick = {**TWICE, "max_failures": 0}, {"engine_args": ["-fit", "off"]}
        deploy(stack, small_model, "none", restart, max_model_len=100_000_000, resources=memory, **quick)
        instance = failed(stack)
        assert "oom_kv" in instance["message"]
        assert instance["restarts"] == 0
        assert "spec.max_model_len" in instance["hint"]


def test_engine_that_cannot_be_installed_is_said(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, small_model: Path
) -> None:
    """A host without the engine and without a package index."""
    home = tmp_path_factory.mktemp("bare-host")
    labels = '{"for": "nothing-installed"}'
    if "bare" not in stack.hosts:
        stack.add_host("bare", HOLDFAST_HOME=str(home), HOLDFAST_HOST_LABELS=labels, PIP_NO_INDEX="1")
    with nobody_notices(stack):
        where = {"host_selector": {"for": "nothing-installed"}}
        deploy(stack, small_model, "none", {**TWICE, "max_failures": 0}, placement=where, engine_version="0.1.2")
        instance = failed(stack, within=90)
        assert "not_installed" in instance["message"]
        assert instance["restarts"] == 0
        assert "cannot install" in instance["hint"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("left out: a host with a full disk (mounting one needs root)")
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"left out: a host with a full disk ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_host_whose_disk_is_full_keeps_serving_and_replaces_an_engine_that_dies(
    stack: Stack, small_disk: Path, mishaps: Path, small_model: Path
) -> None:
    """Its own records cannot be written either."""
    labels, engine = '{"for": "small-disk"}', str(mishaps)
    host = stack.add_host(
        "full", HOLDFAST_HOME=str(small_disk), HOLDFAST_HOST_LABELS=labels, HOLDFAST_LLAMA_SERVER=engine
    )
    try:
        with nobody_notices(stack):
            deploy(
                stack,
                small_model,
                "none",
                {**TWICE, "max_failures": 50},
                placement={"host_selector": {"for": "small-disk"}},
            )
            stack.until_ready("failing")
            [before] = stack.instances("failing")
            filler = small_disk / "filler"
            _fill(filler)
            with steady_load(stack, "failing", clients=1) as load:
                eventually(lambda: load.answered() >= 10, what="it serves on")
            load.assert_unharmed(at_least=10)
            os.kill(before["pid"], 9)
            again = eventually(lambda: _served_by_another(stack, before), within=60, what="another engine serves")
            assert again["fence"] > before["fence"]
            filler.unlink()
    finally:
        stack.ok(stack.http.patch("/deployments/failing", json={"spec": {"replicas": 0}}))
        eventually(lambda: stack.instances("failing") == [], within=60, what="nothing is left on the full host")
        host.kill()
        del stack.hosts["full"]


def _served_by_another(stack: Stack, before: dict[str, Any]) -> dict[str, Any]:
    [now] = stack.instances("failing")
    return now if now["state"] == "ready" and now["pid"] not in (None, before["pid"]) else {}


def _fill(path: Path) -> None:
    """Until the disk has no byte left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
