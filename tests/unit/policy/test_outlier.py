"""Replicas whose answers fail are left alone for a while."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.policy.outlier import OFF_AT_MOST_S, OFF_S, OVERLOADED_S, Fate, Outcome, Outlier

GOOD, BAD, NOTHING = Outcome(Fate.ANSWERED), Outcome(Fate.FAILED), Outcome(Fate.UNUSED)


def failing(now: float = 100.0) -> Outlier:
    outlier = Outlier()
    for _ in range(5):
        outlier.note(BAD, now)
    return outlier


def trial(outlier: Outlier, outcome: Outcome, now: float) -> None:
    assert outlier.until <= now
    outlier.begin(now)
    assert outlier.until > now + OFF_AT_MOST_S
    outlier.note(outcome, now + 0.1)


def test_half_of_five_failing_is_off_for_five_seconds() -> None:
    outlier = Outlier()
    for outcome in (BAD, GOOD, GOOD, BAD):
        assert not outlier.note(outcome, 100.0)
    assert outlier.until <= 100.0
    assert outlier.note(BAD, 100.0)
    assert outlier.until == 100.0 + OFF_S


def test_less_than_half_is_not() -> None:
    outlier = Outlier()
    for number in range(100):
        outlier.note(BAD if number % 3 == 2 else GOOD, 100.0 + number / 10)
    assert outlier.until <= 100.0
    assert not outlier.on_trial


def test_failures_of_long_ago_do_not_count() -> None:
    outlier = Outlier()
    for number in range(20):
        outlier.note(BAD, number * 11.0)
    assert not outlier.on_trial


def test_three_trials_that_go_well_end_it() -> None:
    outlier = failing()
    for number in range(3):
        assert outlier.on_trial
        trial(outlier, GOOD, 106.0 + number)
    assert not outlier.on_trial
    assert not outlier.note(BAD, 110.0)  # and it begins anew


def test_a_trial_that_fails_doubles_the_time_up_to_a_minute() -> None:
    outlier, pauses = failing(), []
    for _ in range(6):
        now = outlier.until
        trial(outlier, BAD, now)
        pauses.append(round(outlier.until - now - 0.1, 6))
    assert pauses == [10, 20, 40, 60, 60, 60]


def test_what_had_begun_before_is_no_trial() -> None:
    outlier = failing()
    for _ in range(5):
        assert not outlier.note(GOOD, 101.0)
    assert outlier.until == 100.0 + OFF_S


def test_a_client_that_leaves_ends_a_trial_and_says_nothing() -> None:
    outlier = failing()
    trial(outlier, NOTHING, 106.0)
    assert outlier.on_trial
    assert outlier.until == 106.1


def test_overload_is_given_the_time_that_it_asks_for() -> None:
    outlier = Outlier()
    outlier.note(Outcome(Fate.OVERLOADED, 7.0), 100.0)
    assert outlier.until == 107.0
    outlier.note(Outcome(Fate.OVERLOADED), 100.0)
    assert outlier.until == 107.0
    other = Outlier()
    other.note(Outcome(Fate.OVERLOADED), 100.0)
    assert other.until == 100.0 + OVERLOADED_S
    assert not other.on_trial


outcomes = st.sampled_from([GOOD, BAD, NOTHING, Outcome(Fate.OVERLOADED, 3.0), Outcome(Fate.OVERLOADED, 1e9)])


@given(st.lists(st.tuples(outcomes, st.booleans(), st.floats(0, 30)), max_size=100))
def test_it_always_comes_back(steps: list[tuple[Outcome, bool, float]]) -> None:
    outlier, now = Outlier(), 0.0
    for outcome, begins, pause in steps:
        now += pause
        if begins and outlier.until <= now:
            outlier.begin(now)
        outlier.note(outcome, now)
        assert outlier.until <= now + 600
    now = max(now, outlier.until)
    for _ in range(3):
        outlier.begin(now)
        outlier.note(GOOD, now)
    assert outlier.until <= now
    assert not outlier.on_trial
