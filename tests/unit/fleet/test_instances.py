"""What one replica believes, and how it is described."""

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
    apply_report,
    describe,
)
from fleet.placement.request import Placement
from fleet.specs import RestartSpec
from fleet.states import InstanceState

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


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
def test_what_was_changed_for_the_engine_stays_visible_whatever_it_reports(phase: EnginePhase) -> None:
    changed = instance(hint="CUDA out of memory", notice="Runs with max_model_len 4096 instead of 8192.")
    assert apply_report(changed, report(phase=phase)).hint == "Runs with max_model_len 4096 instead of 8192."


@given(st.sampled_from(EnginePhase))
def test_draining_instance_is_not_made_ready_again_by_a_report(phase: EnginePhase) -> None:
    assert apply_report(instance(state=InstanceState.DRAINING), report(phase=phase)).state == "draining"


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


def test_failed_instance_says_that_it_waits_for_a_person_and_where_it_failed() -> None:
    text = describe(instance(state=InstanceState.FAILED, excluded_hosts=("h1", "h2")))
    assert "Failed on h1, h2" in text
    assert "approve" in text.rpartition("Next: ")[2]


def test_state_survives_being_written_and_read_again() -> None:
    before = instance(
        ready_since=NOW,
        retry_at=NOW,
        drain=timedelta(seconds=3),
        restart=RestartSpec(max_failures=1),
        failed_at=(NOW, NOW),
        host_failures={"h1": 2},
        excluded_hosts=("h1",),
    )
    assert Instance.model_validate_json(before.model_dump_json()) == before


def test_state_written_by_a_newer_version_can_be_read() -> None:
    newer = instance().model_dump(mode="json") | {"schema_version": 2, "invented_later": 1}
    assert Instance.model_validate(newer).instance_id == "m/1-x"
