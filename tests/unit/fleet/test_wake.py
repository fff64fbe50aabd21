"""A request for a model without replicas starts some: as a level, and only where that is wanted."""

import pytest

from fleet.changes import change, needs_new_engines, wake, why_not_woken
from fleet.deployments import Deployment, DeploymentChange, Wake
from fleet.specs import MAX_REPLICAS, AutoscalingSpec
from tests.unit.fleet.worlds import BORN, deployment, spec, view

WAKEABLE = AutoscalingSpec(wake_on_request=True)


def asleep() -> Deployment:
    d = deployment(0, 1)
    return d.with_(spec=d.spec.model_copy(update={"replicas": 0, "autoscaling": WAKEABLE}))


def test_waking_is_a_change_of_replicas_like_a_persons() -> None:
    before = asleep()
    after = wake(before, Wake(replicas=2), BORN)
    assert (after.spec.replicas, after.desired) == (2, 2)
    assert after.generation == before.generation + 1
    assert (after.revision, after.launch) == (before.revision, before.launch)


def test_waking_twice_is_waking_once() -> None:
    once = wake(asleep(), Wake(replicas=2), BORN)
    assert wake(once, Wake(replicas=5), BORN) is once
    assert why_not_woken(once)[0] == "Awake"


def test_at_least_one_and_no_more_than_a_deployment_may_have() -> None:
    assert wake(asleep(), Wake(replicas=0), BORN).desired == 1
    assert wake(asleep(), Wake(replicas=10**6), BORN).desired == MAX_REPLICAS


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"stopped": True}, "Stopped"),
        ({"deleting": True}, "Deleting"),
        ({"spec": spec().model_copy(update={"replicas": 0})}, "NotWoken"),
    ],
)
def test_what_must_not_be_woken(changes: dict[str, object], kind: str) -> None:
    d = asleep().with_(**changes)
    assert why_not_woken(d)[0] == kind
    assert wake(d, Wake(), BORN) is d


def test_a_change_of_autoscaling_needs_no_new_engines() -> None:
    before = deployment(1, 1, view(1))
    wanted = before.spec.model_copy(update={"autoscaling": WAKEABLE})
    assert not needs_new_engines(before.spec, wanted)
    after = change(before, DeploymentChange(spec=wanted), BORN)
    assert (after.spec.autoscaling, after.launch) == (WAKEABLE, before.launch)
