"""Which replicas the next request may go to."""

from collections import Counter
from dataclasses import dataclass
from math import gcd

from hypothesis import assume, given
from hypothesis import strategies as st

from fleet.policy.split import Split


@dataclass(frozen=True)
class Replica:
    launch: int
    suspect: bool = False


weights = st.dictionaries(st.integers(1, 5), st.integers(0, 100), max_size=4)
replicas = st.lists(st.builds(Replica, st.integers(1, 5), st.booleans()), min_size=1, max_size=8)


def launches(split: Split, candidates: list[Replica], requests: int) -> list[int]:
    """Of so many requests; fails when one could go to two of them."""
    chosen = [{c.launch for c in split.narrow(candidates)} for _ in range(requests)]
    return [launch for (launch,) in chosen]


def test_a_tenth_of_twenty_requests_are_two() -> None:
    assert Counter(launches(Split({1: 90, 2: 10}), [Replica(1), Replica(2)], 20)) == {1: 18, 2: 2}


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 300))
def test_after_every_request_each_of_two_launches_has_had_its_share(a: int, b: int, requests: int) -> None:
    had = Counter(launches(Split({1: a, 2: b}), [Replica(1), Replica(2)], requests))
    assert abs(had[1] - requests * a / (a + b)) < 1


@given(st.dictionaries(st.integers(1, 5), st.integers(1, 20), min_size=2))
def test_a_full_round_is_exact(parts: dict[int, int]) -> None:
    split, everyone = Split(parts), [Replica(launch) for launch in parts]
    in_a_round = sum(parts.values()) // gcd(*parts.values())
    for _ in range(2):
        had = Counter(launches(split, everyone, in_a_round))
        assert {launch: n * gcd(*parts.values()) for launch, n in had.items()} == parts


@given(weights, replicas)
def test_there_is_always_somebody_to_ask_and_all_are_alike(traffic: dict[int, int], candidates: list[Replica]) -> None:
    narrowed = Split(traffic).narrow(candidates)
    assert narrowed
    assert set(narrowed) <= set(candidates)
    assert len({c.suspect for c in narrowed}) == 1


@given(weights, replicas)
def test_a_launch_without_weight_serves_only_when_no_other_can(
    traffic: dict[int, int], candidates: list[Replica]
) -> None:
    weighted = [c for c in candidates if traffic.get(c.launch)]
    assume(weighted)
    assert all(traffic.get(c.launch) for c in Split(traffic).narrow(candidates))


@given(weights, replicas)
def test_a_suspect_serves_only_when_no_ready_one_of_the_same_standing_is_left(
    traffic: dict[int, int], candidates: list[Replica]
) -> None:
    if any(c.suspect for c in Split(traffic).narrow(candidates)):
        rivals = [c for c in candidates if traffic.get(c.launch)] or candidates
        assert all(c.suspect for c in rivals)


def test_a_launch_that_was_away_does_not_get_all_that_it_missed() -> None:
    split = Split({1: 50, 2: 50})
    launches(split, [Replica(1), Replica(2)], 3)
    assert set(launches(split, [Replica(1), Replica(2, suspect=True)], 100)) == {1}
    assert Counter(launches(split, [Replica(1), Replica(2)], 10)) == {1: 5, 2: 5}


def test_without_weights_all_ready_ones_are_alike() -> None:
    ready = [Replica(1), Replica(2)]
    assert Split({}).narrow([*ready, Replica(3, suspect=True)]) == ready
