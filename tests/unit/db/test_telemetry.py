"""What hosts say of themselves: the newest is kept, a little history, and placement hears only of news."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import DataError, OperationalError
from sqlmodel import Session, select

from fleet.db import registry, telemetry
from fleet.db.audit import AuditLog
from fleet.db.session import Database
from fleet.db.tables import AuditRow, HostRow, HostStatusRow
from fleet.db.telemetry import StatusLog
from fleet.telemetry import GpuStatus, HostStatus, MiB, Refusal
from tests.unit.db.ledger import add_host

AWAY = OperationalError("UPDATE", {}, Exception("gone"))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ledger:
    """Takes news in the place of the real one."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []
        self.refuses: str = ""

    def __call__(self, session: Session, host_id: str, said: HostStatus) -> None:
        if host_id == self.refuses:
            raise DataError("UPDATE", {}, Exception("out of range"))
        self.heard.append((host_id, said.gpus[0].foreign_bytes if said.gpus else -1))


def status(foreign: int = 0, **changes: Any) -> HostStatus:
    gpu = GpuStatus(uuid="GPU-1", memory_used_bytes=foreign, foreign_bytes=foreign)
    said = HostStatus(boot_id="b", inventory="i", at=datetime.now(UTC), gpus=(gpu,))
    return said.model_copy(update=changes)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def kept(database: Database, ledger: Ledger, clock: Clock, metrics: CollectorRegistry) -> StatusLog:
    return StatusLog(database, registry=metrics, apply=ledger, clock=clock)


def host(database: Database, host_id: str = "h1") -> HostRow:
    return database.read(lambda s: s.get_one(HostRow, host_id))


def history(database: Database, host_id: str = "h1", since: datetime | None = None, limit: int = 500) -> list[Any]:
    found = database.read(lambda s: telemetry.history(s, host_id, since, limit))
    return [row.status["cpu_utilization"] for row in found]


async def test_newest_is_on_the_host_and_all_are_in_the_history(database: Database, kept: StatusLog) -> None:
    add_host(database)
    version = database.read(registry.version)
    for load in (0.1, 0.2, 0.3):
        kept.note("h1", status(cpu_utilization=load))
    await kept.flush()
    row = host(database)
    assert HostStatus.model_validate(row.status) == status(cpu_utilization=0.3, at=HostStatus(**row.status).at)
    assert row.status_at is not None
    assert datetime.now(UTC) - row.status_at < timedelta(minutes=1)
    assert history(database) == [0.1, 0.2, 0.3]
    assert database.read(registry.version) == version, "gateways need not look"


async def test_history_is_read_from_a_time_on_and_the_newest_of_too_many(database: Database, kept: StatusLog) -> None:
    add_host(database)
    for load in (0.1, 0.2, 0.3):
        kept.note("h1", status(cpu_utilization=load))
    await kept.flush()
    first = database.read(lambda s: telemetry.history(s, "h1", None, 9))[0].at
    assert history(database, since=first) == [0.2, 0.3]
    assert history(database, limit=2) == [0.2, 0.3]
    assert history(database, "h2") == []


async def test_history_ends_after_half_an_hour(database: Database, kept: StatusLog) -> None:
    add_host(database)
    old = HostStatusRow(host_id="h1", at=datetime.now(UTC) - telemetry.KEPT - timedelta(seconds=1), status={})
    database.write(lambda s: s.add(old))
    kept.note("h1", status(cpu_utilization=0.5))
    await kept.flush()
    database.write(telemetry.prune)
    assert history(database) == [0.5]


async def test_ledger_hears_of_news_only(database: Database, kept: StatusLog, ledger: Ledger, clock: Clock) -> None:
    add_host(database)
    said = [
        (status(), True),
        (status(cpu_utilization=0.9), False),
        (status(63 * MiB), True),  # from none to some
        (status(100 * MiB), False),
        (status(200 * MiB), True),
        (status(150 * MiB), False),
        (status(0), True),
        (status(gpus=(GpuStatus(uuid="GPU-1", healthy=False, reason="Xid 79"),)), True),
        (status(gpus=(GpuStatus(uuid="GPU-1", healthy=False, reason="Xid 48"),)), True),
        (status(gpus=(GpuStatus(uuid="GPU-1", healthy=False, reason="Xid 48", utilization=1.0),)), False),
        (status(), True),
        (status(inventory="j"), True),
        (status(gpus=()), True),
    ]
    for number, (one, is_news) in enumerate(said):
        clock.now += telemetry.STATUS_EVERY_S
        before = len(ledger.heard)
        kept.note("h1", one)
        await kept.flush()
        assert len(ledger.heard) - before == is_news, number


async def test_ledger_hears_again_after_silence_and_now_and_then(
    database: Database, kept: StatusLog, ledger: Ledger, clock: Clock
) -> None:
    add_host(database)
    kept.note("h1", status())
    await kept.flush()
    clock.now += 30  # it may have told another relay meanwhile
    kept.note("h1", status())
    await kept.flush()
    assert len(ledger.heard) == 2
    for _ in range(31):
        clock.now += 10
        kept.note("h1", status())
        await kept.flush()
    assert len(ledger.heard) == 3


async def test_news_are_not_lost_behind_a_status_without(
    database: Database, kept: StatusLog, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_host(database)
    kept.note("h1", status(0))
    await kept.flush()
    kept.note("h1", status(1 << 30))
    kept.note("h1", status((1 << 30) + 1))
    with monkeypatch.context() as broken:
        broken.setattr(Database, "write", lambda *_: _raise(AWAY))
        with pytest.raises(OperationalError):
            await kept.flush()
    kept.note("h1", status((1 << 30) + 2))
    await kept.flush()
    assert ledger.heard == [("h1", 0), ("h1", (1 << 30) + 2)]


async def test_while_the_database_is_away_the_newest_waits_and_history_is_bounded(
    database: Database, kept: StatusLog, metrics: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_host(database)
    monkeypatch.setattr(telemetry, "MOST_WAITING", 10)
    kept._history = type(kept._history)(maxlen=10)
    with monkeypatch.context() as broken:
        broken.setattr(Database, "write", lambda *_: _raise(AWAY))
        for number in range(25):
            kept.note("h1", status(cpu_utilization=number / 100))
            with pytest.raises(OperationalError):
                await kept.flush()
    await kept.flush()
    assert host(database).status["cpu_utilization"] == 0.24
    assert history(database) == [n / 100 for n in range(15, 25)]
    assert metrics.get_sample_value("holdfast_host_statuses_received_total") == 25
    assert metrics.get_sample_value("holdfast_host_statuses_dropped_total") == 15


async def test_status_that_cannot_be_kept_does_not_take_the_others_with_it(
    database: Database, kept: StatusLog, ledger: Ledger
) -> None:
    for name in ("h1", "h2", "h3"):
        add_host(database, name)
        kept.note(name, status(cpu_utilization=0.5))
    ledger.refuses = "h2"
    await kept.flush()
    assert [host(database, name).status != {} for name in ("h1", "h2", "h3")] == [True, False, True]
    ledger.refuses = ""
    kept.note("h2", status(cpu_utilization=0.5))
    await kept.flush()
    assert host(database, "h2").status != {}
    assert ledger.heard.count(("h2", 0)) == 1, "it is told again, as it was not heard"


async def test_host_that_was_forgotten_meanwhile_is_no_fault(database: Database, kept: StatusLog) -> None:
    add_host(database)
    kept.note("gone", status(cpu_utilization=0.5))
    kept.note("h1", status(cpu_utilization=0.5))
    await kept.flush()
    assert host(database).status != {}


async def test_who_was_turned_away_at_a_host_is_in_the_audit_log(database: Database, ledger: Ledger) -> None:
    add_host(database)
    audit = AuditLog(database)
    kept = StatusLog(database, audit, apply=ledger)
    turned = Refusal(reason="expired", instance_id="chat/1-a", peer="10.0.0.7", count=2**62)
    kept.note("h1", status(refusals=(turned, Refusal(reason="no_ticket"))))
    await kept.flush()
    await audit.flush()
    assert "refusals" not in host(database).status
    rows = database.read(lambda s: s.exec(select(AuditRow).order_by(AuditRow.id)).all())
    assert {(r.action, r.target, r.reason, r.peer, r.outcome) for r in rows} == {
        ("engine.request", "chat/1-a", "expired", "10.0.0.7", "refused"),
        ("engine.request", "host:h1", "no_ticket", "", "refused"),
    }


async def test_what_no_real_host_says_is_not_kept(database: Database, kept: StatusLog) -> None:
    add_host(database)
    huge = tuple(GpuStatus(uuid=f"GPU-{n}", reason="x" * 4096) for n in range(1000))
    kept.note("h1", status(gpus=huge, cpu_utilization=0.5))
    await kept.flush()
    assert set(host(database).status) == {"boot_id", "inventory", "at"}


async def test_it_writes_by_itself(database: Database, kept: StatusLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_WRITE_EVERY_S", 0.01)
    add_host(database)
    running = asyncio.create_task(kept.run())
    with monkeypatch.context() as broken:
        broken.setattr(Database, "write", lambda *_: _raise(AWAY))
        kept.note("h1", status(cpu_utilization=0.5))
        while kept._noticed.is_set():
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while not (await asyncio.to_thread(host, database)).status:
            await asyncio.sleep(0.01)
    running.cancel()


@given(st.lists(st.integers(0, 4 << 30), max_size=30))
def test_what_the_ledger_knows_is_never_far_from_what_is(steps: list[int]) -> None:
    kept = StatusLog(Database("sqlite://"), apply=Ledger(), clock=Clock())
    known = None
    for foreign in steps:
        if kept._is_news("h1", status(foreign)):
            known = foreign
        assert known is not None
        assert abs(known - foreign) <= 64 * MiB
        assert (known == 0) == (foreign == 0)


def _raise(error: Exception) -> None:
    raise error
