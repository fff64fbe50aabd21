"""Most hosts fall silent at once: what serves goes on, and nothing is replaced without a person."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.forward import Cable
from tests.faults.load import steady_load
from tests.stack import Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUICK = {"HOLDFAST_TIMINGS": '{"lease_heartbeat": 5, "lease_grace": 3}'}


def lease(stack: Stack, host: str) -> str:
    """What it holds, on its disk. Until it holds one it may be away for a minute before anybody worries."""
    return (stack.home / "hosts" / host / "lease.json").read_text()


@pytest.fixture
def cables() -> Iterator[dict[str, Cable]]:
    made: dict[str, Cable] = {}
    yield made
    for cable in made.values():
        cable.close()


def test_replicas_stay_when_most_hosts_fall_silent_and_move_when_a_person_says_so(
    new_stack: Callable[..., Stack], small_model: Path, cables: dict[str, Cable]
) -> None:
    stack = new_stack(**QUICK)
    for name in "abc":
        cables[name] = Cable(stack.settings.relay_port)
        stack.add_host(name, HOLDFAST_SERVER=f"https://127.0.0.1:{cables[name].port}")
    stack.deploy("smol", str(small_model))
    stack.until_ready("smol")
    [before] = stack.instances("smol")
    ids = {stack.host(name)["id"]: name for name in "abc"}
    served_by = ids[before["host_id"]]
    silent = [served_by, next(name for name in "abc" if name != served_by)]

    def fall_silent() -> None:
        for name in silent:
            cables[name].cut()  # from the relay only: gateways still reach them
        eventually(lambda: stack.host(served_by)["replacement_paused"], within=40, what="replacement paused")

    with steady_load(stack, "smol", pause=0.25) as load:
        fall_silent()
        paused = stack.host(served_by)
        assert paused["state"] == "lost"
        assert "2 of 3 hosts are unhealthy at once" in paused["message"]
        assert stack.instances("smol")[0]["fence"] == before["fence"], "nobody was told"
        void = {name: lease(stack, name) for name in silent}
        # The one that serves first: alone among the lost it would be replaced, and rightly.
        for name in silent:
            cables[name].mend()
            eventually(lambda n=name: lease(stack, n) != void[n], within=60, what=f"next lease of {name}")  # type: ignore[misc]
            assert stack.host(name)["state"] == "ready"
    load.assert_unharmed()
    assert not stack.host(served_by)["replacement_paused"]
    [after] = stack.instances("smol")
    assert (after["pid"], after["fence"], after["restarts"]) == (before["pid"], before["fence"], 0)
    assert list(stack.engine_pids()) == [before["pid"]]

    fall_silent()
    answer = stack.ok(stack.http.post("/hosts/approve-replacement"))
    assert answer == {"hosts": [before["host_id"]]}
    eventually(lambda: ids.get(stack.instances("smol")[0]["host_id"]) not in {None, *silent}, within=60, what="moved")
    stack.until_ready("smol")
