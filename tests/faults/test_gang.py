"""A model over two hosts in networks of their own, each too small for it alone: real engines, real workers, one
replica."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.netns import Network, StackOnNetwork, new_network, why_not
from tests.rpc_engine import rpc_llama_server  # noqa: F401 - a fixture
from tests.stack import eventually
from tests.stack_fixtures import asker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PATIENT = {"HOLDFAST_TIMINGS": '{"lease_heartbeat": 30, "lease_grace": 30}'}
"""Nobody is lost here, however long a worker takes to start again."""
RAM = 440 << 20
"""Of each host: the model takes 476 MiB on one, and 400 MiB on each of two."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(f"left out: a model that spans hosts ({reason})")
    with new_network() as made:
        yield made


@pytest.fixture
def gang(
    network: Network,
    rpc_llama_server: Path,  # noqa: F811 - that is how fixtures are asked for
    engines_folder: Path,
    small_model: Path,
    tmp_path: Path,
) -> Iterator[StackOnNetwork]:
    """Hosts ``a``, which leads, and ``b``, with a replica over both that serves as ``smol``."""
    stack = StackOnNetwork(tmp_path / "stack", engines=engines_folder, network=network, env=PATIENT)
    try:
        stack.start()
        for name in ("a", "b"):
            way = network.add()
            stack.add_host_on(
                way,
                name,
                HOLDFAST_HOME=str(disk_of(stack, tmp_path, name)),
                HOLDFAST_LLAMA_SERVER=str(rpc_llama_server),
                HOLDFAST_HOST_FABRIC_ADDRESS=way.address,
                HOLDFAST_HOST_RESERVED_RAM_BYTES=str(psutil.virtual_memory().total - RAM),
            )
        stack.deploy("smol", str(small_model), max_model_len=2048, concurrency=2, placement={"multi_host": True})
        stack.until_ready("smol", within=120)
        yield stack
    finally:
        stack.stop()


def disk_of(stack: StackOnNetwork, folder: Path, name: str) -> Path:
    """A home of its own, as another machine has. What the stack wants to know of the host is linked from its own."""
    files = folder / name / "hosts" / name
    files.mkdir(parents=True)
    (stack.home / "hosts").mkdir(exist_ok=True)
    (stack.home / "hosts" / name).symlink_to(files)
    return folder / name


def members(stack: StackOnNetwork) -> dict[str, int]:
    """Process ids by program."""
    return {psutil.Process(pid).name(): pid for pid in stack.engine_pids()}


def booked(stack: StackOnNetwork) -> list[int]:
    return [stack.host(name)["ram_used_bytes"] for name in ("a", "b")]


def serves(stack: StackOnNetwork, ask: Callable[[str], str]) -> dict[str, Any] | None:
    """The instance, if it is ready and answers."""
    [known] = stack.instances("smol")
    return known if known["state"] == "ready" and "Paris" in ask("smol") else None


def test_a_model_over_two_hosts_is_served_recovered_as_a_whole_and_deleted(gang: StackOnNetwork) -> None:
    stack, ask = gang, asker(gang)
    first = eventually(lambda: serves(stack, ask), within=30, what="an answer")
    before = members(stack)
    assert set(before) == {"llama-server", "ggml-rpc-server"}
    both = booked(stack)
    assert both[0] == both[1] > 0, "both hosts have booked their part"
    assert psutil.Process(before["ggml-rpc-server"]).memory_info().rss > 50 << 20, "the weights are on the other host"

    os.kill(before["ggml-rpc-server"], signal.SIGKILL)
    after = eventually(
        lambda: (i := serves(stack, ask)) and i["fence"] > first["fence"] and i, within=90, what="recovered"
    )
    now = members(stack)
    assert set(now) == set(before)
    assert not set(now.values()) & set(before.values()), "all members were started anew"
    assert (after["restarts"], booked(stack)) == (1, both)

    os.kill(now["llama-server"], signal.SIGKILL)
    eventually(lambda: (i := serves(stack, ask)) and i["fence"] > after["fence"], within=90, what="recovered again")
    assert not set(members(stack).values()) & set(now.values())

    stack.ok(stack.http.delete("/deployments/smol"))
    stack.until_gone("smol")
    assert members(stack) == {}
    assert booked(stack) == [0, 0]


def test_restarts_of_what_looks_after_a_gang_are_no_event_for_it(gang: StackOnNetwork) -> None:
    stack, ask = gang, asker(gang)
    known = eventually(lambda: serves(stack, ask), within=30, what="an answer")
    before = members(stack)
    for process in (stack.hosts["b"], stack.hosts["a"], stack.controller):
        process.kill()
        process.start()
        after = eventually(lambda: serves(stack, ask), within=60, what="an answer")
        assert (after["fence"], members(stack)) == (known["fence"], before), f"after {process.name}"
    eventually(lambda: {stack.host(n)["state"] for n in ("a", "b")} == {"ready"}, within=60, what="both are back")

    os.kill(before["ggml-rpc-server"], signal.SIGKILL)  # which those who adopted it see
    eventually(lambda: (i := serves(stack, ask)) and i["fence"] > known["fence"], within=90, what="recovered")
    assert not set(members(stack).values()) & set(before.values())
