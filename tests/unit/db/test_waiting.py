"""Who is woken first when there may be room."""

from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from sqlmodel import Session
from temporalio.client import Client

from activities import waiting
from activities.waiting import WaitingInstances
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, InstanceRow
from fleet.states import InstanceState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClient:
    def __init__(self) -> None:
        self.told: list[str] = []

    def get_workflow_handle(self, workflow_id: str) -> "FakeClient":
        self.told.append(workflow_id.removeprefix("instance/"))
        return self

    async def signal(self, name: str) -> None:
        assert name == "capacity_changed"


def deploy(session: Session, name: str, priority: dict[str, str] | None) -> None:
    spec = {"model": {"path": "m.gguf"}} | ({"priority": priority} if priority is not None else {})
    session.add(
        DeploymentRow(
            name=name,
            spec=spec,
            engine="llama_cpp",
            engine_version="1",
            generation=1,
            revision=1,
            launch=1,
            phase="pending",
            desired_replicas=1,
            ready_replicas=0,
            projection=1,
            created_at=NOW,
        )
    )


def wait(session: Session, instance_id: str, minutes: int, state: InstanceState = InstanceState.PENDING) -> None:
    session.add(
        InstanceRow(
            id=instance_id,
            deployment=instance_id.partition("/")[0],
            revision=1,
            launch=1,
            slot=1,
            state=state,
            projection=1,
            created_at=NOW + timedelta(minutes=minutes),
        )
    )


def fill(session: Session) -> None:
    for level in ("low", "high", "critical"):
        deploy(session, level, {"level": level})
    deploy(session, "old", None)  # from before there were priorities
    wait(session, "low/1", 0)
    wait(session, "high/2", 5)
    wait(session, "high/1", 4)
    wait(session, "old/1", 3)
    wait(session, "nobody/1", 2)  # its deployment's first projection is on its way
    wait(session, "critical/1", 9)
    wait(session, "critical/2", 1, InstanceState.READY)


async def test_the_highest_priority_is_woken_first_and_of_these_the_oldest(database: Database) -> None:
    database.write(fill)
    client = FakeClient()
    await WaitingInstances(database, cast(Client, client)).wake()
    assert client.told == ["critical/1", "high/1", "high/2", "nobody/1", "old/1", "low/1"]


async def test_only_so_many_are_woken_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_AT_ONCE", 2)
    database.write(fill)
    client = FakeClient()
    await WaitingInstances(database, cast(Client, client)).wake()
    assert client.told == ["critical/1", "high/1"]
