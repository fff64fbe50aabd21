"""A replica finds enough room, but not in one place, with real processes: another one moves, and nobody is cut off."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.load import steady_load
from tests.stack import Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SOON = {"HOLDFAST_TIMINGS": '{"defragment_after": 1}'}


@pytest.fixture(scope="module")
def shared_stack(new_stack: Callable[..., Stack]) -> Stack:
    stack = new_stack(**SOON)
    stack.add_host("a")
    stack.add_host("b")
    return stack


def deploy(stack: Stack, name: str, model: Path, share: float, *, ready: bool = True) -> None:
    """With so much of one host's memory."""
    size = int(stack.host("a")["ram_allocatable_bytes"] * share)
    stack.deploy(name, str(model), resources={"cpu_threads": 1, "memory_bytes": size})
    if ready:
        stack.until_ready(name)


def where(stack: Stack, name: str) -> str:
    [instance] = stack.instances(name)
    return str(instance["host_id"])


def test_a_replica_moves_so_that_another_finds_room_and_none_of_its_requests_fails(
    stack: Stack, small_model: Path, ask: Callable[[str], str]
) -> None:
    deploy(stack, "stays", small_model, 0.4)
    deploy(stack, "filler", small_model, 0.61)
    deploy(stack, "moves", small_model, 0.35)
    assert where(stack, "moves") == where(stack, "filler") != where(stack, "stays")
    stack.ok(stack.http.delete("/deployments/filler"))
    stack.until_gone("filler")
    before = where(stack, "moves")
    with steady_load(stack, "moves", clients=1) as load:
        deploy(stack, "large", small_model, 0.75, ready=False)
        stack.until_ready("large", within=180)
        eventually(lambda: load.answered() >= 20, within=60, what="it is asked on")
    load.assert_unharmed()
    assert where(stack, "large") == before
    assert where(stack, "moves") == where(stack, "stays")
    assert "Paris" in ask("large")
    [begun] = stack.ok(stack.http.get("/defragmentations"))["items"]
    assert begun["deployment"] == "large"
    ended = eventually(
        lambda: (d := stack.ok(stack.http.get("/defragmentations"))["items"][0])["state"] == "ended" and d,
        within=60,
        what="it has ended",
    )
    assert "has its room" in ended["message"]
