"""What workflows write about themselves: newer replaces older, and gateways hear of what concerns them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import Session, select

from fleet.db import projections, registry
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, EndpointRow, InstanceRow
from fleet.states import EndpointState, InstanceState

BORN = datetime(2026, 1, 1, tzinfo=UTC)
URL = "http://127.0.0.1:9000"


def deployment(projection: int, **changes: Any) -> DeploymentRow:
    values: dict[str, Any] = {
        "name": "m",
        "labels": {"team": "a"},
        "spec": {"replicas": 1},
        "engine": "llama_cpp",
        "engine_version": "1",
        "generation": 1,
        "revision": 1,
        "launch": 1,
        "phase": "pending",
        "desired_replicas": 1,
        "ready_replicas": 0,
        "run_id": "run-1",
        "created_at": BORN,
    }
    return DeploymentRow(**(values | {"projection": projection} | changes))


def instance(projection: int, state: InstanceState, **changes: Any) -> InstanceRow:
    values: dict[str, Any] = {
        "id": "m/1-x",
        "deployment": "m",
        "revision": 1,
        "launch": 1,
        "slot": 1,
        "fence": 1,
    }
    return InstanceRow(**(values | {"projection": projection, "state": state, "endpoint": URL} | changes))


def record(database: Database, row: InstanceRow, capacity: int = 4) -> bool:
    return database.write(lambda s: projections.record_instance(s, row, capacity))


def record_deployment(database: Database, row: DeploymentRow) -> bool:
    return database.write(lambda s: projections.record_deployment(s, row))


def test_newer_projection_of_a_deployment_replaces_an_older_one(database: Database) -> None:
    assert record_deployment(database, deployment(1))
    assert record_deployment(database, deployment(3, phase="ready", labels={}))
    assert _deployment(database).phase == "ready"
    assert _deployment(database).labels == {}
    assert _deployment(database).created_at == BORN


@pytest.mark.parametrize("late", [1, 2, 3])
def test_older_or_repeated_projection_of_a_deployment_changes_nothing(database: Database, late: int) -> None:
    record_deployment(database, deployment(3, phase="ready"))
    assert not record_deployment(database, deployment(late, phase="pending"))
    assert _deployment(database).phase == "ready"


def test_deployment_made_again_takes_over_the_row_of_the_one_before(database: Database) -> None:
    record_deployment(database, deployment(90, phase="deleting"))
    again = deployment(1, run_id="run-2", created_at=BORN + timedelta(hours=1), phase="pending")
    assert record_deployment(database, again)
    assert not record_deployment(database, deployment(91, phase="deleting"))
    assert (_deployment(database).run_id, _deployment(database).phase) == ("run-2", "pending")


def test_only_the_deployment_that_owns_the_row_can_have_it_forgotten(database: Database) -> None:
    record_deployment(database, deployment(1, run_id="run-2"))
    database.write(lambda s: projections.forget_deployment(s, "m", "run-1"))
    assert _deployment(database).run_id == "run-2"
    for _ in range(2):
        database.write(lambda s: projections.forget_deployment(s, "m", "run-2"))
        assert database.read(lambda s: s.get(DeploymentRow, "m")) is None


def test_gateways_hear_of_new_and_forgotten_deployments(database: Database) -> None:
    record_deployment(database, deployment(1))
    made = database.read(registry.version)
    assert made > 0
    record_deployment(database, deployment(2, ready_replicas=1))
    assert database.read(registry.version) == made
    database.write(lambda s: projections.forget_deployment(s, "m", "run-1"))
    assert database.read(registry.version) > made


@pytest.mark.parametrize("late", [1, 2, 3])
def test_older_or_repeated_projection_of_an_instance_changes_nothing(database: Database, late: int) -> None:
    record(database, instance(3, InstanceState.READY))
    before = _registry_and_endpoints(database)
    assert not record(database, instance(late, InstanceState.FAILED, endpoint=None))
    assert database.read(lambda s: s.get_one(InstanceRow, "m/1-x").state) == InstanceState.READY
    assert _registry_and_endpoints(database) == before


def test_instance_keeps_the_time_when_it_was_first_seen(database: Database) -> None:
    record(database, instance(1, InstanceState.PENDING))
    first = database.read(lambda s: s.get_one(InstanceRow, "m/1-x").created_at)
    record(database, instance(2, InstanceState.READY))
    assert database.read(lambda s: s.get_one(InstanceRow, "m/1-x").created_at) == first


def test_ready_instance_is_published_with_its_fence_and_capacity(database: Database) -> None:
    record(database, instance(1, InstanceState.STARTING))
    assert _registry_and_endpoints(database) == (0, [])
    record(database, instance(2, InstanceState.READY, fence=7), capacity=3)
    version, [endpoint] = _registry_and_endpoints(database)
    assert version == 1
    assert endpoint == {
        "instance_id": "m/1-x",
        "deployment": "m",
        "model": "m",
        "url": URL,
        "fence": 7,
        "state": EndpointState.READY,
        "capacity": 3,
        "launch": 1,
        "host_id": None,
    }


def test_gateways_are_not_woken_when_nothing_of_theirs_changed(database: Database) -> None:
    record(database, instance(1, InstanceState.READY))
    record(database, instance(2, InstanceState.READY, message="still here", restarts=0))
    version, [endpoint] = _registry_and_endpoints(database)
    assert (version, endpoint["state"]) == (1, EndpointState.READY)


def test_suspect_instance_stays_published_as_suspect(database: Database) -> None:
    record(database, instance(1, InstanceState.READY))
    record(database, instance(2, InstanceState.SUSPECT))
    version, [endpoint] = _registry_and_endpoints(database)
    assert (version, endpoint["state"]) == (2, EndpointState.SUSPECT)
    record(database, instance(3, InstanceState.READY))
    version, [endpoint] = _registry_and_endpoints(database)
    assert (version, endpoint["state"]) == (3, EndpointState.READY)


def test_gateways_hear_when_the_shares_of_a_deployment_change(database: Database) -> None:
    record_deployment(database, deployment(1))
    made = database.read(registry.version)
    record_deployment(database, deployment(2, phase="ready"))
    assert database.read(registry.version) == made
    record_deployment(database, deployment(3, traffic={"1": 90, "2": 10}))
    assert database.read(registry.version) == made + 1
    record_deployment(database, deployment(4, traffic={"1": 90, "2": 10}))
    assert database.read(registry.version) == made + 1
    record_deployment(database, deployment(5, desired_replicas=0))
    assert database.read(registry.version) == made + 2


def test_draining_instance_stays_published_as_draining(database: Database) -> None:
    record(database, instance(1, InstanceState.READY))
    record(database, instance(2, InstanceState.DRAINING))
    version, [endpoint] = _registry_and_endpoints(database)
    assert (version, endpoint["state"]) == (2, EndpointState.DRAINING)


@pytest.mark.parametrize("state", [s for s in InstanceState if s not in ("ready", "suspect", "draining")])
def test_endpoint_is_withdrawn_when_its_engine_does_not_serve(database: Database, state: InstanceState) -> None:
    record(database, instance(1, InstanceState.READY))
    record(database, instance(2, state))
    assert _registry_and_endpoints(database) == (2, [])
    record(database, instance(3, state))
    assert _registry_and_endpoints(database) == (2, [])


def test_instance_placed_again_is_published_under_its_new_fence(database: Database) -> None:
    record(database, instance(1, InstanceState.READY, fence=1))
    record(database, instance(2, InstanceState.READY, fence=2, endpoint="http://127.0.0.2:9000"))
    version, [endpoint] = _registry_and_endpoints(database)
    assert (version, endpoint["fence"], endpoint["url"]) == (2, 2, "http://127.0.0.2:9000")


def test_ready_instance_without_an_address_is_not_published(database: Database) -> None:
    record(database, instance(1, InstanceState.READY, endpoint=None))
    assert _registry_and_endpoints(database) == (0, [])


def test_forgotten_instance_takes_its_endpoint_along(database: Database) -> None:
    record(database, instance(1, InstanceState.READY))
    record(database, instance(1, InstanceState.READY, id="m/2-y"))
    for _ in range(2):
        database.write(lambda s: projections.forget_instance(s, "m/1-x"))
        version, [endpoint] = _registry_and_endpoints(database)
        assert (version, endpoint["instance_id"]) == (3, "m/2-y")
        assert database.read(lambda s: s.get(InstanceRow, "m/1-x")) is None


def _deployment(database: Database) -> DeploymentRow:
    return database.read(lambda s: s.get_one(DeploymentRow, "m"))


def _registry_and_endpoints(database: Database) -> tuple[int, list[dict[str, Any]]]:
    def query(session: Session) -> tuple[int, list[dict[str, Any]]]:
        found = session.exec(select(EndpointRow)).all()
        return registry.version(session), [e.model_dump() for e in found]

    return database.read(query)
