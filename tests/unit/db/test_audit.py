"""Who did what: written soon, alike things once, and floods drown nothing."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import OperationalError
from sqlmodel import select

from fleet.db import audit
from fleet.db.audit import DONE, REFUSED, AuditLog
from fleet.db.session import Database
from fleet.db.tables import AuditRow

LOGIN: dict[str, Any] = {"actor": "unknown", "action": "hosts.get", "outcome": REFUSED, "peer": "10.0.0.7"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def kept(database: Database, clock: Clock, registry: CollectorRegistry) -> AuditLog:
    return AuditLog(database, registry, clock=clock)


def rows(database: Database) -> list[AuditRow]:
    return database.read(lambda s: list(s.exec(select(AuditRow).order_by(AuditRow.id)).all()))


async def test_what_is_noted_is_kept_whole(database: Database, kept: AuditLog) -> None:
    kept.note(actor="host:h1", action="temporal.Start", target="w", outcome=REFUSED, reason="not yours", peer="::1")
    await kept.flush()
    [row] = rows(database)
    assert (row.actor, row.action, row.target, row.outcome) == ("host:h1", "temporal.Start", "w", "refused")
    assert (row.reason, row.peer, row.count) == ("not yours", "::1", 1)
    assert datetime.now(UTC) - row.at < timedelta(minutes=1)


async def test_alike_within_a_minute_is_one_row_and_later_another(
    database: Database, kept: AuditLog, clock: Clock
) -> None:
    for _ in range(3):
        kept.note(**LOGIN)
    await kept.flush()
    clock.now += audit.ALIKE_S - 1
    kept.note(**LOGIN, count=4)
    kept.note(**LOGIN | {"peer": "10.0.0.8"})
    await kept.flush()
    assert [(r.peer, r.count) for r in rows(database)] == [("10.0.0.7", 7), ("10.0.0.8", 1)]
    clock.now += 2
    kept.note(**LOGIN)
    await kept.flush()
    assert [(r.peer, r.count) for r in rows(database)] == [("10.0.0.7", 7), ("10.0.0.8", 1), ("10.0.0.7", 1)]


async def test_row_that_was_pruned_meanwhile_is_begun_anew(database: Database, kept: AuditLog) -> None:
    kept.note(**LOGIN)
    await kept.flush()
    [row] = rows(database)
    database.write(lambda s: s.delete(s.get_one(AuditRow, row.id)))
    kept.note(**LOGIN)
    await kept.flush()
    assert [r.count for r in rows(database)] == [1]


async def test_flood_of_refusals_is_counted_but_not_spelled_out(database: Database, kept: AuditLog) -> None:
    kept.note(actor="key:a", action="deployments.delete", target="chat", outcome=DONE)
    for number in range(audit.MOST_WAITING + 1000):
        kept.note(**LOGIN | {"peer": f"10.0.{number >> 8}.{number & 255}"})
        await asyncio.sleep(0) if number % 1000 == 0 else None
    for number in range(1000):
        kept.note(**LOGIN | {"action": f"temporal.{number}", "reason": str(number)})
    await kept.flush()
    written = rows(database)
    assert len(written) <= 2 * audit.DISTINCT_REFUSALS + 3
    assert sum(r.count for r in written) == audit.MOST_WAITING + 1000 + 1000 + 1
    assert any(r.action == "deployments.delete" for r in written)
    assert {r.peer for r in written if r.count > 1} == {audit.MANY}


async def test_what_does_not_fit_is_counted(kept: AuditLog, registry: CollectorRegistry) -> None:
    for number in range(audit.MOST_WAITING + 7):
        kept.note(actor="key:a", action="x", target=str(number), outcome=DONE)
    assert registry.get_sample_value("holdfast_audit_dropped_total") == 7
    assert registry.get_sample_value("holdfast_audit_entries_total", {"outcome": "done"}) == audit.MOST_WAITING + 7


async def test_any_text_and_any_number_can_be_kept(database: Database, kept: AuditLog) -> None:
    for text in ("\0", "\ud800", "x" * 10_000, "💥", ""):
        kept.note(actor=text, action=text, target=text, outcome=REFUSED, reason=text, peer=text, count=2**63)
        kept.note(actor=text, action=text, target=text, outcome=REFUSED, reason=text, peer=text, count=2**63)
        await kept.flush()
    assert len(rows(database)) == 4, "without the NUL nothing is left of it"


async def test_database_that_is_away_is_waited_for(
    database: Database, kept: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.note(**LOGIN)

    def away(_self: Database, _transaction: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("gone"))

    with monkeypatch.context() as broken:
        broken.setattr(Database, "write", away)
        with pytest.raises(OperationalError):
            await kept.flush()
        kept.note(**LOGIN)
    await kept.flush()
    assert [r.count for r in rows(database)] == [2]


async def test_what_is_left_is_written_at_the_end(database: Database, kept: AuditLog) -> None:
    running = asyncio.create_task(kept.run())
    kept.note(**LOGIN)
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(rows(database)) == 1


async def test_it_writes_by_itself(database: Database, kept: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_WRITE_EVERY_S", 0.01)
    running = asyncio.create_task(kept.run())
    kept.note(**LOGIN)
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(rows, database):
            await asyncio.sleep(0.01)
    running.cancel()


async def test_old_and_too_many_entries_go(database: Database) -> None:
    kept = AuditLog(database, keep=timedelta(days=90), keep_rows=10)
    old = AuditRow(at=datetime.now(UTC) - timedelta(days=91), actor="key:a", action="old", outcome=DONE)
    database.write(lambda s: s.add(old))
    for number in range(15):
        kept.note(actor="key:a", action=str(number), outcome=DONE)
    await kept.flush()
    database.write(kept._prune)
    assert [r.action for r in rows(database)] == [str(n) for n in range(5, 15)]
