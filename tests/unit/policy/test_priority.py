"""Levels, and that a change of them is about no engine."""

import pytest

from fleet.changes import change, needs_new_engines
from fleet.deployments import DeploymentChange, GivenUp, go_back
from fleet.policy.priority import LEVELS, Standing, level, rank
from fleet.specs import PrioritySpec
from tests.unit.fleet.worlds import BORN, deployment, spec, view

HIGH = PrioritySpec(level="high", floor=3)


def test_levels_are_in_order_and_have_names() -> None:
    assert [rank(name) for name in ("low", "normal", "high", "critical")] == [0, 1, 2, 3]
    assert [level(n) for n in range(4)] == list(LEVELS)


def test_a_change_of_priority_needs_no_new_engines() -> None:
    raised = spec().model_copy(update={"priority": HIGH})
    assert not needs_new_engines(spec(), raised)
    before = deployment(1, 1, view(1))
    after = change(before, DeploymentChange(spec=raised), BORN)
    assert (after.spec.priority, after.revision, after.launch) == (HIGH, before.revision, before.launch)
    assert after.generation == before.generation + 1


def test_going_back_leaves_the_priority_of_now() -> None:
    proven = deployment(1, 1, view(1)).with_(proven=True)
    rolling = change(proven, DeploymentChange(spec=spec(path="other.gguf")), BORN)
    raised = change(rolling, DeploymentChange(spec=rolling.spec.model_copy(update={"priority": HIGH})), BORN)
    back = go_back(raised, GivenUp(revision=raised.revision, outcome="failed", reason="test"), BORN)
    assert (back.spec.model.path, back.spec.priority) == ("model.gguf", HIGH)


@pytest.mark.parametrize(
    ("standing", "taker", "spares"),
    [
        (Standing(priority=1, ready=3, floor=1), 1, 0),
        (Standing(priority=1, ready=3, floor=1), 2, 2),
        (Standing(priority=1, ready=1, floor=3), 2, 0),
        (Standing(priority=1, ready=3, floor=3, below_floor=True), 2, 0),
        (Standing(priority=1, ready=3, floor=3, below_floor=True), 3, None),
        (Standing(priority=3, ready=3, floor=0, below_floor=True), 3, 0),
    ],
)
def test_what_a_deployment_can_spare(standing: Standing, taker: int, spares: int | None) -> None:
    assert standing.spares(taker) == spares
