"""How many requests a replica is given at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.policy.in_flight_limit import MOST, SMALL, START, LearnedLimit
from fleet.policy.prefill_rate import PrefillRate, speeds
from fleet.policy.replica import EngineLoad

PROMPT = 500


class Engine:
    """Works on ``works_on`` at a time; further requests wait their turn for the first byte."""

    def __init__(self, works_on: int, seconds: float = 0.2) -> None:
        self.works_on = works_on
        self.seconds = seconds

    def first_byte_s(self, in_flight: int) -> float:
        return self.seconds * max(1.0, in_flight / self.works_on)


def flood(limit: LearnedLimit, engine: Engine, answers: int, since: float = 0.0) -> list[int]:
    """There is always more to do than the limit lets through; the limit after each answer."""
    seen = []
    for number in range(answers):
        in_flight = limit.value
        limit.note_first_byte(PROMPT, engine.first_byte_s(in_flight), in_flight, since + number * 0.05)
        seen.append(limit.value)
    return seen


@pytest.mark.parametrize("capacity", [1, 4, SMALL])
def test_few_places_are_the_limit(capacity: int) -> None:
    limit = LearnedLimit(capacity)
    flood(limit, Engine(1, 5.0), 200)
    limit.note_load(EngineLoad(0, in_flight=9, waiting=8), 9)
    limit.note_overload(4)
    assert limit.value == capacity


def test_what_somebody_set_wins() -> None:
    limit = LearnedLimit(256, fixed=40)
    flood(limit, Engine(1, 5.0), 200)
    limit.resize(3)
    assert limit.value == 40


@pytest.mark.parametrize("works_on", [12, 40, 150])
def test_settles_where_the_engine_works_well(works_on: int) -> None:
    limit = LearnedLimit(0)
    settled = sorted(flood(limit, Engine(works_on), 6000)[-2000:])
    assert works_on * 0.8 <= settled[1000] <= works_on * 4


def test_a_fast_engine_gets_all_it_has_places_for() -> None:
    limit = LearnedLimit(256)
    assert max(flood(limit, Engine(1000), 3000)[-500:]) == 256


def test_comes_back_when_the_engine_does() -> None:
    limit, engine = LearnedLimit(0), Engine(100)
    flood(limit, engine, 4000)
    engine.works_on = 10
    slow = sorted(flood(limit, engine, 4000, 200.0)[-1000:])[500]
    engine.works_on = 100
    fast = sorted(flood(limit, engine, 4000, 400.0)[-1000:])[500]
    assert slow < 60 < 80 <= fast


def test_long_answers_are_not_held_up_for_long_to_learn() -> None:
    limit, lowered = LearnedLimit(0), 0
    for number in range(20_000):  # whatever the limit says, as many are still there
        limit.note_first_byte(PROMPT, 0.2, START, number * 0.05)
        lowered += limit.value < START
    assert 0 < lowered * 0.05 < 20


def test_a_moment_of_measuring_ends_although_nothing_begins() -> None:
    limit = LearnedLimit(0)
    for number in range(8):
        limit.note_first_byte(PROMPT, 0.2, START, number * 0.05)
    assert limit.value < START
    assert not limit.sweep(1.0)
    assert limit.sweep(3.0)
    assert limit.value == START


def test_grows_only_when_it_is_used() -> None:
    limit = LearnedLimit(0)
    for number in range(500):
        limit.note_first_byte(PROMPT, 0.2, 2, number * 0.05)
    assert limit.value == START


def test_an_engine_in_which_requests_wait_gets_fewer() -> None:
    limit = LearnedLimit(256)
    for _ in range(30):
        limit.note_load(EngineLoad(0, in_flight=200, waiting=120), 200)
    assert limit.value == 80
    limit = LearnedLimit(256)
    for _ in range(60):
        limit.note_load(EngineLoad(0, in_flight=200, waiting=120), 50)
    assert limit.value == 20  # three other gateways have as many there


def test_one_that_has_just_come_proves_nothing() -> None:
    limit = LearnedLimit(256)
    limit.note_load(EngineLoad(0, in_flight=3, waiting=1), 3)
    assert limit.value == 256


def test_a_full_cache_and_a_refusal_end_growth() -> None:
    limit = LearnedLimit(256)
    for _ in range(30):
        limit.note_load(EngineLoad(0, in_flight=100, kv_used=0.97), 100)
    assert limit.value == 100
    assert limit.note_overload(61)
    assert limit.value == 60


notes = st.one_of(
    st.tuples(st.just("byte"), st.integers(0, 10_000), st.floats(0, 100), st.integers(0, 500)),
    st.tuples(st.just("load"), st.integers(0, 500), st.integers(0, 500), st.integers(0, 500)),
    st.tuples(st.just("over"), st.integers(0, 500)),
    st.tuples(st.just("size"), st.integers(0, 600)),
)


@given(st.integers(0, 600), st.lists(notes, max_size=150))
def test_is_never_below_one_nor_above_what_the_engine_can(capacity: int, happen: list[tuple[object, ...]]) -> None:
    limit = LearnedLimit(capacity)
    for now, note in enumerate(happen):
        before = limit.value
        match note:
            case ("byte", int(prompt), float(seconds), int(there)):
                assert limit.note_first_byte(prompt, seconds, there, float(now)) == (limit.value != before)
            case ("load", int(there), int(waiting), int(ours)):
                limit.note_load(EngineLoad(now, there, min(waiting, there), kv_used=0.99), ours)
            case ("over", int(there)):
                limit.note_overload(there)
            case ("size", int(places)):
                limit.resize(places)
                capacity = places
        assert 1 <= limit.value <= (capacity or MOST)


def test_rates_are_those_of_requests_that_did_not_wait() -> None:
    rate = PrefillRate()
    for number in range(200):
        rate.note(1000, 0.5 if number % 3 else 3.0)
    rate.note(3, 0.00001)
    assert 1500 < rate.value <= 2000


def test_speeds_differ_only_where_rates_differ_much() -> None:
    assert speeds([100, 110, 95]) == [1, 1, 1]
    assert speeds([100, 400]) == [0.5, 2.0]
    assert speeds([100, 0]) == [1, 1]
    assert speeds([]) == []
