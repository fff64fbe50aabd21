"""What workflows write about themselves is enough to make them anew."""

from datetime import timedelta

import pytest
from sqlmodel import select

from activities.contracts import DeploymentRecord
from activities.projections import ProjectionActivities
from fleet.db import recorded
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, EndpointRow, HostRow, InstanceRow
from fleet.deployments import Deployment
from fleet.hosts import Host
from fleet.instances import Instance
from fleet.resync import deployment_of, host_of, instance_of
from fleet.states import ClaimState, HostState
from tests.unit.db.ledger import assert_the_books_are_right
from tests.unit.fleet.test_resync import claim, ready
from tests.unit.fleet.worlds import BORN, deployment, view

LEAVING = view(1, leaving=True, leave_by=BORN + timedelta(seconds=0.5), instance_id="m/1-a")


def a_host(database: Database, **columns: object) -> None:
    fields = {"id": "h1", "name": "box", "state": HostState.READY, "credential_hash": "x", "ram_allocatable": 100}
    row = HostRow.model_validate(fields | columns)
    database.write(lambda s: s.add(row))


def a_claim(database: Database, fence: int = 3) -> None:
    row = claim(fence)

    def add(session: object) -> None:
        session.add(row)  # type: ignore[attr-defined]
        host = session.get_one(HostRow, "h1")  # type: ignore[attr-defined]
        host.ram_used += row.memory_bytes

    database.write(add)


async def written(database: Database) -> tuple[Host, Instance, Deployment]:
    activities = ProjectionActivities(database)
    a_host(database)
    a_claim(database)
    host = Host(host_id="h1", name="box", message="fine", registrations=2, projection=9)
    instance = ready(hint="a hint", retry_at=BORN, drain=timedelta(seconds=7))
    await activities.record_host(host)
    await activities.record_instance(instance)
    made = deployment(2, 5, LEAVING).with_(labels={"team": "a"}, projection=4)
    await activities.record_deployment(DeploymentRecord(deployment=made, run_id="run-1"))
    return host, instance, made


async def test_every_entity_is_made_anew_from_its_row_as_it_was(database: Database) -> None:
    host, instance, made = await written(database)
    rows = database.read(recorded.everything)
    [owner] = rows.deployments
    assert [host_of(h) for h in rows.hosts] == [host]
    revived = instance_of(rows.instances[0], owner, rows.claims, set())
    assert revived.instance == instance
    heard = LEAVING.model_copy(update={"hint": "a hint"})
    expected = made.with_(run_id="run-1", instances={"m/1-a": heard})
    assert deployment_of(owner, [revived.instance]) == expected


async def test_an_older_word_does_not_replace_a_newer_state(database: Database) -> None:
    host, instance, _ = await written(database)
    activities = ProjectionActivities(database)
    await activities.record_host(host.with_(message="late", projection=8))
    await activities.record_instance(instance.with_(message="late", projection=10))
    rows = database.read(recorded.everything)
    assert rows.hosts[0].durable["message"] == "fine"
    assert rows.instances[0].durable["message"] == ""


async def test_a_deployment_that_is_made_anew_keeps_its_row_and_its_revisions(database: Database) -> None:
    await written(database)
    rows = database.read(recorded.everything)
    anew = deployment_of(rows.deployments[0], [])
    activities = ProjectionActivities(database)
    again = DeploymentRecord(deployment=anew.with_(projection=anew.projection + 1), run_id=anew.run_id)
    await activities.record_deployment(again)
    assert database.read(recorded.everything).deployments[0].run_id == "run-1"
    database.write(lambda s: recorded.forget_deployment(s, "m", anew.run_id))
    assert database.read(recorded.everything).deployments == []


async def test_hosts_that_never_registered_have_no_workflow(database: Database) -> None:
    await written(database)
    a_host(database, id="h2", credential_hash="y")
    all_ = {"host/h1", "deployment/m", "instance/m/1-a"}
    assert database.read(recorded.workflows) == all_
    assert database.read(lambda s: recorded.workflows(s, instances=False)) == all_ - {"instance/m/1-a"}


@pytest.mark.parametrize("times", [1, 2])
async def test_what_an_orphan_leaves_is_given_up_and_its_room_stays_booked(database: Database, times: int) -> None:
    await written(database)
    assert len(database.read(lambda s: s.exec(select(EndpointRow)).all())) == 1
    for _ in range(times):
        database.write(lambda s: recorded.clean_up_instance(s, "m/1-a"))
    assert database.read(lambda s: s.exec(select(InstanceRow)).all()) == []
    assert database.read(lambda s: s.exec(select(EndpointRow)).all()) == []
    assert [c.state for c in database.read(recorded.everything).claims] == [ClaimState.RELEASING]
    assert_the_books_are_right(database)


async def test_only_claims_up_to_the_fence_are_given_up(database: Database) -> None:
    await written(database)
    a_claim(database, 2)
    database.write(lambda s: recorded.give_up(s, [("m/1-a", 2)]))
    found = database.read(lambda s: s.exec(select(ClaimRow)).all())
    assert {c.fence: c.state for c in found} == {2: ClaimState.RELEASING, 3: ClaimState.BOUND}
    assert_the_books_are_right(database)
