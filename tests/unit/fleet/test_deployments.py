"""Decisions about a deployment, from any state that it can be in."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fleet.changes import change, needs_new_engines
from fleet.deployment_status import describe, message, phase, ready_replicas
from fleet.deployments import Deployment, DeploymentChange, hear
from fleet.instances import InstanceNews
from fleet.replicas import Plan
from fleet.specs import DeploymentSpec, ModelSource, Resources
from fleet.states import DeploymentPhase, InstanceState
from tests.unit.fleet.worlds import BORN, carry_out, deployment, deployments, plan, settle, spec, step, view

READY, STARTING, FAILED = InstanceState.READY, InstanceState.STARTING, InstanceState.FAILED
MISSING = [s for s in InstanceState if s is not InstanceState.FAILED]
"""A failed instance of the current launch waits for a person; all others get on by themselves."""

changes = st.builds(
    DeploymentChange,
    spec=st.none() | st.builds(spec, st.integers(0, 5), st.sampled_from(["model.gguf", "other.gguf"])),
    labels=st.none() | st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy")),
    engine_version=st.none() | st.sampled_from(["1", "2"]),
    stopped=st.none() | st.booleans(),
    restart_of=st.none() | st.integers(1, 5),
)


@given(deployments(MISSING))
def test_deciding_and_acting_converges_to_what_is_desired(d: Deployment) -> None:
    end = settle(d)
    assert len(end.instances) == end.desired
    assert all(i.launch == end.launch and i.state is READY for i in end.instances.values())
    assert plan(end) == Plan(done=end.deleting)


@given(deployments(MISSING), st.data())
def test_instances_may_get_on_in_any_order(d: Deployment, data: st.DataObject) -> None:
    for _ in range(20):
        d = step(carry_out(d), data)
    end = settle(d)
    assert [i.state for i in end.instances.values()] == [READY] * end.desired


@given(deployments())
def test_a_plan_that_was_carried_out_is_not_made_again(d: Deployment) -> None:
    after = carry_out(d)
    again = plan(after)
    assert again.start == ()
    assert again.stop == ()


@given(deployments())
def test_what_is_missing_is_started_and_never_more_than_one_beyond(d: Deployment) -> None:
    made = plan(d)
    live = [i for i in d.instances.values() if not i.stopping and i.instance_id not in made.stop]
    assert len(made.start) >= d.desired - len(live)
    assert len(made.start) <= max(0, d.desired + 1 - len(live))
    assert len(live) <= d.desired or not made.start or len(live) + len(made.start) <= d.desired + 1


@given(deployments())
def test_new_instances_get_slots_that_nobody_has(d: Deployment) -> None:
    start = plan(d).start
    taken = {i.slot for i in d.instances.values()}
    assert len(set(start)) == len(start)
    assert not taken & set(start)
    assert all(slot >= 1 for slot in start)


@given(deployments())
def test_only_known_instances_that_are_not_stopping_are_stopped(d: Deployment) -> None:
    stopped = plan(d).stop
    assert len(set(stopped)) == len(stopped)
    assert all(not d.instances[instance_id].stopping for instance_id in stopped)


@given(st.integers(1, 8), st.data())
def test_replacing_ready_replicas_leaves_none_missing(replicas: int, data: st.DataObject) -> None:
    old = [view(slot, launch=1) for slot in range(1, replicas + 1)]
    d = deployment(replicas, 2, *old)
    for _ in range(replicas * 4 + 4):
        d = carry_out(d)
        assert ready_replicas(d) >= replicas
        d = step(d, data)
        assert ready_replicas(d) >= replicas
    assert [(i.launch, i.state) for i in d.instances.values()] == [(2, READY)] * replicas


@given(st.integers(2, 8), st.integers(1, 7), st.data())
def test_scaling_down_while_replacing_keeps_all_serving(before: int, after: int, data: st.DataObject) -> None:
    assume(after < before)
    d = deployment(before, 2, *[view(slot, launch=1) for slot in range(1, before + 1)])
    for _ in range(data.draw(st.integers(0, 3 * before))):
        d = step(carry_out(d), data)
    d = d.with_(spec=spec(after))
    for _ in range(4 * before + 4):
        d = carry_out(d)
        assert ready_replicas(d) >= after
        d = step(d, data)
    assert [(i.launch, i.state) for i in d.instances.values()] == [(2, READY)] * after


def test_replacement_waits_while_a_new_instance_is_not_ready() -> None:
    d = deployment(3, 2, view(1, 1), view(2, 1), view(4, 1), view(3, 2, STARTING))
    assert plan(d) == Plan()


def test_the_next_surge_replica_does_not_wait_for_an_old_one_to_leave() -> None:
    d = deployment(3, 2, view(1, 1), view(2, 1), view(4, 2), view(3, 1, stopping=True))
    assert plan(d) == Plan(start=(5,))


def test_replacement_that_fails_stops_at_one_and_leaves_the_others_serving() -> None:
    d = deployment(3, 2, view(1, 1), view(2, 1), view(3, 2, FAILED))
    assert plan(d) == Plan()
    repaired = change(d, DeploymentChange(spec=spec(3, "other.gguf")), BORN)
    assert plan(repaired) == Plan(start=(4, 5), stop=("m/3-2",))


def test_old_instances_that_do_not_serve_are_replaced_at_once() -> None:
    d = deployment(3, 2, view(1, 1, FAILED), view(2, 1, STARTING), view(3, 1))
    assert plan(d) == Plan(start=(4, 5, 6), stop=("m/1-1", "m/2-1"))


def test_scaling_down_stops_those_that_do_not_serve_first_then_the_highest_slot() -> None:
    views = [view(1, state=STARTING), view(2), view(3), view(4)]
    assert plan(deployment(2, 1, *views)).stop == ("m/1-1", "m/4-1")


def test_scaling_up_leaves_what_runs_alone() -> None:
    assert plan(deployment(3, 1, view(2))) == Plan(start=(1, 3))


@given(deployments())
def test_deletion_stops_everything_and_ends_when_all_are_gone(d: Deployment) -> None:
    d = d.with_(deleting=True)
    after = carry_out(d)
    assert all(i.stopping for i in after.instances.values())
    assert plan(d).done == (not d.instances)
    assert plan(settle(d)) == Plan(done=True)


@given(deployments())
def test_nothing_is_done_before_deletion_was_asked_for(d: Deployment) -> None:
    assert not plan(d.with_(deleting=False)).done


@given(deployments())
def test_stopped_deployment_wants_nothing_and_comes_back_as_it_was(d: Deployment) -> None:
    d = d.with_(deleting=False)
    off = change(d, DeploymentChange(stopped=True), BORN)
    assert off.desired == 0
    assert change(off, DeploymentChange(stopped=False), BORN).desired == d.spec.replicas


@given(deployments(), changes)
def test_generation_grows_by_one_exactly_when_something_changed(d: Deployment, wanted: DeploymentChange) -> None:
    after = change(d, wanted, BORN)
    same = after.with_(generation=d.generation) == d
    assert after.generation == d.generation + (0 if same else 1)
    assert (after is d) == same


@given(deployments(), changes.filter(lambda c: c.restart_of is None))
def test_asking_for_the_same_change_twice_changes_once(d: Deployment, wanted: DeploymentChange) -> None:
    once = change(d, wanted, BORN)
    assert change(once, wanted, BORN) is once


@given(deployments())
def test_restarting_the_same_launch_twice_restarts_once(d: Deployment) -> None:
    wanted = DeploymentChange(restart_of=d.launch)
    once = change(d, wanted, BORN)
    assert once.launch == d.launch + 1
    assert once.revision == d.revision
    assert change(once, wanted, BORN) is once


@given(deployments(), changes)
def test_counters_never_go_back_and_a_new_revision_is_a_new_launch(d: Deployment, wanted: DeploymentChange) -> None:
    after = change(d, wanted, BORN)
    assert after.revision >= d.revision
    assert after.launch >= d.launch
    assert (after.revision > d.revision) <= (after.launch > d.launch)
    assert (after.engine_version != d.engine_version) <= (after.revision > d.revision)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_scaling_needs_no_new_engines(before: int, after: int) -> None:
    assert not needs_new_engines(spec(before), spec(after))


@pytest.mark.parametrize(
    "other",
    [
        {"model": ModelSource(path="other.gguf")},
        {"engine_args": ["--threads", "2"]},
        {"env": {"A": "1"}},
        {"max_model_len": 1024},
        {"resources": Resources(memory_bytes=1 << 30)},
    ],
)
def test_other_changes_of_the_spec_need_new_engines(other: dict[str, Any]) -> None:
    fields = dict(spec()) | other
    assert needs_new_engines(spec(), DeploymentSpec.model_validate(fields))


@given(deployments())
def test_news_of_an_unknown_instance_changes_nothing(d: Deployment) -> None:
    news = InstanceNews(instance_id="m/99-9", state=READY)
    assert hear(d, news) is d
    assert hear(d, news.model_copy(update={"gone": True})) is d


@given(deployments(), st.sampled_from(InstanceState))
def test_hearing_the_same_news_twice_is_hearing_it_once(d: Deployment, state: InstanceState) -> None:
    assume(d.instances)
    instance_id = min(d.instances)
    news = InstanceNews(instance_id=instance_id, state=state, message="x", hint="y")
    once = hear(d, news)
    assert hear(once, news) == once
    assert (once.instances[instance_id].state, once.instances[instance_id].hint) == (state, "y")
    assert once.instances[instance_id].stopping == d.instances[instance_id].stopping


def test_instance_that_is_gone_is_replaced() -> None:
    d = deployment(2, 1, view(1), view(2))
    d = hear(d, InstanceNews(instance_id="m/1-1", state=InstanceState.STOPPED, gone=True))
    assert plan(d) == Plan(start=(1,))


@pytest.mark.parametrize(
    ("d", "expected"),
    [
        (deployment(1), DeploymentPhase.PENDING),
        (deployment(1, 1, view(1, state=InstanceState.PENDING)), DeploymentPhase.PENDING),
        (deployment(1, 1, view(1, state=InstanceState.PLACING)), DeploymentPhase.PENDING),
        (deployment(1, 1, view(1, state=STARTING)), DeploymentPhase.DEPLOYING),
        (deployment(2, 1, view(1), view(2, state=STARTING)), DeploymentPhase.DEPLOYING),
        (deployment(2, 1, view(1), view(2)), DeploymentPhase.READY),
        (deployment(2, 2, view(1, 1), view(2, 2)), DeploymentPhase.DEPLOYING),
        (deployment(2, 1, view(1), view(2, state=InstanceState.SUSPECT)), DeploymentPhase.DEGRADED),
        (deployment(2, 1, view(1), view(2, state=InstanceState.RECOVERING)), DeploymentPhase.DEGRADED),
        (deployment(2, 1, view(1), view(2, state=FAILED)), DeploymentPhase.DEGRADED),
        (deployment(2, 1, view(1, state=FAILED), view(2, state=FAILED)), DeploymentPhase.FAILED),
        (deployment(0), DeploymentPhase.STOPPED),
        (deployment(0, 1, view(1, stopping=True)), DeploymentPhase.DEPLOYING),
        (deployment(2, 1, view(1)).with_(deleting=True), DeploymentPhase.DELETING),
        (deployment(2).with_(stopped=True), DeploymentPhase.STOPPED),
    ],
)
def test_phase_says_what_people_see(d: Deployment, expected: DeploymentPhase) -> None:
    assert phase(d) is expected


@given(deployments(MISSING))
def test_settled_deployment_is_ready_stopped_or_on_its_way_out(d: Deployment) -> None:
    end = settle(d)
    expected = DeploymentPhase.READY if end.desired else DeploymentPhase.STOPPED
    assert phase(end) is (DeploymentPhase.DELETING if end.deleting else expected)


def test_the_worst_instance_speaks_for_all() -> None:
    d = deployment(
        3,
        1,
        view(1),
        view(2, state=InstanceState.RECOVERING, message="exited", hint="wait"),
        view(3, state=FAILED, message="no such file", hint="copy the file"),
    )
    assert message(d) == ("1 of 3 replicas ready; m/3-1 failed: no such file", "copy the file")
    assert message(deployment(1, 1, view(1))) == ("1 of 1 replicas ready", "")


@given(deployments())
def test_description_names_the_state_the_next_step_and_every_instance(d: Deployment) -> None:
    text = describe(d, BORN)
    assert text.startswith(f"**{phase(d)}**")
    assert f"Next: {plan(d)}" in text
    assert all(f"`{instance_id}`" in text for instance_id in d.instances)


def test_plans_read_as_sentences() -> None:
    assert str(Plan(start=(1, 2), stop=("m/3-1",))) == "start 2; stop m/3-1"
    assert str(Plan()) == "nothing to do"
    assert str(Plan(done=True)) == "end"
