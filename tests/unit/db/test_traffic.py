"""Counters of gateways: they only grow, whatever is written twice or late."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import col, select, update

from activities.contracts import TrafficQuestion
from activities.traffic import TrafficActivities
from fleet.db import projections, traffic
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, TrafficRow
from fleet.db.traffic import KEEP, Sums
from fleet.policy.canary import Reading
from fleet.policy.latency import BUCKETS

BORN = datetime(2026, 1, 1, tzinfo=UTC)


def sums(requests: int, errors: int = 0, **changes: Any) -> Sums:
    values: dict[str, Any] = {"instance_id": "m/1-x", "fence": 1, "deployment": "m", "launch": 1}
    latency = (requests - errors, *([0] * (BUCKETS - 1)))
    return Sums(**(values | {"requests": requests, "errors": errors, "latency": latency} | changes))


def write(database: Database, gateway: str, *of: Sums) -> None:
    database.write(lambda s: traffic.write(s, gateway, of))


def read(database: Database, launch: int = 1) -> tuple[int, int]:
    reading = database.read(lambda s: traffic.read(s, "m", launch))
    assert sum(reading.latency) == reading.requests - reading.errors
    return reading.requests, reading.errors


def deployment(database: Database, name: str, **changes: Any) -> None:
    values: dict[str, Any] = {
        "spec": {},
        "engine": "llama_cpp",
        "engine_version": "1",
        "generation": 1,
        "revision": 1,
        "launch": 1,
        "phase": "ready",
        "desired_replicas": 1,
        "ready_replicas": 1,
        "run_id": "run-1",
        "projection": 1,
        "created_at": BORN,
    }
    row = DeploymentRow(name=name, **(values | changes))
    database.write(lambda s: projections.record_deployment(s, row))


def test_what_is_written_again_counts_once_and_late_sums_change_nothing(database: Database) -> None:
    for requests, errors in ((3, 1), (3, 1), (7, 2), (5, 2), (3, 1)):
        write(database, "g-1", sums(requests, errors))
    assert read(database) == (7, 2)


def test_sums_are_over_gateways_instances_and_fences_of_one_launch(database: Database) -> None:
    write(database, "g-1", sums(1), sums(10, fence=2), sums(100, instance_id="m/2-y"), sums(9, launch=2, fence=3))
    write(database, "g-2", sums(1000), sums(9, deployment="other", fence=5))
    assert read(database) == (1111, 0)
    assert read(database, launch=2) == (9, 0)
    assert read(database, launch=3) == (0, 0)


async def test_a_rollout_reads_both_launches_at_once(database: Database) -> None:
    write(database, "g-1", sums(4, 1), sums(9, fence=2, launch=2))
    question = TrafficQuestion(deployment="m", old_launch=1, new_launch=2)
    readings = await TrafficActivities(database).read_traffic(question)
    assert (readings.old.requests, readings.old.errors, readings.new.requests) == (4, 1, 9)
    nobody = TrafficQuestion(deployment="unknown", old_launch=1, new_launch=2)
    assert (await TrafficActivities(database).read_traffic(nobody)).new == Reading()


def test_writing_nothing_is_nothing(database: Database) -> None:
    write(database, "g-1")
    assert read(database) == (0, 0)


def test_counters_go_with_their_deployment(database: Database) -> None:
    deployment(database, "m")
    write(database, "g-1", sums(4))
    database.write(lambda s: projections.forget_deployment(s, "m", "another run"))
    assert read(database) == (4, 0), "the name has been taken over by a new deployment"
    database.write(lambda s: projections.forget_deployment(s, "m", "run-1"))
    assert read(database) == (0, 0)


def test_a_gateway_deletes_only_what_is_its_own(database: Database) -> None:
    write(database, "g-1", sums(4))
    write(database, "g-2", sums(5))
    database.write(lambda s: traffic.forget(s, "m", gateway="g-1"))
    assert read(database) == (5, 0)


@pytest.mark.parametrize(
    ("changes", "left"),
    [({}, []), ({"traffic": {"1": 90}}, ["old"]), ({"rollout": {"strategy": "canary"}}, ["old"])],
)
def test_old_rows_are_deleted_unless_a_rollout_may_compare_with_them(
    database: Database, changes: dict[str, Any], left: list[str]
) -> None:
    deployment(database, "m", **changes)
    write(database, "old", sums(1))
    write(database, "deleted", sums(1, deployment="was deleted long ago"))
    at = datetime.now(UTC)
    _age(database, at - KEEP - timedelta(hours=1))
    write(database, "young", sums(1))
    database.write(lambda s: traffic.prune(s, at))
    found = database.read(lambda s: s.exec(select(TrafficRow.gateway).order_by(TrafficRow.gateway)).all())
    assert list(found) == [*left, "young"]


def _age(database: Database, to: datetime) -> None:
    database.write(lambda s: s.execute(update(TrafficRow).values({col(TrafficRow.updated_at): to})))
