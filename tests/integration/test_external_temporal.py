"""On a Temporal cluster that is there already, with a namespace of its own and without our search attributes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.temporal import connect
from fleet.temporal_server import find_binary
from tests.stack import Process, Stack, eventually, free_ports
from tests.stack_fixtures import asker

pytestmark = pytest.mark.slow


async def test_a_model_is_served_on_a_cluster_of_somebody_else(
    new_stack: Callable[..., Stack], small_model: Path, tmp_path: Path
) -> None:
    [port] = free_ports(1)
    argv = [str(find_binary()), "server", "start-dev", "--headless", "--port", str(port), "--namespace", "models"]
    argv += ["--log-level", "error"]
    cluster = Process("cluster", argv, {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, tmp_path / "cluster.log")
    cluster.start()
    try:
        stack = new_stack(HOLDFAST_TEMPORAL_ADDRESS=f"127.0.0.1:{port}", HOLDFAST_TEMPORAL_NAMESPACE="models")
        stack.add_host("a")
        stack.deploy("smol", str(small_model))
        stack.until_ready("smol")
        assert "Paris" in asker(stack)("smol")
        assert "/namespaces/models/" in stack.deployment("smol")["status"]["workflow_url"]

        client = await connect(stack.settings)
        found = [w.id async for w in client.list_workflows("HoldfastState = 'ready' and HoldfastKind = 'deployment'")]
        assert found == ["deployment/smol"]
        stack.delete_everything()
        eventually(lambda: stack.engine_pids() == {}, within=30)
    finally:
        cluster.kill()
