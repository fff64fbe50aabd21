"""A host is cut off from everything while it goes on, and comes back: what it did meanwhile must harm nobody.

Each host has network cards of its own (namespaces) and GPUs of its own (a driver library of ours, and llama.cpp on the
CPU that says it could use them), each card with room for one replica, so that any double claim shows.
"""

import json
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.http.dial import VANISHED_AFTER_S
from tests.faults.invariants import Engine, InvariantBroken, engines, watched
from tests.faults.load import Load, steady_load
from tests.faults.netns import Network, NetworkOfHost, StackOnNetwork, new_network, why_not
from tests.stack import eventually
from tests.unit.host.nvml import Nvml, build, card

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ONE_CARD = 100 << 30
"""Of the 141 GiB that each has."""
NOTICED_WITHIN_S = VANISHED_AFTER_S + 6.0
"""Gateways notice by themselves, before the host is declared lost; then the request is answered elsewhere."""
ZOMBIE_LIVES_AT_MOST_S = 30.0
QUICK = {"HOLDFAST_TIMINGS": '{"lease_heartbeat": 4, "lease_grace": 2}'}
"""For the control run, in which nothing is measured."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(f"left out: hosts that are cut off from the network ({reason})")
    with new_network() as made:
        yield made


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver library of ours."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def engine_for_cards(tmp_path_factory: pytest.TempPathFactory, llama_server_binary: Path) -> Path:
    """The real engine, which says of itself that it can use NVIDIA's cards and then runs on the CPU."""
    program = tmp_path_factory.mktemp("engine") / "llama-server"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "  --version) echo 'version: 1 (c0ffee)' ;;\n"
        "  --list-devices) echo '  CUDA0: NVIDIA H200' ;;\n"
        f'  *) exec {llama_server_binary} "$@" ;;\n'
        "esac\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture
def split_fleet(
    network: Network, cards: Path, engine_for_cards: Path, engines_folder: Path, tmp_path: Path
) -> Iterator[Callable[..., tuple[StackOnNetwork, dict[str, NetworkOfHost]]]]:
    """Makes a stack with hosts ``a`` and ``b``, two cards each; also answers the ways to them."""
    made: list[StackOnNetwork] = []

    def new(command_line: str = "fleet.cli", **env: str) -> tuple[StackOnNetwork, dict[str, NetworkOfHost]]:
        stack = StackOnNetwork(tmp_path / "stack", engines=engines_folder, network=network, env=env)
        stack.set_command_line(command_line)
        made.append(stack)
        stack.start()
        ways = {}
        for name in ("a", "b"):
            ways[name] = network.add()
            nvml = Nvml(cards, tmp_path / f"cards-of-{name}")
            nvml.has(*(card(number, uuid=f"GPU-{name}-{number}") for number in range(2)))
            gpus = {"LD_LIBRARY_PATH": str(nvml.folder), "FAKE_NVML": str(nvml.machine)}
            stack.add_host_on(ways[name], name, HOLDFAST_LLAMA_SERVER=str(engine_for_cards), **gpus)
        return stack, ways

    yield new
    for stack in made:
        stack.stop()


def test_host_cut_off_and_back_never_makes_two_of_one(
    split_fleet: Callable[..., tuple[StackOnNetwork, dict[str, NetworkOfHost]]], network: Network, small_model: Path
) -> None:
    stack, ways = split_fleet()
    _cut_off_and_return(stack, network, ways, small_model, ZOMBIE_LIVES_AT_MOST_S)


def test_without_fences_the_same_checks_see_what_goes_wrong(
    split_fleet: Callable[..., tuple[StackOnNetwork, dict[str, NetworkOfHost]]], network: Network, small_model: Path
) -> None:
    stack, ways = split_fleet("tests.faults.unfenced", **QUICK)
    with pytest.raises(InvariantBroken) as broken:
        _cut_off_and_return(stack, network, ways, small_model, zombie_lives_at_most=20.0)
    assert "the zombie is stopped" in str(broken.value.__cause__)
    seen = str(broken.value)
    assert "runs without a claim" in seen, "memory was given away while the zombie was in it"
    assert "but its claim is on" in seen, "the zombie was routed"


def _cut_off_and_return(
    stack: StackOnNetwork, network: Network, ways: dict[str, NetworkOfHost], model: Path, zombie_lives_at_most: float
) -> None:
    """The worker of the host is restarted while it is away, as a person would who wonders why it hangs."""
    memory = {"cpu_threads": 1, "memory_bytes": ONE_CARD}
    stack.deploy("smol", str(model), replicas=2, resources=memory)
    stack.until_ready("smol", 2)
    away = stack.ok(stack.http.get(f"/hosts/{engines(stack)[0].host_id}"))["name"]
    zombies = [e for e in engines(stack) if e.host_id == stack.host(away)["id"]]
    assert all(len(z.gpus) == 1 for z in zombies), "each has a card of its own"
    with watched(stack) as checker, steady_load(stack, "smol", clients=3) as load:
        eventually(lambda: load.answered() > 10, what="requests are answered")
        network.partition(ways[away])
        cut = time.monotonic()
        try:
            eventually(lambda: all(_elsewhere(stack, z) for z in zombies), within=40, what="replacements run elsewhere")
        except AssertionError as error:
            state = [stack.instances("smol"), stack.host(away)["state"], stack.host(away)["message"]]
            raise AssertionError(f"{error}\n{json.dumps(state, indent=1)}\n{stack.logs()}") from None
        print(f"replacement started {time.monotonic() - cut:.1f} s after the cut")
        stack.until_ready("smol", 2)
        # There is room for all four only where a zombie is.
        stack.ok(stack.http.patch("/deployments/smol", json={"spec": {"replicas": 4}}))
        eventually(lambda: [i["state"] for i in stack.instances("smol")].count("pending") == 2, what="no room")
        assert {z.pid for z in zombies} <= {e.pid for e in engines(stack)}, "nobody could stop them yet"
        stack.hosts[away].kill()
        stack.hosts[away].start()
        network.heal(ways[away])
        back = time.monotonic()
        eventually(
            lambda: not {z.pid for z in zombies} & {e.pid for e in engines(stack)},
            within=zombie_lives_at_most,
            what="the zombie is stopped",
        )
        print(f"zombie stopped {time.monotonic() - back:.1f} s after the return")
        slowest = max((o.ended - o.started for o in load.outcomes), default=0.0)
        print(f"longest request {slowest:.1f} s")
        assert slowest < NOTICED_WITHIN_S, f"a request waited {slowest:.1f} s in a host that was not there"
        checker.settled(within=60)
    assert len(engines(stack)) == 4
    _assert_served(load, cut)


def _elsewhere(stack: StackOnNetwork, zombie: Engine) -> bool:
    return any(e.instance_id == zombie.instance_id and e.fence > zombie.fence for e in engines(stack))


def _assert_served(load: Load, cut: float) -> None:
    """What was with the host when it was cut off may be lost; nothing else."""
    lost = [o for o in load.failures() if not o.streamed and o.started > cut]
    assert lost == []
    assert load.answered() >= 50
