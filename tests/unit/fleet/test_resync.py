"""From rows to the states that workflows go on with."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fleet.db.projections import deployment_row, instance_row
from fleet.db.tables import ClaimRow, DeploymentRow, HostRow, InstanceRow
from fleet.deployments import Deployment
from fleet.hosts import Host
from fleet.instances import Instance
from fleet.placement.request import Placement
from fleet.resync import (
    deployment_of,
    host_of,
    instance_of,
    is_gone,
    lost_hosts,
    stale_claims,
)
from fleet.states import ClaimState, HostState, InstanceState
from tests.unit.fleet.states import deployments, hosts, instances
from tests.unit.fleet.worlds import BORN, deployment, view

PLACEMENT = Placement(host_id="h1", memory_bytes=7, model_path="/models/m.gguf")
OWNER = deployment_row(deployment(), "run-1")


def claim(fence: int, state: ClaimState = ClaimState.BOUND, host_id: str = "h1", instance: str = "m/1-a") -> ClaimRow:
    return ClaimRow(
        instance_id=instance,
        fence=fence,
        host_id=host_id,
        memory_bytes=7,
        state=state,
        placement=PLACEMENT.model_dump(mode="json"),
    )


def ready(fence: int = 3, **changes: Any) -> Instance:
    fields: dict[str, Any] = {
        "instance_id": "m/1-a",
        "deployment": "m",
        "slot": 1,
        "revision": 1,
        "launch": 1,
        "spec": {"engine": "llama_cpp", "engine_version": "1", "model_path": "m.gguf", "served_name": "m"},
        "state": InstanceState.READY,
        "placement": PLACEMENT,
        "fence": fence,
        "endpoint": "http://127.0.0.1:9",
        "pid": 5,
        "ready_since": BORN,
        "projection": 11,
    }
    return Instance.model_validate(fields | changes)


def go_on(instance: Instance, claims: Sequence[ClaimRow], lost: set[str] | None = None) -> Instance:
    return instance_of(instance_row(instance), OWNER, claims, lost or set()).instance


def host_row(host: Host, **changes: Any) -> HostRow:
    fields = {
        "id": host.host_id,
        "name": host.name,
        "state": host.state,
        "credential_hash": "x",
        "projection": host.projection,
        "durable": host.model_dump(mode="json"),
    }
    return HostRow(**fields | changes)


# -- nothing is forgotten -------------------------------------------------------------------------------------------


@given(instances())
def test_an_instance_that_keeps_its_place_goes_on_exactly_as_it_was(instance: Instance) -> None:
    fence = instance.fence
    kept = [claim(fence)] if instance.placement is not None else []
    settled = instance if kept else instance.with_(state=InstanceState.FAILED)
    assert go_on(settled, kept) == settled


@given(deployments(), st.text(max_size=8))
def test_a_deployment_goes_on_exactly_as_it_was(known: tuple[Deployment, list[Instance]], run_id: str) -> None:
    was, there = known
    assert deployment_of(deployment_row(was, run_id), there) == was.with_(run_id=run_id)


@given(hosts().filter(lambda h: h.state is not HostState.SUSPECT))
def test_a_host_goes_on_exactly_as_it_was(host: Host) -> None:
    assert host_of(host_row(host)) == host


def test_a_thousand_replicas_are_not_written_with_every_change_of_their_deployment() -> None:
    few, many = (deployment(n, 1, *(view(slot) for slot in range(1, n + 1))) for n in (1, 1000))
    sizes = [len(str(deployment_row(d, "run-1").durable)) for d in (few, many)]
    assert sizes[1] - sizes[0] < 10, "but for the number of replicas"


# -- what the ledger says is believed first -------------------------------------------------------------------------

claims_of_one = st.lists(
    st.builds(claim, st.integers(0, 6), st.sampled_from(ClaimState), st.sampled_from(["h1", "h2"])),
    unique_by=lambda c: c.fence,
    max_size=4,
)
placed = st.builds(ready, st.integers(0, 6), placement=st.sampled_from([PLACEMENT, None]))


@given(placed, claims_of_one, st.sets(st.sampled_from(["h1", "h2"])))
def test_a_fence_never_goes_back_and_two_places_are_never_kept(
    instance: Instance, claims: list[ClaimRow], lost: set[str]
) -> None:
    row = instance_row(instance)
    revived = instance_of(row, OWNER, claims, lost)
    after = revived.instance
    assert after.fence == max([instance.fence, *(c.fence for c in claims)])
    assert after.projection >= row.projection
    held = [c for c in claims if c.state is not ClaimState.RELEASING]
    left = [c for c in held if c.fence > revived.give_up_to]
    if after.placement is None:
        assert left == []
        assert (after.endpoint, after.pid) == (None, None) or after.state is instance.state
        assert after.state not in (InstanceState.READY, InstanceState.STARTING)
    else:
        assert [c.fence for c in left] == [after.fence]
        assert after.placement.host_id not in lost
        assert after == instance


@given(placed, claims_of_one, st.sets(st.sampled_from(["h1", "h2"])))
def test_going_on_twice_is_going_on_once(instance: Instance, claims: list[ClaimRow], lost: set[str]) -> None:
    once = instance_of(instance_row(instance), OWNER, claims, lost)
    stale = dict(stale_claims([once], claims))
    for c in claims:
        if c.fence <= stale.get(c.instance_id, -1):
            c.state = ClaimState.RELEASING
    twice = instance_of(instance_row(once.instance), OWNER, claims, lost)
    assert twice == once
    assert stale_claims([twice], claims) == []


def test_an_instance_keeps_its_place_only_with_the_claim_of_its_own_fence() -> None:
    assert go_on(ready(3), [claim(3)]).placement == PLACEMENT
    assert go_on(ready(3), [claim(3, ClaimState.HELD)]).placement == PLACEMENT
    for claims in ([], [claim(2)], [claim(3, ClaimState.RELEASING)], [claim(3), claim(4)]):
        moved = go_on(ready(3), claims)
        assert (moved.placement, moved.state, moved.endpoint) == (None, InstanceState.RECOVERING, None)


def test_an_instance_whose_host_is_lost_is_placed_anew() -> None:
    moved = go_on(ready(3), [claim(3)], {"h1"})
    assert (moved.placement, moved.state) == (None, InstanceState.RECOVERING)
    assert "h1" in moved.message
    assert go_on(ready(3), [claim(3)], {"h2"}) == ready(3)


def test_what_waits_fails_or_backs_off_without_a_place_goes_on_so() -> None:
    for state in (InstanceState.FAILED, InstanceState.PENDING, InstanceState.RECOVERING):
        waiting = ready(3, state=state, placement=None, endpoint=None, pid=None, retry_at=BORN)
        assert go_on(waiting, [claim(3, ClaimState.RELEASING)]) == waiting


def test_only_claims_that_are_still_held_are_given_up() -> None:
    other = claim(9, instance="m/2-b")
    revived = instance_of(instance_row(ready(3)), OWNER, [claim(2), claim(3)], set())
    assert stale_claims([revived], [claim(2), claim(3), other]) == [("m/1-a", 2)]
    assert stale_claims([revived], [claim(2, ClaimState.RELEASING), claim(3), other]) == []


# -- deployments and hosts ------------------------------------------------------------------------------------------


def test_a_stop_that_never_reached_its_instance_is_decided_anew() -> None:
    row = deployment_row(deployment(1, 1, view(1, stopping=True, instance_id="m/1-a")), "run-1")
    assert not deployment_of(row, [ready()]).instances["m/1-a"].stopping
    assert deployment_of(row, [ready(stopping=True)]).instances["m/1-a"].stopping


def test_marks_of_instances_that_are_gone_are_dropped() -> None:
    row = deployment_row(deployment(1, 1, view(1, leaving=True, instance_id="m/1-a")), "run-1")
    assert deployment_of(row, [ready()]).instances["m/1-a"].leaving
    assert deployment_of(row, []).instances == {}


def test_only_a_deleted_deployment_without_instances_is_gone() -> None:
    assert is_gone(deployment().with_(deleting=True))
    assert not is_gone(deployment(1, 1, view(1)).with_(deleting=True))
    assert not is_gone(deployment())


def test_a_suspect_host_gets_the_time_of_a_new_one() -> None:
    host = Host(host_id="h1", name="box", state=HostState.SUSPECT, message="silent", registrations=4, projection=9)
    assert host_of(host_row(host)) == host.with_(state=HostState.READY, message="")


def test_a_host_that_never_registered_has_no_workflow() -> None:
    assert host_of(HostRow(id="h1", name="box", state=HostState.LOST, credential_hash="x")) is None


def test_hosts_that_will_tell_their_instances_themselves_do_not_count_as_lost() -> None:
    def row(host_id: str, state: HostState = HostState.LOST, **changes: Any) -> HostRow:
        return host_row(Host(host_id=host_id, name=host_id, state=state, projection=1), **changes)

    rows = [
        row("lost"),
        row("ready", HostState.READY),
        row("suspect", HostState.SUSPECT),
        row("paused", replacement_paused=True),
        row("untold", durable=Host(host_id="untold", name="u", untold=True).model_dump(mode="json")),
    ]
    placed_on = ["lost", "ready", "suspect", "paused", "untold", "forgotten", None]
    assert lost_hosts(rows, placed_on) == {"lost", "forgotten"}
    assert lost_hosts(rows, ["ready"]) == set()


# -- rows that were written before whole states were kept -----------------------------------------------------------


def test_rows_without_a_state_go_on_as_well_as_their_columns_allow() -> None:
    was = ready()
    row = instance_row(was)
    row.durable = {}
    owner = DeploymentRow(**OWNER.model_dump() | {"durable": {}, "revision": 4, "launch": 6, "projection": 21})
    revived = instance_of(row, owner, [claim(3)], set()).instance
    assert revived.placement == PLACEMENT
    same = ("state", "fence", "endpoint", "pid", "launch", "revision", "slot", "projection")
    assert [getattr(revived, name) for name in same] == [getattr(was, name) for name in same]
    assert (revived.spec.model_path, revived.spec.served_name) == ("model.gguf", "m")
    found = deployment_of(owner, [revived])
    assert (found.revision, found.newest_revision, found.launch, found.newest_launch) == (4, 4, 6, 6)
    assert (found.spec, found.created_at, found.projection, found.run_id) == (deployment().spec, BORN, 21, "run-1")
    assert found.instances["m/1-a"].state is InstanceState.READY


def test_old_rows_keep_what_a_person_wanted() -> None:
    stopped = DeploymentRow(**OWNER.model_dump() | {"durable": {}, "stopped": True})
    assert deployment_of(stopped, []).desired == 0
    deleting = DeploymentRow(**OWNER.model_dump() | {"durable": {}, "phase": "deleting"})
    assert is_gone(deployment_of(deleting, []))
    draining = InstanceRow(**instance_row(ready()).model_dump() | {"durable": {}, "state": "draining"})
    assert instance_of(draining, OWNER, [claim(3)], set()).instance.stopping


def test_old_rows_of_instances_without_a_claim_are_placed_anew() -> None:
    row = InstanceRow(**instance_row(ready()).model_dump() | {"durable": {}})
    revived = instance_of(row, OWNER, [], set()).instance
    assert (revived.placement, revived.state, revived.fence) == (None, InstanceState.RECOVERING, 3)


def test_old_rows_of_hosts_can_be_lost_and_come_back() -> None:
    for state, returns_with in ((HostState.READY, 0), (HostState.LOST, 1)):
        row = HostRow(id="h1", name="box", state=state, credential_hash="x", projection=30)
        found = host_of(row)
        assert found is not None
        assert (found.state, found.registrations, found.projection) == (state, 1, 30)
        assert found.registrations_when_lost == returns_with
