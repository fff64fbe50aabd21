"""Rollouts of every strategy, with replicas that start, fail and stop in any order."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fleet.changes import change, leave, steer, why_not
from fleet.deployment_status import message, phase, ready_replicas, rollout_view, traffic
from fleet.deployments import DeploymentChange, InstancesLeave, advance, hear, look
from fleet.instances import InstanceNews
from fleet.policy.canary import Reading
from fleet.replicas import decide, next_deadline
from fleet.rollouts import Stage, Steer, Steering
from fleet.specs import CanarySpec, DeploymentSpec, ModelSource, RolloutSpec
from fleet.states import DeploymentPhase, InstanceState
from tests.unit.fleet.worlds import BORN, apply, deployment, view

READY, FAILED, PENDING = InstanceState.READY, InstanceState.FAILED, InstanceState.PENDING
STARTING, RECOVERING = InstanceState.STARTING, InstanceState.RECOVERING
GONE = InstanceState.STOPPED
SECOND = timedelta(seconds=1)


class Simulation:
    """A deployment whose first revision works, and a second one that is being rolled out."""

    def __init__(self, replicas: int, **rollout: Any) -> None:
        self.now = BORN
        self.room = 10_000
        self.policy = RolloutSpec.model_validate(rollout)
        first = deployment(replicas, 1, *[view(slot) for slot in range(1, replicas + 1)])
        self.d = advance(first.with_(spec=self.spec("first.gguf", replicas)), self.now)
        assert self.d.proven or replicas == 0
        self.fewest = self.most = len(self.d.instances)

    def spec(self, path: str, replicas: int | None = None) -> DeploymentSpec:
        count = self.d.spec.replicas if replicas is None else replicas
        return DeploymentSpec(model=ModelSource(path=path), replicas=count, rollout=self.policy)

    def deploy(self, path: str = "second.gguf") -> None:
        self.d = change(self.d, DeploymentChange(spec=self.spec(path)), self.now)

    def steer(self, action: Steering) -> None:
        assert why_not(self.d, Steer(action=action)) == ""
        self.d = steer(self.d, Steer(action=action), self.now)

    def act(self) -> None:
        self.d = advance(self.d, self.now)
        self.d = apply(self.d, decide(self.d, self.now))
        self.note()

    def note(self) -> None:
        self.fewest = min(self.fewest, ready_replicas(self.d))
        self.most = max(self.most, len([i for i in self.d.instances.values() if not i.stopping]))

    def say(self, instance_id: str, state: InstanceState, **news: Any) -> None:
        self.d = hear(self.d, InstanceNews(instance_id=instance_id, state=state, **news))
        self.note()

    def of(self, launch: int) -> list[str]:
        return sorted(i.instance_id for i in self.d.instances.values() if i.launch == launch and not i.stopping)

    def get_on(self, works: Callable[[str], bool] = lambda _: True) -> None:
        """Every instance gets on: those that stop are gone, those that have room start or fail."""
        for i in sorted(self.d.instances.values(), key=lambda i: (not i.stopping, i.instance_id)):
            if i.stopping:
                self.say(i.instance_id, GONE, gone=True)
            elif i.state in (PENDING, STARTING):
                placed = [o for o in self.d.instances.values() if o.state is not PENDING]
                if len(placed) >= self.room:
                    self.say(i.instance_id, PENDING, message="no room", unplaceable=True)
                elif works(i.instance_id):
                    self.say(i.instance_id, READY)
                else:
                    self.say(i.instance_id, FAILED, message="bad flag")

    def run(self, works: Callable[[str], bool] = lambda _: True, rounds: int = 60, pause: timedelta = SECOND) -> None:
        for _ in range(rounds):
            self.act()
            self.get_on(works)
            self.now += pause
        self.act()

    @property
    def stage(self) -> Stage | None:
        return self.d.rollout.stage if self.d.rollout is not None else None


def count(requests: int, errors: int = 0) -> Reading:
    return Reading(requests=requests, errors=errors, latency=(0, requests))


@given(st.integers(1, 8), st.integers(0, 3), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_rolling_keeps_to_its_bounds_in_whatever_order_things_happen(
    replicas: int, surge: int, unavailable: int, random: Any
) -> None:
    if surge == unavailable == 0:
        surge = 1
    s = Simulation(replicas, max_surge=surge, max_unavailable=unavailable)
    s.deploy()
    for _ in range(40 * replicas):
        s.act()
        moving = [i for i in s.d.instances.values() if i.stopping or i.state is not READY]
        if moving:
            i = random.choice(sorted(moving, key=lambda i: i.instance_id))
            s.say(i.instance_id, GONE if i.stopping else READY, gone=i.stopping)
        s.now += SECOND
    assert s.d.rollout is None
    assert s.of(2) == sorted(s.d.instances)
    assert len(s.of(2)) == replicas
    assert s.fewest >= max(0, replicas - unavailable)
    assert s.most <= replicas + surge
    assert (s.d.proven, s.d.revision, phase(s.d)) == (True, 2, DeploymentPhase.READY)


@given(st.integers(1, 6), st.sampled_from(["rolling", "canary", "blue_green"]))
@settings(deadline=None)
def test_without_room_for_a_surge_old_replicas_go_first_one_at_a_time(replicas: int, strategy: str) -> None:
    s = Simulation(replicas, strategy=strategy, bake_s=0)
    s.room = replicas
    s.deploy()
    for _ in range(30 * replicas):
        s.run(rounds=1, pause=timedelta(seconds=11))
        if s.stage is Stage.BAKING:
            s.d = look(s.d, s.d.launch, count(0), count(0), s.now)
    assert s.d.rollout is None
    assert len(s.of(2)) == replicas
    if strategy == "rolling":
        assert s.fewest >= replicas - 1


def test_that_it_recreates_for_want_of_room_is_said() -> None:
    s = Simulation(2)
    s.room = 2
    s.deploy()
    s.run(rounds=3)
    assert s.of(1) == ["m/1-1", "m/2-1"], "patience first: room may come in a moment"
    while s.d.rollout is None or not s.d.rollout.dip:
        s.run(rounds=1)
    text, shown = message(s.d)[0], rollout_view(s.d)
    assert "recreate" in text
    assert "no room" in text
    assert shown is not None
    assert (shown["strategy"], shown["mode"]) == ("rolling", "recreate")


def test_room_that_was_made_is_looked_for_before_more_is_made() -> None:
    s = Simulation(3)
    s.deploy()
    s.act()
    [new] = s.of(2)
    s.say(new, PENDING, message="no room", unplaceable=True)
    s.act()
    s.now += timedelta(minutes=1)
    s.act()
    [leaving] = [i.instance_id for i in s.d.instances.values() if i.stopping]
    s.say(leaving, GONE, gone=True)
    for _ in range(5):
        s.now += timedelta(hours=1)
        s.act()
    assert s.fewest == 2, "the new one has not asked again yet"
    s.say(new, PENDING, message="still no room", unplaceable=True)
    s.act()
    s.now += timedelta(minutes=1)
    s.act()
    assert s.fewest == 1


def test_recreate_starts_nothing_new_before_all_old_ones_are_gone() -> None:
    s = Simulation(3, strategy="recreate")
    s.deploy()
    s.act()
    assert all(i.stopping for i in s.d.instances.values())
    first, *rest = sorted(s.d.instances)
    for instance_id in rest:
        s.say(instance_id, GONE, gone=True)
        s.act()
        assert s.of(2) == []
    s.say(first, GONE, gone=True)
    s.act()
    assert len(s.of(2)) == 3
    s.run(rounds=3)
    assert s.d.rollout is None


@given(st.integers(1, 6), st.integers(0, 40), st.sampled_from(["rolling", "canary", "blue_green", "recreate"]))
@settings(deadline=None)
def test_a_new_revision_that_fails_is_gone_back_from_whenever_it_fails(
    replicas: int, after: int, strategy: str
) -> None:
    s = Simulation(replicas, strategy=strategy, bake_s=5)
    s.deploy()
    works = iter([True] * after)
    good: dict[str, bool] = {}

    def fate(instance_id: str) -> bool:
        return instance_id.endswith("-1") or good.setdefault(instance_id, next(works, False))

    for _ in range(80):
        s.run(fate, rounds=1)
        if s.stage is Stage.BAKING:
            s.d = look(s.d, s.d.launch, count(0), count(0), s.now)
    assert s.d.rollout is None
    if all(good.values()):
        assert (s.d.revision, len(s.of(2))) == (2, replicas)
        return
    assert (s.d.revision, s.d.launch, s.d.spec.model.path) == (1, 1, "first.gguf")
    assert len(s.of(1)) == len(s.d.instances) == replicas
    assert s.d.given_up is not None
    assert (s.d.given_up.revision, s.d.given_up.outcome) == (2, "failed")
    assert "revision 2 failed" in message(s.d)[0]
    if strategy != "recreate":
        assert s.fewest >= replicas


def test_what_was_gone_back_from_is_told_until_the_next_change() -> None:
    s = Simulation(2)
    s.deploy()
    s.run(lambda i: i.endswith("-1"), rounds=10)
    assert change(s.d, DeploymentChange(labels={}), s.now) is s.d
    assert s.d.given_up is not None
    scaled = change(s.d, DeploymentChange(spec=s.spec("first.gguf", 3)), s.now)
    assert (scaled.given_up, scaled.revision) == (None, 1)


def test_the_revision_after_one_that_failed_has_a_number_of_its_own() -> None:
    s = Simulation(1)
    s.deploy()
    s.run(lambda i: i.endswith("-1"), rounds=10)
    s.deploy("third.gguf")
    s.run()
    assert (s.d.revision, s.d.launch, s.d.given_up) == (3, 3, None)


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


def test_what_never_worked_is_not_gone_back_to() -> None:
    broken = deployment(1, 1, view(1, 1, FAILED))
    d = change(broken, DeploymentChange(spec=broken.spec.model_copy(update={"max_model_len": 64})), BORN)
    assert d.rollout is not None
    assert d.rollout.stable is None
    d = advance(hear(apply(d, decide(d, BORN)), InstanceNews(instance_id="m/2-2", state=FAILED)), BORN)
    assert d.revision == 2
    assert why_not(d, Steer(action=Steering.ABORT))


def test_canary_is_tried_baked_and_promoted() -> None:
    s = Simulation(3, strategy="canary", bake_s=60, canary={"replicas": 1})
    s.deploy()
    s.run(rounds=3)
    assert (s.stage, len(s.of(1)), len(s.of(2))) == (Stage.BAKING, 3, 1)
    assert next_deadline(s.d) is not None
    s.d = look(s.d, 2, count(100), count(0), s.now)
    s.run(rounds=58)
    assert s.stage is Stage.BAKING
    s.now += timedelta(seconds=10)
    s.d = look(s.d, 2, count(200), count(50), s.now)
    s.run()
    assert s.d.rollout is None
    assert (len(s.of(2)), s.fewest) == (3, 3)


def test_canary_waits_for_a_person_when_told_to() -> None:
    s = Simulation(2, strategy="canary", bake_s=10, canary={"auto_promote": False})
    s.deploy()
    s.run(rounds=3)
    s.d = look(s.d, 2, count(0), count(0), s.now)
    s.now += timedelta(days=3)
    s.d = look(s.d, 2, count(0), count(0), s.now)
    s.run(rounds=5, pause=timedelta(days=1))
    assert (s.stage, len(s.of(2))) == (Stage.WAITING, 1)
    s.steer(Steering.PROMOTE)
    s.run()
    assert len(s.of(2)) == 2


def test_canary_that_answers_badly_is_gone_back_from_and_gets_no_request_more() -> None:
    s = Simulation(3, strategy="canary", bake_s=600, canary={"weight": 25, "min_requests": 10})
    s.deploy()
    assert traffic(s.d) == {"2": 25, "1": 75}
    s.run(rounds=3)
    s.d = look(s.d, 2, count(1000), count(500, 400), s.now)
    assert s.stage is Stage.BAKING, "what was counted before it baked is not held against it"
    s.d = look(s.d, 2, count(1100), count(530, 430), s.now + SECOND)
    assert (s.d.revision, s.d.rollout is not None and s.d.rollout.back) == (1, True)
    assert traffic(s.d) == {"1": 100, "2": 0}
    s.run()
    assert (s.d.rollout, traffic(s.d), len(s.of(1)), len(s.of(2)), s.fewest) == (None, {}, 3, 0, 3)
    assert s.d.given_up is not None
    assert "failed" in s.d.given_up.reason


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


def test_blue_green_switches_when_all_are_ready_and_keeps_the_old_for_a_while() -> None:
    s = Simulation(3, strategy="blue_green", bake_s=60)
    s.deploy()
    assert traffic(s.d) == {"2": 0, "1": 100}
    assert why_not(s.d, Steer(action=Steering.PROMOTE))
    s.act()
    s.say(s.of(2)[0], READY)
    s.act()
    assert traffic(s.d) == {"2": 0, "1": 100}
    s.run(rounds=2)
    assert (s.stage, traffic(s.d), len(s.of(1))) == (Stage.BAKING, {"2": 100, "1": 0}, 3)
    s.d = look(s.d, 2, count(0), count(0), s.now)
    s.now += timedelta(seconds=61)
    s.d = look(s.d, 2, count(0), count(9), s.now)
    s.run(rounds=1)
    assert traffic(s.d) in ({"2": 100, "1": 0}, {})
    s.run()
    assert (s.d.rollout, len(s.of(1)), len(s.of(2)), s.fewest) == (None, 0, 3, 3)


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


def test_an_old_replica_that_crashes_recovers_until_the_new_revision_has_shown_that_it_works() -> None:
    s = Simulation(2)
    s.deploy()
    s.act()
    s.say("m/1-1", RECOVERING, message="crashed")
    s.act()
    assert not s.d.instances["m/1-1"].stopping
    s.say(s.of(2)[0], READY)
    s.act()
    assert s.d.instances["m/1-1"].stopping


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


def test_a_look_that_comes_too_late_is_of_no_use() -> None:
    s = Simulation(1, strategy="canary")
    s.deploy()
    assert look(s.d, 2, count(1), count(1), s.now) is s.d
    assert look(s.d, 7, count(1), count(1), datetime.max.replace(tzinfo=BORN.tzinfo)) is s.d
    assert CanarySpec().auto_promote
