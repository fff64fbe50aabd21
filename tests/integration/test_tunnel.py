"""A host that nobody can dial (its firewall drops what comes in) serves through the tunnel that it holds open."""

import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.faults.load import Load, steady_load
from tests.faults.netns import Network, NetworkOfHost, StackOnNetwork, new_network, why_not
from tests.stack import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_BLIP_S = 2.0
"""Shorter than what anybody takes for a broken link."""
_CUT_S = 11.0
"""Longer than that."""
_BACK_WITHIN_S = 10.0
_PATIENT = {"HOLDFAST_TIMINGS": '{"lease_grace": 90}'}
"""Nothing is placed elsewhere meanwhile: there is no elsewhere."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(f"left out: a host with outbound connections only ({reason})")
    with new_network() as made:
        yield made


@pytest.fixture(scope="module")
def way(network: Network) -> NetworkOfHost:
    """To a host that may call and cannot be called."""
    made = network.add()
    rule = ["iptables", "-A", "INPUT", "-i", "eth0", "-p", "tcp", "--syn", "-j", "DROP"]
    try:
        subprocess.run([*made.prefix, *rule], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"left out: a host with outbound connections only (no firewall can be set: {error})")
    return made


@pytest.fixture(scope="module")
def stack(
    network: Network,
    way: NetworkOfHost,
    engines_folder: Path,
    small_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[StackOnNetwork]:
    made = StackOnNetwork(tmp_path_factory.mktemp("stack"), engines=engines_folder, network=network, env=_PATIENT)
    try:
        made.start()
        made.add_host_on(way, "a")
        made.deploy("smol", str(small_model))
        made.until_ready("smol")
        yield made
    finally:
        made.stop()


def test_a_host_behind_a_firewall_serves_streamed_chat(stack: StackOnNetwork, way: NetworkOfHost) -> None:
    port = int(stack.instances("smol")[0]["endpoint"].split("/")[2].rpartition(":")[2])
    with pytest.raises(httpx.ConnectTimeout):
        httpx.get(f"https://{way.address}:{port}/healthz", timeout=2, trust_env=False)
    answers(stack)
    with steady_load(stack, "smol", clients=1, streaming=2) as load:
        eventually(lambda: load.answered() > 15, what="requests are answered")
    load.assert_unharmed(at_least=15)


def test_its_logs_metrics_and_files_are_read_through_the_tunnel(stack: StackOnNetwork, small_model: Path) -> None:
    [instance] = stack.instances("smol")
    assert stack.http.get(f"/instances/{instance['id']}/logs", params={"tail": 5}).text
    assert "llamacpp:" in stack.http.get(f"/instances/{instance['id']}/metrics").text
    with stack.http.stream("GET", f"/instances/{instance['id']}/logs", params={"follow": "true"}) as followed:
        assert followed.status_code == 200
        assert next(followed.iter_raw())


def test_a_link_that_is_gone_for_a_moment_loses_no_request(
    stack: StackOnNetwork, network: Network, way: NetworkOfHost
) -> None:
    answers(stack)
    with steady_load(stack, "smol", clients=2, streaming=1) as load:
        eventually(lambda: load.answered() > 10, what="requests are answered")
        network.partition(way)
        time.sleep(_BLIP_S)  # how long the link is away is what is tested
        network.heal(way)
        seen = load.answered()
        eventually(lambda: load.answered() > seen + 10, what="requests are answered again")
    load.assert_unharmed(at_least=20)
    assert load.longest_pause() > _BLIP_S * 0.8, "the link was away"


def test_a_link_that_was_cut_and_restored_loses_no_later_request(
    stack: StackOnNetwork, network: Network, way: NetworkOfHost
) -> None:
    answers(stack)
    network.partition(way)
    time.sleep(_CUT_S)  # how long the link is away is what is tested
    network.heal(way)
    eventually(partial(answers, stack), within=_BACK_WITHIN_S, what="the host serves again")
    with steady_load(stack, "smol", clients=2, streaming=1) as load:
        eventually(lambda: load.answered() > 30, what="requests are answered")
    load.assert_unharmed(at_least=30)


def test_a_relay_that_is_replaced_loses_no_later_request(stack: StackOnNetwork) -> None:
    answers(stack)
    stack.relay.kill()
    stack.relay.start()
    eventually(partial(answers, stack), within=20, what="the host serves again")
    with steady_load(stack, "smol", clients=2, streaming=1) as load:
        eventually(lambda: load.answered() > 20, what="requests are answered")
    load.assert_unharmed(at_least=20)


def answers(stack: StackOnNetwork) -> Load:
    """Fails unless three requests at once are answered."""
    with steady_load(stack, "smol", clients=2, streaming=1) as load:
        eventually(lambda: len(load.outcomes) >= 3, within=20, what="three outcomes")
    load.assert_unharmed(at_least=3)
    return load
