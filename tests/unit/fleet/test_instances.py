"""Decisions about one replica: what it believes, and how it goes on after a failure."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fleet.engines.spec import EngineSpec
from fleet.instances import (
    EngineExit,
    EnginePhase,
    EngineReport,
    Instance,
    accepts,
    after_failure,
    apply_report,
    back_off,
    describe,
)
from fleet.placement.request import Placement
from fleet.states import InstanceState
from fleet.timings import Timings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
STABLE = Timings().stable_after

timings = st.builds(
    Timings,
    first_back_off=st.timedeltas(timedelta(milliseconds=1), timedelta(hours=1)),
    longest_back_off=st.timedeltas(timedelta(0), timedelta(days=1)),
)


def instance(**fields: object) -> Instance:
    base: dict[str, object] = {
        "instance_id": "m/1-x",
        "deployment": "m",
        "slot": 1,
        "revision": 1,
        "launch": 1,
        "spec": EngineSpec(engine="llama_cpp", engine_version="1", model_path="/m.gguf", served_name="m"),
        "placement": Placement(host_id="h1"),
        "fence": 3,
    }
    return Instance.model_validate(base | fields)


def report(sequence: int = 1, fence: int = 3, phase: EnginePhase = EnginePhase.READY) -> EngineReport:
    return EngineReport(
        instance_id="m/1-x", fence=fence, sequence=sequence, phase=phase, url="http://127.0.0.1:1", pid=7
    )


@given(st.integers(0, 10**9), timings)
def test_pause_never_shrinks_with_more_failures_and_is_bounded(failures: int, t: Timings) -> None:
    pause = back_off(failures, t)
    assert timedelta(0) <= pause <= t.longest_back_off
    assert pause <= back_off(failures + 1, t)


@given(timings)
def test_first_retry_comes_at_once_and_later_ones_double(t: Timings) -> None:
    assert back_off(0, t) == back_off(1, t) == timedelta(0)
    for failures in range(2, 12):
        assert back_off(failures, t) == min(t.first_back_off * 2 ** (failures - 2), t.longest_back_off)


def test_pause_reaches_the_longest_and_stays_there() -> None:
    t = Timings()
    assert back_off(40, t) == back_off(10**9, t) == t.longest_back_off


@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 6))
def test_only_newer_reports_of_the_current_fence_are_believed(fence: int, sequence: int, last: int) -> None:
    believed = accepts(instance(), report(sequence, fence), last)
    assert believed == (fence == 3 and sequence > last)


def test_nothing_is_believed_about_an_engine_that_has_no_place() -> None:
    assert accepts(instance(), report(), 0)
    assert not accepts(instance(placement=None), report(), 0)


@given(st.sampled_from(EnginePhase))
def test_report_sets_the_state_and_applying_it_twice_changes_nothing(phase: EnginePhase) -> None:
    once = apply_report(instance(hint="old"), report(phase=phase))
    assert once.state == phase.value
    assert (once.endpoint, once.pid, once.hint) == ("http://127.0.0.1:1", 7, "")
    assert apply_report(once, report(phase=phase)) == once


@given(st.sampled_from(EnginePhase))
def test_draining_instance_is_not_made_ready_again_by_a_report(phase: EnginePhase) -> None:
    assert apply_report(instance(state=InstanceState.DRAINING), report(phase=phase)).state == "draining"


@given(st.integers(0, 50), st.booleans(), st.booleans())
def test_failed_engine_loses_its_place_and_address(failures: int, retry: bool, served: bool) -> None:
    before = instance(state=InstanceState.READY, endpoint="http://127.0.0.1:1", pid=7, progress=1.0, failures=failures)
    after = after_failure(before, EngineExit(exit_code=1, retry=retry, served=served, hint="h"), NOW)
    assert (after.placement, after.endpoint, after.pid, after.progress, after.ready_since) == (None,) * 5
    assert after.hint == "h"
    assert after.fence == before.fence, "fences never go back: the next placement takes a higher one"


@given(st.integers(0, 50))
def test_failure_that_can_pass_is_retried_after_the_pause_it_has_earned(failures: int) -> None:
    after = after_failure(instance(failures=failures, restarts=4), EngineExit(exit_code=1), NOW)
    assert after.state is InstanceState.RECOVERING
    assert (after.failures, after.restarts) == (failures + 1, 5)
    assert after.retry_at == NOW + back_off(failures + 1, after.timings)


def test_failure_that_cannot_pass_waits_for_a_person() -> None:
    exit_ = EngineExit(exit_code=1, failure_class="model_not_found", hint="copy the file", retry=False)
    after = after_failure(instance(restarts=4, retry_at=NOW), exit_, NOW)
    assert after.state is InstanceState.FAILED
    assert (after.retry_at, after.restarts) == (None, 4)
    assert after.message == "engine exited with 1 (model_not_found)"
    assert after.hint == "copy the file"


@given(st.timedeltas(timedelta(0), timedelta(days=30)), st.integers(1, 50))
def test_engine_that_served_long_enough_has_a_clean_record(served: timedelta, failures: int) -> None:
    before = instance(ready_since=NOW - served, failures=failures)
    after = after_failure(before, EngineExit(exit_code=-9), NOW)
    assert after.failures == (1 if served >= STABLE else failures + 1)
    assert (after.retry_at == NOW) == (after.failures == 1)


@pytest.mark.parametrize(
    ("exit_", "text"),
    [
        (EngineExit(exit_code=None), "engine did not start"),
        (EngineExit(exit_code=-9), "engine exited with -9"),
        (EngineExit(exit_code=1, failure_class="out_of_memory"), "engine exited with 1 (out_of_memory)"),
    ],
)
def test_summary_says_how_and_why_an_engine_ended(exit_: EngineExit, text: str) -> None:
    assert exit_.summary == text


@given(st.sampled_from(InstanceState), st.booleans())
def test_description_names_state_place_and_next_step(state: InstanceState, placed: bool) -> None:
    placement = Placement(host_id="h1", gpu_uuids=("GPU-1",)) if placed else None
    text = describe(instance(state=state, placement=placement, message="m", hint="do this"))
    assert text.startswith(f"**{state}**: m")
    assert "Hint: do this" in text
    assert ("Host `h1`, GPU-1, fence 3" in text) == placed
    assert text.rpartition("Next: ")[2]


@given(st.datetimes())
def test_recovering_instance_says_when_it_tries_again(at: datetime) -> None:
    assume(at.year >= 1000)
    text = describe(instance(state=InstanceState.RECOVERING, retry_at=at.replace(tzinfo=UTC)))
    assert f"{at:%Y-%m-%d %H:%M:%S} UTC" in text


def test_state_survives_being_written_and_read_again() -> None:
    before = instance(ready_since=NOW, retry_at=NOW, drain=timedelta(seconds=3))
    assert Instance.model_validate_json(before.model_dump_json()) == before


def test_state_written_by_a_newer_version_can_be_read() -> None:
    newer = instance().model_dump(mode="json") | {"schema_version": 2, "invented_later": 1}
    assert Instance.model_validate(newer).instance_id == "m/1-x"
