"""Whether a canary is as good as what it replaces."""

import math

from hypothesis import given
from hypothesis import strategies as st

from fleet.policy.canary import Judgement, Reading, judge
from fleet.policy.latency import BOUNDS_S, BUCKETS, bounds, bucket, quantile, quantile_bucket
from fleet.specs import CanarySpec

NOTHING = Reading()
SPEC = CanarySpec(max_error_rate=0.05, max_latency_ratio=2.0, min_requests=20)


def reading(seconds: list[float], errors: int = 0) -> Reading:
    """These times until the first byte, and besides them ``errors`` requests that were not answered."""
    counts = [0] * BUCKETS
    for s in seconds:
        counts[bucket(s)] += 1
    return Reading(requests=len(seconds) + errors, errors=errors, latency=tuple(counts))


def verdict(new: Reading, old: Reading = NOTHING, spec: CanarySpec = SPEC) -> Judgement:
    return judge(NOTHING, NOTHING, old, new, spec)[0]


def test_too_few_requests_say_nothing() -> None:
    assert judge(NOTHING, NOTHING, NOTHING, reading([0.1] * 19), SPEC) == (
        Judgement.UNKNOWN,
        "19 of the 20 requests that it takes to say",
    )
    assert verdict(reading([0.1] * 20)) is Judgement.GOOD


def test_errors_condemn_it_once_the_rate_cannot_be_kept_any_more() -> None:
    assert verdict(reading([0.1], errors=1)) is Judgement.UNKNOWN
    assert verdict(reading([], errors=2)) is Judgement.BAD
    assert verdict(reading([0.1] * 19, errors=1)) is Judgement.GOOD
    assert verdict(reading([0.1] * 94, errors=6)) is Judgement.BAD
    assert verdict(reading([0.1] * 95, errors=5)) is Judgement.GOOD


def test_the_rate_is_meant_as_it_is_written() -> None:
    spec = CanarySpec(max_error_rate=0.29, min_requests=100)
    assert verdict(reading([0.1] * 71, errors=29), spec=spec) is Judgement.GOOD
    assert verdict(reading([0.1] * 70, errors=30), spec=spec) is Judgement.BAD


def test_the_reason_has_the_figures() -> None:
    _, reason = judge(NOTHING, NOTHING, NOTHING, reading([0.1] * 30, errors=10), SPEC)
    assert reason == "10 of 40 requests (25 %) failed, more than the 5 % of at least 20 that may"
    _, reason = judge(NOTHING, NOTHING, reading([0.1] * 30), reading([3.0] * 30), SPEC)
    assert reason == "the p95 until the first byte is over 2.56 s, more than 2 times the 160 ms of the old revision"
    _, reason = judge(NOTHING, NOTHING, reading([0.1] * 30), reading([0.1] * 30), SPEC)
    assert reason == "0 of 30 requests (0 %) failed, p95 until the first byte within 160 ms (old revision: 160 ms)"


def test_only_what_came_since_the_baseline_counts() -> None:
    before = reading([9.0] * 50, errors=50)
    assert judge(before, before, before, before, SPEC)[0] is Judgement.UNKNOWN
    after = Reading(requests=120, errors=50, latency=reading([9.0] * 50 + [0.1] * 20).latency)
    assert judge(before, before, before, after, SPEC)[0] is Judgement.GOOD


def test_an_old_revision_without_requests_is_not_compared_with() -> None:
    assert verdict(reading([30.0] * 50), reading([0.01] * 19)) is Judgement.GOOD
    assert verdict(reading([30.0] * 50), reading([0.01] * 20)) is Judgement.BAD


def test_latency_is_not_compared_when_it_is_not_asked_for() -> None:
    spec = CanarySpec(max_latency_ratio=None)
    assert verdict(reading([30.0] * 50), reading([0.01] * 50), spec) is Judgement.GOOD


counters = st.integers(0, 10**6)
readings = st.builds(
    Reading, requests=counters, errors=counters, latency=st.lists(counters, max_size=BUCKETS).map(tuple)
)
specs = st.builds(
    CanarySpec,
    max_error_rate=st.floats(0, 1),
    max_latency_ratio=st.none() | st.floats(0.01, 100),
    min_requests=st.integers(1, 1000),
)


@given(readings, readings, readings, readings, specs)
def test_whatever_was_counted_can_be_judged(a: Reading, b: Reading, c: Reading, d: Reading, spec: CanarySpec) -> None:
    judgement, reason = judge(a, b, c, d, spec)
    assert judgement in Judgement
    assert reason


@given(st.integers(0, 300), st.integers(0, 300), specs)
def test_it_is_bad_exactly_when_the_rate_at_the_least_number_of_requests_must_be_exceeded(
    good: int, errors: int, spec: CanarySpec
) -> None:
    missing = max(0, spec.min_requests - good - errors)
    total = good + errors + missing
    exceeded = errors / total > spec.max_error_rate
    if not math.isclose(errors / total, spec.max_error_rate, rel_tol=1e-9):
        assert (verdict(reading([0.1] * good, errors), spec=spec) is Judgement.BAD) == exceeded


times = st.lists(st.floats(0, 2000), min_size=1, max_size=60)


@given(times, times, st.floats(0.1, 20))
def test_nobody_is_called_slow_who_is_not(old: list[float], new: list[float], ratio: float) -> None:
    spec = CanarySpec(max_latency_ratio=ratio, min_requests=1)
    if verdict(reading(new), reading(old), spec) is Judgement.BAD:
        assert p95(new) >= ratio * p95(old)


@given(st.floats(0.001, 100), st.floats(1, 10), st.floats(1.01, 10))
def test_whoever_is_over_four_times_too_slow_is_noticed(seconds: float, ratio: float, more: float) -> None:
    slow = seconds * ratio * 4 * more
    if seconds > BOUNDS_S[0] / 2 and slow < BOUNDS_S[-1]:
        spec = CanarySpec(max_latency_ratio=ratio)
        assert verdict(reading([slow] * 50), reading([seconds] * 50), spec) is Judgement.BAD


def p95(seconds: list[float]) -> float:
    """Of what was really measured, by the same rank as that of the buckets."""
    return sorted(seconds)[max(0, math.ceil(0.95 * len(seconds)) - 1)]


@given(times, st.floats(0.01, 1))
def test_a_quantile_lies_in_its_bucket(seconds: list[float], q: float) -> None:
    counts = reading(seconds).latency
    i = quantile_bucket(counts, q)
    assert i is not None
    low, high = bounds(i)
    exact = sorted(seconds)[max(0, math.ceil(q * len(seconds)) - 1)]
    assert low < exact <= high or (i == 0 and exact == 0)
    assert quantile(counts, q) == high
