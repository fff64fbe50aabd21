"""What people do to a deployment while it is being rolled out, and to its replicas."""

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fleet.changes import change, leave, steer, why_not
from fleet.deployment_status import phase, ready_replicas
from fleet.deployments import DeploymentChange, InstancesLeave, look
from fleet.replicas import next_deadline
from fleet.rollouts import Stage, Steer, Steering
from fleet.specs import RolloutSpec
from fleet.states import DeploymentPhase
from tests.unit.fleet.simulation import GONE, Simulation, count


def test_a_person_may_want_to_see_a_failure_instead_of_going_back() -> None:
    s = Simulation(3, on_failure="pause")
    s.deploy()
    s.run(lambda i: i.endswith("-1"), rounds=10)
    assert s.d.rollout is not None
    assert s.d.rollout.paused
    assert "bad flag" in s.d.rollout.note
    assert (len(s.of(1)), s.fewest) == (3, 3)
    s.steer(Steering.RESUME)
    s.run(rounds=60)
    assert (s.d.rollout, s.d.revision, len(s.of(2))) == (None, 2, 3)


@pytest.mark.parametrize("stage", [Stage.TRYING, Stage.BAKING])
@pytest.mark.parametrize("strategy", ["canary", "blue_green"])
def test_a_trial_can_be_aborted_at_any_stage(strategy: str, stage: Stage) -> None:
    s = Simulation(3, strategy=strategy, bake_s=600)
    s.deploy()
    s.act()
    if stage is Stage.BAKING:
        s.run(rounds=3)
    assert s.stage is stage
    s.steer(Steering.ABORT)
    s.run()
    assert (s.d.rollout, s.d.revision, s.of(1), s.of(2)) == (None, 1, ["m/1-1", "m/2-1", "m/3-1"], [])
    assert s.fewest == 3
    assert s.d.given_up is not None
    assert (s.d.given_up.revision, s.d.given_up.outcome) == (2, "aborted")


@given(
    st.integers(1, 5),
    st.sampled_from(["rolling", "canary", "blue_green", "recreate"]),
    st.lists(
        st.sampled_from([*Steering, "scale up", "scale down", "deploy", "restart", "leave", "get on"]), max_size=25
    ),
)
@settings(deadline=None)
def test_whatever_people_do_meanwhile_it_ends_with_what_they_last_wanted(
    replicas: int, strategy: str, deeds: list[str]
) -> None:
    s = Simulation(replicas, strategy=strategy, bake_s=30)
    for number, deed in enumerate(["deploy", *deeds]):
        s.act()
        if isinstance(deed, Steering):
            if not why_not(s.d, Steer(action=deed)):
                s.steer(deed)
        elif deed == "deploy":
            s.deploy(f"{number}.gguf")
        elif deed == "restart":
            s.d = change(s.d, DeploymentChange(restart_of=s.d.launch), s.now)
        elif deed == "leave":
            wanted = InstancesLeave(instance_ids=tuple(sorted(s.d.instances)[:1]), reason="drain")
            s.d = leave(s.d, wanted)
        elif deed == "get on":
            s.run(rounds=2)
        else:
            by = 1 if deed == "scale up" else -1
            size = max(1, s.d.spec.replicas + by)
            s.d = change(s.d, DeploymentChange(spec=s.d.spec.model_copy(update={"replicas": size})), s.now)
    if s.d.rollout is not None and s.d.rollout.paused:
        s.steer(Steering.RESUME)
    for _ in range(200):
        s.run(rounds=1, pause=timedelta(seconds=20))
        if s.stage is Stage.BAKING:
            s.d = look(s.d, s.d.launch, count(0), count(0), s.now)
    assert s.d.rollout is None
    assert len(s.d.instances) == s.d.desired
    assert {i.launch for i in s.d.instances.values()} == {s.d.launch}
    assert s.d.proven
    assert next_deadline(s.d) is None


@given(st.integers(1, 5), st.integers(0, 30))
@settings(deadline=None)
def test_paused_rollout_moves_neither_way_but_makes_up_for_what_dies(replicas: int, rounds: int) -> None:
    s = Simulation(replicas)
    s.deploy()
    for _ in range(rounds):
        s.act()
        s.get_on()
    if s.d.rollout is None:
        return
    s.steer(Steering.PAUSE)
    s.run(rounds=5)
    before = {launch: len(s.of(launch)) for launch in (1, 2)}
    s.say(sorted(s.d.instances)[0], GONE, gone=True)
    s.run(rounds=20)
    after = {launch: len(s.of(launch)) for launch in (1, 2)}
    assert sum(after.values()) >= replicas
    assert abs(after[2] - before[2]) <= 1
    assert abs(after[1] - before[1]) <= 1
    assert ready_replicas(s.d) >= replicas
    s.steer(Steering.RESUME)
    s.run(rounds=20 * replicas)
    assert s.d.rollout is None


def test_taking_a_change_back_keeps_the_engines_that_still_run() -> None:
    s = Simulation(4)
    s.deploy()
    s.run(rounds=2)
    left = s.of(1)
    assert 0 < len(left) < 5
    assert s.of(2)
    s.deploy("first.gguf")
    assert (s.d.revision, s.d.launch) == (1, 1)
    s.run()
    assert set(left) <= set(s.d.instances)
    assert (len(s.of(1)), s.fewest) == (4, 4)


@given(st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None)
def test_instances_that_are_to_leave_are_replaced_before_they_go(replicas: int, leaving: int) -> None:
    s = Simulation(replicas)
    who = tuple(sorted(s.d.instances)[:leaving])
    s.d = leave(s.d, InstancesLeave(instance_ids=who, reason="drain"))
    assert leave(s.d, InstancesLeave(instance_ids=who, reason="drain")) is s.d
    s.act()
    assert set(who) <= set(s.d.instances)
    assert not any(s.d.instances[i].stopping for i in who)
    s.run(rounds=5)
    assert not set(who) & set(s.d.instances)
    assert (len(s.d.instances), s.fewest, phase(s.d)) == (replicas, replicas, DeploymentPhase.READY)


def test_instances_that_need_not_leave_any_more_stay() -> None:
    s = Simulation(2)
    s.room = 2
    wanted = InstancesLeave(instance_ids=("m/1-1", "m/9-9"), reason="a is drained")
    s.d = leave(s.d, wanted)
    s.run(rounds=3)
    other = wanted.model_copy(update={"stay": True, "reason": "b is drained"})
    assert leave(s.d, other) is s.d
    s.d = leave(s.d, wanted.model_copy(update={"stay": True}))
    s.run(rounds=5)
    assert sorted(s.d.instances) == ["m/1-1", "m/2-1"]
    assert phase(s.d) is DeploymentPhase.READY


def test_instances_that_are_to_leave_stay_without_room_until_their_deadline() -> None:
    s = Simulation(2)
    s.room = 2
    by = s.now + timedelta(minutes=10)
    s.d = leave(s.d, InstancesLeave(instance_ids=("m/1-1",), reason="drain", by=by))
    s.run(rounds=300)
    assert "m/1-1" in s.d.instances
    assert not s.d.instances["m/1-1"].stopping
    assert next_deadline(s.d) == by
    s.now = by
    s.act()
    assert s.d.instances["m/1-1"].stopping


def test_repeated_requests_are_done_once() -> None:
    s = Simulation(1)
    again = DeploymentChange(restart_of=1, key="k1")
    once = change(s.d, again, s.now)
    assert once.launch == 2
    assert change(once, again.model_copy(update={"restart_of": 2}), s.now) is once
    paused = steer(once, Steer(action=Steering.PAUSE, key="k2"), s.now)
    resumed = steer(paused, Steer(action=Steering.RESUME, key="k3"), s.now)
    assert steer(resumed, Steer(action=Steering.PAUSE, key="k2"), s.now) is resumed
    many = resumed
    for n in range(100):
        many = change(many, DeploymentChange(labels={"n": str(n)}, key=f"n{n}"), s.now)
    assert len(many.change_keys) <= 32


def test_steering_nothing_is_refused() -> None:
    s = Simulation(1)
    assert "no rollout" in why_not(s.d, Steer(action=Steering.PAUSE))
    s.deploy()
    assert why_not(s.d, Steer(action=Steering.PROMOTE))
    assert not why_not(s.d, Steer(action=Steering.PAUSE))


def test_nobody_can_ask_for_a_rollout_that_cannot_move() -> None:
    with pytest.raises(ValidationError, match="cannot both be 0"):
        RolloutSpec(max_surge=0, max_unavailable=0)


def test_scaling_to_nothing_ends_a_rollout() -> None:
    s = Simulation(2, strategy="canary")
    s.deploy()
    s.act()
    s.d = change(s.d, DeploymentChange(spec=s.spec("second.gguf", 0)), s.now)
    s.run(rounds=3)
    assert (s.d.rollout, s.d.instances) == (None, {})
