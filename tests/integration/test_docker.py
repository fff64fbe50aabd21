"""A deployment in a container, end to end: real Docker engine, real image, real model, through the gateway."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker_fixtures import DockerEngine, OwnEngine, Registry
from tests.stack import Stack, eventually
from tests.stack_fixtures import asker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack(new_stack: Callable[..., Stack], docker_engine: DockerEngine) -> Stack:
    made = new_stack()
    made.add_host("a", HOLDFAST_HOST_DOCKER=docker_engine.url)
    return made


@pytest.fixture
def model(stack: Stack, small_model: Path) -> str:
    target = stack.home / "models" / "smol.gguf"
    if not target.exists():
        shutil.copy(small_model, target)
    return target.name


@pytest.fixture
def deploy(stack: Stack, model: str, docker_engine: DockerEngine) -> Iterator[Callable[..., None]]:
    """Deploys into a container; deleted after the test, and nothing of it may be left then."""

    def one(name: str, image: str, **spec: Any) -> None:
        container = {"image": image, **spec.pop("container", {})}
        stack.deploy(name, model, runtime="docker", container=container, **spec)

    yield one
    stack.delete_everything()
    eventually(lambda: containers(stack, docker_engine) == [], what="no container is left")


def containers(stack: Stack, engine: DockerEngine, *, all_: bool = True) -> list[dict[str, Any]]:
    hosts = {json.loads(f.read_text())["host_id"] for f in stack.home.glob("hosts/*/identity.json")}
    found = engine.api.containers(all=all_, filters={"label": "holdfast.host"})
    return [c for c in found if c["Labels"]["holdfast.host"] in hosts]


def log(stack: Stack, instance: str, **params: Any) -> str:
    return stack.http.get(f"/instances/{instance}/logs", params=params).text


def test_deployment_in_a_container_answers_and_survives_its_host_and_docker(
    stack: Stack,
    deploy: Callable[..., None],
    own_docker_engine: OwnEngine,
    registry: Registry,
    llama_image: str,
) -> None:
    image = registry.push(own_docker_engine, llama_image, "engines/llama-server:1")
    deploy("smol", image)
    stack.until_ready("smol")
    ask = asker(stack)
    assert "Paris" in ask("smol")
    [container] = containers(stack, own_docker_engine)
    [instance] = stack.instances("smol")
    assert container["Labels"]["holdfast.instance"] == instance["id"]
    assert instance["pid"] == own_docker_engine.api.inspect_container(container["Id"])["State"]["Pid"]
    assert "llama" in log(stack, instance["id"])
    told = own_docker_engine.api.inspect_container(container["Id"])["Args"]
    sizing, measured = instance["sizing"], instance["measured"]
    assert told[told.index("--ctx-size") + 1] == str(sizing["context"] * sizing["sequences"])
    assert abs(sizing["terms"]["weights"] - measured["weights_bytes"]) <= 0.05 * measured["weights_bytes"]
    assert abs(sizing["kv_bytes"] - measured["kv_bytes"]) <= 0.05 * measured["kv_bytes"]

    host = stack.hosts["a"]
    host.kill()
    host.start()
    eventually(lambda: "Paris" in ask("smol"), what="the next host process has adopted it")
    stack.until_ready("smol")

    own_docker_engine.kill()
    own_docker_engine.start()
    eventually(lambda: "Paris" in ask("smol"), what="it serves when Docker is back")
    stack.until_ready("smol")
    assert [c["Id"] for c in containers(stack, own_docker_engine)] == [container["Id"]], "the same container"
    assert stack.instances("smol")[0]["restarts"] == 0


def test_container_killed_from_outside_is_replaced_and_both_logs_are_kept(
    stack: Stack, deploy: Callable[..., None], llama_image: str, docker_engine: DockerEngine
) -> None:
    deploy("smol", llama_image)
    stack.until_ready("smol")
    [instance] = stack.instances("smol")
    os.kill(instance["pid"], signal.SIGKILL)
    eventually(lambda: stack.instances("smol")[0]["restarts"] == 1, what="its end is noticed")
    eventually(lambda: "Paris" in asker(stack)("smol"), what="another one serves")
    stack.until_ready("smol")
    assert len(containers(stack, docker_engine)) == 1
    assert "llama" in log(stack, instance["id"], attempt=1)
    assert "llama" in log(stack, instance["id"], attempt=2)


def test_followed_log_goes_on_with_the_next_attempt(
    stack: Stack, deploy: Callable[..., None], llama_image: str
) -> None:
    deploy("smol", llama_image)
    stack.until_ready("smol")
    [instance] = stack.instances("smol")
    follow = [sys.executable, "-m", "fleet.cli", "logs", "-f", instance["id"]]
    env = {**stack.env, "HOLDFAST_API_KEY": stack.key}
    with subprocess.Popen(follow, env=env, stdout=subprocess.PIPE) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline(), "it has begun"
            os.kill(instance["pid"], signal.SIGKILL)
            for line in reader.stdout:
                if line == b"[attempt 2]\n":
                    break
            assert reader.stdout.readline(), "the next attempt talks"
        finally:
            reader.kill()


def test_image_that_does_not_exist_fails_with_class_and_hint(
    stack: Stack, deploy: Callable[..., None], registry: Registry
) -> None:
    deploy("smol", f"{registry.host}/no-such/engine:1")

    def failed() -> dict[str, Any] | None:
        return next((i for i in stack.instances("smol") if i["state"] == "failed"), None)

    instance = eventually(failed, what="it fails")
    assert "image" in instance["message"]
    assert "spec.container.image" in instance["hint"]


def test_host_network_serves_on_loopback(stack: Stack, deploy: Callable[..., None], llama_image: str) -> None:
    deploy("smol", llama_image, container={"network": "host"})
    stack.until_ready("smol")
    assert "Paris" in asker(stack)("smol")
