"""Rollouts of every strategy, with replicas that start, fail and stop in any order."""

from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.changes import change, why_not
from fleet.deployment_status import message, phase, rollout_view, traffic
from fleet.deployments import DeploymentChange, advance, hear, look
from fleet.instances import InstanceNews
from fleet.replicas import decide, next_deadline
from fleet.rollouts import Stage, Steer, Steering
from fleet.specs import CanarySpec
from fleet.states import DeploymentPhase
from tests.unit.fleet.simulation import FAILED, GONE, PENDING, READY, RECOVERING, SECOND, STARTING, Simulation, count
from tests.unit.fleet.worlds import BORN, apply, deployment, view


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


def test_no_more_room_is_made_while_a_replica_that_got_some_still_starts() -> None:
    s = Simulation(2)
    s.deploy()
    s.act()
    [first] = s.of(2)
    s.say(first, PENDING, message="no room", unplaceable=True)
    s.act()
    s.now += timedelta(minutes=1)
    s.act()
    [leaving] = [i.instance_id for i in s.d.instances.values() if i.stopping]
    s.say(leaving, GONE, gone=True)
    s.say(first, STARTING)
    s.act()
    for waiting in set(s.of(2)) - {first}:
        s.say(waiting, PENDING, message="no room", unplaceable=True)
    for _ in range(5):
        s.now += timedelta(hours=1)
        s.act()
    assert s.fewest == 1, "the last old one serves until the new one does"
    s.say(first, READY)
    s.run(rounds=20)
    assert s.d.rollout is None


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


def test_a_look_that_comes_too_late_is_of_no_use() -> None:
    s = Simulation(1, strategy="canary")
    s.deploy()
    assert look(s.d, 2, count(1), count(1), s.now) is s.d
    assert look(s.d, 7, count(1), count(1), datetime.max.replace(tzinfo=BORN.tzinfo)) is s.d
    assert CanarySpec().auto_promote
