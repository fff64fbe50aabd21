"""How a replica goes on after its engine ended: when, where, with what, and when no more."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.engines.spec import EngineSpec
from fleet.instances import EngineExit, Instance, Remedy
from fleet.placement.request import Placement
from fleet.recovery import NOT_ITS_FAULT, after_failure, approved, back_off, lapsed
from fleet.specs import RestartSpec
from fleet.states import InstanceState
from fleet.timings import Timings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
STABLE = Timings().stable_after
WINDOW = timedelta(seconds=RestartSpec().window_s)
SPEC = EngineSpec(engine="llama_cpp", engine_version="1", model_path="/m.gguf", served_name="m", max_model_len=8192)
CRASH = EngineExit(exit_code=-11, failure_class="crashed", hint="See the log.")
ELSEWHERE = EngineExit(exit_code=1, failure_class="oom_load", hint="Too big.", remedy=Remedy.ELSEWHERE)

timings = st.builds(
    Timings,
    first_back_off=st.timedeltas(timedelta(milliseconds=1), timedelta(hours=1)),
    longest_back_off=st.timedeltas(timedelta(0), timedelta(days=1)),
)
budgets = st.builds(
    RestartSpec,
    max_failures=st.integers(0, 6),
    window_s=st.integers(1, 1000),
    failures_per_host=st.integers(1, 4),
)
exits = st.builds(
    EngineExit,
    exit_code=st.none() | st.integers(-15, 255),
    failure_class=st.sampled_from(["a", "b", "c", *NOT_ITS_FAULT]),
    hint=st.sampled_from(["", "Do this."]),
    remedy=st.sampled_from(Remedy),
    at_most=st.none() | st.integers(1, 3),
    max_model_len=st.none() | st.integers(0, 20_000),
    gpu_fault=st.sampled_from(["", "possible", "certain"]),
    served=st.booleans(),
)


def instance(host_id: str = "h1", gpus: tuple[str, ...] = (), **fields: Any) -> Instance:
    return Instance(
        instance_id="m/1-x",
        deployment="m",
        slot=1,
        revision=1,
        launch=1,
        spec=SPEC,
        state=InstanceState.STARTING,
        placement=Placement(host_id=host_id, gpu_uuids=gpus),
        fence=3,
    ).with_(**fields)


def placed(after: Instance, host_id: str = "h1") -> Instance:
    """As the workflow places it again."""
    return after.with_(state=InstanceState.STARTING, placement=Placement(host_id=host_id), retry_at=None)


def failing(count: int, exit_: EngineExit = CRASH, begin: Instance | None = None, every_s: int = 1) -> Instance:
    """After so many failures, one every so many seconds."""
    after = begin or instance()
    for n in range(count):
        after = after_failure(placed(after), exit_, NOW + timedelta(seconds=n * every_s))
    return after


# -- when ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9), timings)
def test_pause_never_shrinks_with_more_failures_and_is_bounded(failures: int, t: Timings) -> None:
    pause = back_off(failures, t)
    assert timedelta(0) <= pause <= t.longest_back_off
    assert pause <= back_off(failures + 1, t)


@given(timings)
def test_first_retry_comes_at_once_and_later_ones_take_four_times_as_long(t: Timings) -> None:
    assert back_off(0, t) == back_off(1, t) == timedelta(0)
    for failures in range(2, 12):
        assert back_off(failures, t) == min(t.first_back_off * 4 ** (failures - 2), t.longest_back_off)


def test_pause_reaches_the_longest_and_stays_there() -> None:
    t = Timings()
    assert back_off(40, t) == back_off(10**9, t) == t.longest_back_off


@given(st.integers(0, 50))
def test_failure_that_can_pass_is_retried_after_the_pause_it_has_earned(failures: int) -> None:
    after = after_failure(instance(failures=failures, restarts=4), CRASH, NOW)
    assert after.state is InstanceState.RECOVERING
    assert (after.failures, after.restarts) == (failures + 1, 5)
    assert after.retry_at == NOW + back_off(failures + 1, after.timings)


@given(exits, budgets)
def test_failed_engine_loses_its_place_and_address(exit_: EngineExit, budget: RestartSpec) -> None:
    before = instance(endpoint="http://127.0.0.1:1", pid=7, progress=1.0, ready_since=NOW, restart=budget)
    after = after_failure(before, exit_, NOW)
    assert (after.placement, after.endpoint, after.pid, after.progress, after.ready_since) == (None,) * 5
    assert after.fence == before.fence, "fences never go back: the next placement takes a higher one"
    assert (after.retry_at is None) == (after.state is InstanceState.FAILED)


# -- how often -----------------------------------------------------------------------------------------------------


@given(budgets, st.lists(st.tuples(exits, st.integers(0, 400)), max_size=40))
def test_no_window_ever_sees_more_retries_than_the_budget_allows(
    budget: RestartSpec, ends: list[tuple[EngineExit, int]]
) -> None:
    now, retried = NOW, []
    after = instance(restart=budget)
    for exit_, pause in ends:
        now += timedelta(seconds=pause)
        after = after_failure(placed(after), exit_, now)
        if after.state is InstanceState.FAILED:
            break
        if exit_.failure_class not in NOT_ITS_FAULT:
            retried.append(now)
        window = [at for at in retried if now - at < timedelta(seconds=budget.window_s)]
        assert len(window) <= budget.max_failures
        assert len(after.failed_at) <= budget.max_failures + 1


def test_budget_that_is_spent_leaves_it_to_a_person_and_says_how() -> None:
    assert failing(5).state is InstanceState.RECOVERING
    after = failing(6)
    assert after.state is InstanceState.FAILED
    assert after.message == "gave up after 6 failures in 10 minutes: engine exited with -11 (crashed)"
    assert after.hint == "See the log. When the cause is gone: `holdfast retry m`."
    assert after.restarts == 5


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (RestartSpec(max_failures=0), "gave up after 1 failure in 10 minutes: "),
        (RestartSpec(max_failures=0, window_s=7200), "gave up after 1 failure in 2 hours: "),
        (RestartSpec(max_failures=0, window_s=61), "gave up after 1 failure in 61 seconds: "),
    ],
)
def test_no_budget_means_no_retry(budget: RestartSpec, text: str) -> None:
    after = failing(1, begin=instance(restart=budget))
    assert after.state is InstanceState.FAILED
    assert after.message.startswith(text)


def test_failures_outside_the_window_are_forgotten() -> None:
    after = failing(50, every_s=int(WINDOW.total_seconds()) // 5)
    assert after.state is InstanceState.RECOVERING
    assert len(after.failed_at) == 5


def test_failure_that_cannot_pass_waits_for_a_person_at_once() -> None:
    exit_ = EngineExit(exit_code=1, failure_class="not_found", hint="Copy the file.", remedy=Remedy.NEVER)
    after = after_failure(instance(restarts=4), exit_, NOW)
    assert (after.state, after.restarts, after.retry_at) == (InstanceState.FAILED, 4, None)
    assert after.message == "engine exited with 1 (not_found)"
    assert after.hint == "Copy the file. When the cause is gone: `holdfast retry m`."


def test_class_that_may_pass_once_is_tried_once_more() -> None:
    damaged = EngineExit(exit_code=1, failure_class="corrupt_file", at_most=1)
    assert failing(1, damaged).state is InstanceState.RECOVERING
    after = failing(2, damaged)
    assert after.state is InstanceState.FAILED
    assert after.message.startswith("gave up after 2 failures of this kind in a row: ")
    between = failing(1, damaged, failing(1, CRASH, failing(1, damaged)))
    assert between.state is InstanceState.RECOVERING, "not in a row"


@given(st.timedeltas(timedelta(0), timedelta(days=30)), st.integers(1, 5))
def test_engine_that_served_long_enough_has_a_clean_record(served: timedelta, before: int) -> None:
    at = NOW + STABLE
    known = failing(before, ELSEWHERE).with_(placement=Placement(host_id="h2"), ready_since=at - served)
    after = after_failure(known, CRASH, at)
    clean = served >= STABLE
    assert after.failures == (1 if clean else before + 1)
    assert after.excluded_hosts == (() if clean else ("h1",))
    assert after.host_failures == ({"h2": 1} if clean else {"h1": before, "h2": 1})
    assert (after.retry_at == at) == clean


@given(st.sampled_from(sorted(NOT_ITS_FAULT)), st.integers(0, 30))
def test_what_somebody_else_ended_counts_against_nobody(name: str, count: int) -> None:
    after = failing(count, EngineExit(exit_code=None, failure_class=name))
    assert (after.failed_at, after.host_failures, after.excluded_hosts) == ((), {}, ())
    assert after.state is not InstanceState.FAILED


# -- where ---------------------------------------------------------------------------------------------------------


def test_host_is_left_after_so_many_failures_there() -> None:
    once = failing(1)
    assert (once.host_failures, once.excluded_hosts) == ({"h1": 1}, ())
    assert failing(2).excluded_hosts == ("h1",)
    patient = instance(restart=RestartSpec(failures_per_host=3))
    assert failing(2, begin=patient).excluded_hosts == ()
    assert failing(3, begin=patient).excluded_hosts == ("h1",)


def test_host_is_left_at_once_when_only_another_can_help() -> None:
    assert failing(1, ELSEWHERE).excluded_hosts == ("h1",)
    unknown = EngineExit(exit_code=1, failure_class="oom_kv", remedy=Remedy.CHANGED)
    assert failing(1, unknown).excluded_hosts == ("h1",), "no parameter to change is known"


def test_host_whose_broken_gpu_is_cordoned_is_not_left() -> None:
    broken = EngineExit(exit_code=1, failure_class="gpu_fault", remedy=Remedy.ELSEWHERE, gpu_fault="certain")
    assert after_failure(instance(gpus=("g1",)), broken, NOW).excluded_hosts == ()
    assert after_failure(instance(gpus=("g1", "g2")), broken, NOW).excluded_hosts == ("h1",)
    perhaps = broken.model_copy(update={"gpu_fault": "possible"})
    assert after_failure(instance(gpus=("g1",)), perhaps, NOW).excluded_hosts == ("h1",)


def test_what_is_known_of_hosts_does_not_grow_for_ever() -> None:
    after = instance(restart=RestartSpec(max_failures=1000))
    for n in range(300):
        after = after_failure(placed(after, f"h{n}"), ELSEWHERE, NOW)
    assert len(after.host_failures) == len(after.excluded_hosts) == 100
    assert after.excluded_hosts[-1] == "h299"


# -- with what -----------------------------------------------------------------------------------------------------


def short(fits: int | None) -> EngineExit:
    return EngineExit(exit_code=1, failure_class="oom_kv", remedy=Remedy.CHANGED, max_model_len=fits)


def test_context_that_fits_is_taken_and_said() -> None:
    after = failing(1, short(4096))
    assert after.spec.max_model_len == 4096
    assert after.notice == "Runs with max_model_len 4096 instead of 8192, because more did not fit (oom_kv)."
    assert (after.host_failures, after.excluded_hosts) == ({}, ()), "it was not the host that was wrong"
    assert len(after.failed_at) == 1
    unset = after_failure(instance(spec=SPEC.model_copy(update={"max_model_len": None})), short(4096), NOW)
    assert (unset.spec.max_model_len, "instead" in unset.notice) == (4096, False)


@given(st.lists(st.none() | st.integers(0, 20_000), max_size=20))
def test_context_only_ever_gets_shorter(printed: list[int | None]) -> None:
    after = instance(restart=RestartSpec(max_failures=1000))
    for fits in printed:
        before = after.spec.max_model_len or 0
        after = after_failure(placed(after), short(fits), NOW)
        now = after.spec.max_model_len or 0
        assert now == (fits if fits is not None and 16 <= fits < before else before)


@given(exits.filter(lambda e: e.remedy is not Remedy.CHANGED))
def test_context_is_left_alone_by_failures_of_other_kinds(exit_: EngineExit) -> None:
    assert after_failure(instance(), exit_, NOW).spec == SPEC


# -- a person ------------------------------------------------------------------------------------------------------


@given(st.lists(exits, min_size=1, max_size=10), budgets)
def test_approval_tries_at_once_with_a_clean_record(ends: list[EngineExit], budget: RestartSpec) -> None:
    after = instance(restart=budget)
    for exit_ in ends:
        after = after_failure(placed(after), exit_, NOW)
    again = approved(after)
    assert (again.state, again.retry_at, again.hint) == (InstanceState.RECOVERING, None, after.notice)
    assert (again.failures, again.failed_at, again.same_class) == (0, (), 0)
    assert (again.host_failures, again.excluded_hosts) == ({}, ())
    assert again.spec == after.spec, "what did not fit before does not fit now"
    assert again.restarts == after.restarts + 1


def test_a_host_is_excluded_no_longer_than_the_window_of_the_budget() -> None:
    excluded = failing(1, ELSEWHERE)
    assert excluded.excluded_hosts == ("h1",)
    window = timedelta(seconds=excluded.restart.window_s)
    assert lapsed(excluded, NOW + window / 2) is excluded
    later = lapsed(excluded, max(excluded.failed_at) + window)
    assert (later.excluded_hosts, later.host_failures) == ((), {})
    assert later.failed_at == excluded.failed_at
    assert lapsed(later, NOW) is later
