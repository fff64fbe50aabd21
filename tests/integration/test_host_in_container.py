"""A host in a container, by the command that is printed for it: its engines run in containers beside it.

The image is not the one of ``deploy/Dockerfile``, for which much would have to be fetched: Python and the system are
mounted from this machine.
"""

import json
import os
import shutil
import signal
import site
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker_fixtures import OwnEngine, build_image
from tests.stack import ROOT, Stack, eventually
from tests.stack_fixtures import asker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("docker") is None, reason="needs the program docker, which the command calls"),
]

IMAGE = "holdfast-test/host:1"
NAME = "holdfast-host"
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64")


@pytest.fixture
def home(own_docker_engine: OwnEngine, tmp_path: Path) -> Iterator[Path]:
    """Of the host, whose container is gone after the test."""
    folder = tmp_path / "host"
    (folder / "models").mkdir(parents=True)
    yield folder
    for container in own_docker_engine.api.containers(all=True, filters={"name": NAME}):
        own_docker_engine.api.remove_container(container["Id"], force=True)


@pytest.fixture
def stack(home: Path, new_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """Cleared while its host still runs."""
    assert home.is_dir()
    made = new_stack(HOLDFAST_HOST_IMAGE=IMAGE)
    yield made
    made.delete_everything()


def system_mounts() -> str:
    """What Python needs to run in an empty image."""
    folders = {*_SYSTEM, sys.base_prefix, sys.prefix, str(ROOT), *site.getsitepackages()}
    present = sorted(folder for folder in folders if Path(folder).is_dir())
    outermost = [f for f in present if not any(f.startswith(f"{other}/") for other in present)]
    return " ".join(f"-v {folder}:{folder}:ro" for folder in outermost)


def here(command: str, engine: OwnEngine, home: Path) -> str:
    """The printed command, for this test's Docker engine and folder."""
    changes = {
        "docker run ": f"docker run {system_mounts()} ",
        "/var/run/docker.sock:": f"{engine.url.removeprefix('unix://')}:",
        "/var/lib/holdfast": str(home),
    }
    for old, new in changes.items():
        assert old in command
        command = command.replace(old, new)
    return command


def host_container(engine: OwnEngine) -> dict[str, Any]:
    return dict(engine.api.inspect_container(NAME))


def engines(engine: OwnEngine) -> list[str]:
    return [c["Id"] for c in engine.api.containers(filters={"label": "holdfast.instance"})]


def test_host_in_a_container_joins_runs_engines_beside_it_and_adopts_them_when_it_is_killed(
    stack: Stack, home: Path, own_docker_engine: OwnEngine, llama_image: str, small_model: Path
) -> None:
    start = f"ENV PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1\n"
    start += f"ENTRYPOINT {json.dumps([sys.executable, '-m', 'fleet.cli'])}\n"
    build_image(own_docker_engine, IMAGE, {}, start)
    made = stack.ok(stack.http.post("/join-tokens", json={"description": "container"}))
    command = here(made["commands"]["container"], own_docker_engine, home)
    env = {**os.environ, "DOCKER_HOST": own_docker_engine.url}
    subprocess.run(["sh", "-c", command], env=env, check=True, timeout=60)

    def registered() -> list[dict[str, Any]]:
        return [h for h in stack.ok(stack.http.get("/hosts"))["items"] if h["state"] == "ready"]

    try:
        [host] = eventually(registered, within=60, what="the host is ready")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{own_docker_engine.api.logs(NAME).decode()[-3000:]}") from None
    shutil.copy(small_model, home / "models" / "smol.gguf")
    stack.deploy("smol", "smol.gguf", runtime="docker", container={"image": llama_image})
    stack.until_ready("smol")
    ask = asker(stack)
    assert "Paris" in ask("smol")
    [engine], [instance] = engines(own_docker_engine), stack.instances("smol")
    assert instance["host_id"] == host["id"]
    assert instance["pid"] == own_docker_engine.api.inspect_container(engine)["State"]["Pid"]
    [record] = home.glob("hosts/*/engines/*.json")
    assert json.loads(record.read_text())["process"]["began"], "the host sees its process, too"

    os.kill(host_container(own_docker_engine)["State"]["Pid"], signal.SIGKILL)
    adopted = "adopted instance_id="
    eventually(
        lambda: adopted.encode() in own_docker_engine.api.logs(NAME), within=60, what="the next host adopts its engine"
    )
    assert "Paris" in ask("smol")
    assert host_container(own_docker_engine)["RestartCount"] == 1

    own_docker_engine.api.stop(NAME)
    assert host_container(own_docker_engine)["State"]["ExitCode"] == 0, "it ends by itself when it is told to"
    own_docker_engine.api.start(NAME)
    eventually(
        lambda: own_docker_engine.api.logs(NAME).count(adopted.encode()) == 2, within=60, what="it is adopted again"
    )
    assert "Paris" in ask("smol")
    stack.until_ready("smol")
    assert engines(own_docker_engine) == [engine], "the same container throughout"
    assert stack.instances("smol")[0]["restarts"] == 0
    assert "llama" in stack.http.get(f"/instances/{instance['id']}/logs").text
