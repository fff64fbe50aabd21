"""GPUs that engines blame: when they are believed, and what a person may do."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import select

from activities.contracts import GpuFault
from activities.gpus import GpuActivities
from fleet.db import gpus
from fleet.db.session import Database
from fleet.db.tables import GpuFaultRow, GpuRow
from tests.unit.db.ledger import add_host

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def ledger(database: Database) -> Database:
    add_host(database, gpus=("g1", "g2"))
    return database


def note(database: Database, *uuids: str, **changes: Any) -> list[str]:
    fields: dict[str, Any] = {"instance_id": "m/1-a", "fence": 1, "reason": "Xid", "certain": False, "at": NOW}
    said = fields | changes
    return database.write(
        lambda s: gpus.note_fault(
            s, uuids, said["instance_id"], said["fence"], said["reason"], certain=said["certain"], at=said["at"]
        )
    )


def cordoned(database: Database) -> dict[str, str]:
    rows = database.read(lambda s: s.exec(select(GpuRow)).all())
    return {r.uuid: r.cordon_reason for r in rows if r.cordoned}


def test_certain_fault_of_an_only_gpu_cordons_it_at_once(ledger: Database) -> None:
    assert note(ledger, "g1", certain=True, reason="Xid 79\0" + "x" * 1000) == ["g1"]
    assert cordoned(ledger) == {"g1": ("Xid 79" + "x" * 1000)[:500]}


def test_certain_fault_of_several_cordons_the_one_that_is_named(ledger: Database) -> None:
    assert note(ledger, "g1", "g2", certain=True) == []
    assert note(ledger, "g1", "g2", certain=True, fence=7, reason="g2 has fallen off the bus", at=NOW + LATE) == ["g2"]
    assert list(cordoned(ledger)) == ["g2"]


LATE = timedelta(hours=1)


@pytest.mark.parametrize("other", [{"fence": 2}, {"instance_id": "m/2-b"}])
def test_possible_fault_is_believed_the_second_time(ledger: Database, other: dict[str, Any]) -> None:
    assert note(ledger, "g1") == []
    assert note(ledger, "g2", **other) == [], "another card"
    assert note(ledger, "g1", **other, reason="again", at=NOW + LATE / 2) == ["g1"]
    assert cordoned(ledger) == {"g1": "again"}


def test_second_fault_after_an_hour_is_a_first_one(ledger: Database) -> None:
    note(ledger, "g1")
    assert note(ledger, "g1", fence=2, at=NOW + LATE) == []


def test_telling_it_twice_counts_once(ledger: Database) -> None:
    assert note(ledger, "g1") == note(ledger, "g1") == note(ledger, "g1", "g1") == []
    assert len(ledger.read(lambda s: s.exec(select(GpuFaultRow)).all())) == 1


def test_gpu_that_is_not_known_any_more_is_left_out(ledger: Database) -> None:
    assert note(ledger, "g9", "g1", certain=True, reason="g9 g1") == ["g1"]
    assert list(ledger.read(gpus.faults)) == ["g1"]


def test_reason_that_is_there_stays(ledger: Database) -> None:
    assert ledger.write(lambda s: gpus.cordon(s, "g1", "to be replaced"))
    assert note(ledger, "g1", certain=True) == []
    assert cordoned(ledger) == {"g1": "to be replaced"}


def test_uncordoned_gpu_starts_with_a_clean_record(ledger: Database) -> None:
    note(ledger, "g1", certain=True)
    note(ledger, "g2")
    assert ledger.write(lambda s: gpus.uncordon(s, "g1"))
    assert cordoned(ledger) == {}
    assert list(ledger.read(gpus.faults)) == ["g2"]
    assert note(ledger, "g1", fence=2) == []


def test_gpu_that_does_not_exist_cannot_be_cordoned(ledger: Database) -> None:
    assert not ledger.write(lambda s: gpus.cordon(s, "g9", "x"))
    assert not ledger.write(lambda s: gpus.uncordon(s, "g9"))


def test_old_faults_are_forgotten_and_the_latest_comes_first(ledger: Database) -> None:
    note(ledger, "g1")
    note(ledger, "g1", fence=2, at=NOW + LATE)
    assert [f.fence for f in ledger.read(lambda s: gpus.faults(s, "g1"))["g1"]] == [2, 1]
    note(ledger, "g2", at=NOW + gpus.REMEMBERED + timedelta(minutes=1))
    assert [f.fence for f in ledger.read(gpus.faults)["g1"]] == [2]


async def test_activity_notes_what_the_workflow_says_and_may_be_retried(ledger: Database) -> None:
    fault = GpuFault(instance_id="m/1-a", fence=3, gpu_uuids=("g1",), reason="Xid 79", certain=True)
    for _ in range(2):
        await GpuActivities(ledger).note_gpu_fault(fault)
    assert cordoned(ledger) == {"g1": "Xid 79"}
    [row] = ledger.read(lambda s: gpus.faults(s, "g1"))["g1"]
    assert (row.instance_id, row.fence, row.reason) == ("m/1-a", 3, "Xid 79")
    assert abs(row.at - datetime.now(UTC)) < timedelta(minutes=1)
