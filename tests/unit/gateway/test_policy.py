import json
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.policy.blame import clients_fault
from fleet.policy.least_load import least_loaded
from fleet.policy.retry_budget import RetryBudget


@dataclass(eq=False)
class Replica:
    in_flight: int
    capacity: int

    @property
    def load(self) -> Fraction:
        return Fraction(self.in_flight, max(self.capacity, 1))


replicas = st.builds(Replica, st.integers(0, 50), st.integers(0, 16))


@given(st.lists(replicas, min_size=1, max_size=12), st.integers(0, 1000))
def test_no_other_replica_has_less_load_than_the_chosen_one(fleet: list[Replica], turn: int) -> None:
    assert least_loaded(fleet, turn).load == min(r.load for r in fleet)


@given(st.lists(replicas, min_size=1, max_size=6))
def test_equally_loaded_replicas_take_turns(fleet: list[Replica]) -> None:
    lowest = min(r.load for r in fleet)
    equals = [r for r in fleet if r.load == lowest]
    chosen = Counter(id(least_loaded(fleet, turn)) for turn in range(3 * len(equals)))
    assert chosen == {id(r): 3 for r in equals}


@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(0, 100))
def test_replicas_fill_up_in_proportion_to_their_capacity(capacities: list[int], turn: int) -> None:
    fleet = [Replica(0, capacity) for capacity in capacities]
    for n in range(sum(capacities)):
        least_loaded(fleet, turn + n).in_flight += 1
    assert all(r.in_flight == r.capacity for r in fleet)


def test_unknown_capacity_counts_as_one() -> None:
    unknown, roomy = Replica(1, 0), Replica(3, 4)
    assert least_loaded([unknown, roomy], 0) is roomy


def test_retries_are_a_tenth_of_the_requests_once_the_burst_is_spent() -> None:
    budget = RetryBudget(share=0.1, floor=0.0, burst=10)
    retries = 0
    for _ in range(1000):
        budget.note_request()
        retries += budget.take(now=0.0)
    assert 105 <= retries <= 110


def test_a_few_retries_are_allowed_without_much_traffic() -> None:
    budget = RetryBudget(share=0.0, floor=1.0, burst=2)
    assert [budget.take(0.0), budget.take(0.0), budget.take(0.0)] == [True, True, False]
    assert budget.take(0.5) is False
    assert budget.take(1.5) is True
    assert budget.take(1.5) is False


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6), st.integers(0, 40)), max_size=200))
def test_the_budget_never_gives_more_than_was_paid_back_and_what_was_in_flight(
    steps: list[tuple[bool, float, int]],
) -> None:
    budget = RetryBudget(share=0.1, floor=1.0, burst=5)
    now, given_, earned, busiest = 0.0, 0, 0.0, 5
    for is_request, pause, in_flight in steps:
        if is_request:
            budget.note_request()
            earned += 0.1
        else:
            now += pause
            earned += pause
            busiest = max(busiest, in_flight)
            given_ += budget.take(now, in_flight)
    assert given_ <= earned + busiest + 1e-6


@given(st.integers(0, 500), st.integers(0, 500))
def test_all_requests_in_one_dead_engine_may_be_sent_again(in_it: int, elsewhere: int) -> None:
    budget = RetryBudget()
    assert all(budget.take(0.0, in_it + elsewhere) for _ in range(in_it))


def test_engines_that_go_on_dying_are_not_flooded() -> None:
    budget = RetryBudget(floor=0.0)
    retries = 0
    for _ in range(10_000):
        budget.note_request()
        retries += budget.take(0.0, 50)
    assert 1000 <= retries <= 1050


@pytest.mark.parametrize(
    ("status", "message", "blamed"),
    [
        (500, "Failed to parse tools: Expected 'tools' to be an array", True),
        (500, "image input is not supported - hint: you may need to provide the mmproj", True),
        (501, "This server does not support embeddings. Start it with `--embeddings`", True),
        (500, "CUDA error: an illegal memory access was encountered", False),
        (500, "Compute error.", False),
        (503, "Loading model", False),
        (502, "image input is not supported", False),
    ],
)
def test_an_engines_error_is_blamed_on_who_caused_it(status: int, message: str, blamed: bool) -> None:
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    assert clients_fault(status, body) == (message if blamed else None)


@given(st.sampled_from([500, 501]), st.binary() | st.text().map(str.encode))
def test_whatever_an_engine_prints_can_be_judged(status: int, body: bytes) -> None:
    assert clients_fault(status, body) is None or b"error" in body
