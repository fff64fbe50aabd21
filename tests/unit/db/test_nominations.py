"""Room that is kept for who cannot take it yet, on both databases."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import Session, select

from fleet.db import claims, nominations, projections
from fleet.db.nominations import MOVE, Leaver, Nominee, PlanIsStale
from fleet.db.session import Database
from fleet.db.standings import priority_of, standings
from fleet.db.tables import AuditRow, DeploymentRow, EvictionRow, InstanceRow, NominationRow
from fleet.placement.decision import Decision, Seat
from fleet.placement.needs import Need
from fleet.policy.nominated import Nominated
from fleet.policy.priority import Standing
from fleet.policy.tenants import Tenant
from fleet.states import InstanceState
from tests.unit.db.ledger import add_host, claim, on

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON = NOW + timedelta(minutes=3)
LATER = NOW + timedelta(minutes=4)
HIGH = Nominee("high/1", "high", 2, fence=1)


def deploy(database: Database, name: str, *ready: str, priority: Mapping[str, Any] | None = None) -> None:
    spec = {"model": {"path": "m.gguf"}, "priority": dict(priority or {"level": "low", "floor": 0})}

    def add(session: Session) -> None:
        session.add(
            DeploymentRow(
                name=name,
                spec=spec,
                engine="llama_cpp",
                engine_version="1",
                generation=1,
                revision=1,
                launch=1,
                phase="ready",
                desired_replicas=len(ready),
                ready_replicas=len(ready),
                projection=1,
                created_at=NOW,
            )
        )
        for slot, instance_id in enumerate(ready):
            session.add(
                InstanceRow(
                    id=instance_id,
                    deployment=name,
                    revision=1,
                    launch=1,
                    slot=slot,
                    state=InstanceState.READY,
                    projection=1,
                )
            )

    database.write(add)


def decision(host_id: str = "h1", *gpus: str, gpu_bytes: int = 60, ram: int = 0) -> Decision:
    seat = Seat(host_id, 1, gpus, gpu_bytes if gpus else 0, ram, 1, 0)
    return Decision("high/1", "high", Need(), None, (seat,))


def tenant(instance_id: str, fence: int = 1, size: int = 80, gpu: str = "g1") -> Tenant:
    name = instance_id.partition("/")[0]
    return Tenant(instance_id, name, fence, ("h1",), ((gpu, size),), (), 0, True, False)


@pytest.fixture
def full(database: Database) -> Database:
    """Two cards of 100 bytes, with a low replica of 80 on each."""
    add_host(database, gpus=("g1", "g2"))
    deploy(database, "low", "low/1", "low/2")
    deploy(database, "high", priority={"level": "high"})
    claim(database, "low/1", 1, on("h1", 80, "g1"))
    claim(database, "low/2", 1, on("h1", 80, "g2"))
    return database


def preempt(database: Database, *victims: Tenant, nominee: Nominee = HIGH, now: datetime = NOW, **more: Any) -> None:
    made = decision("h1", "g1", **more)
    until = now + timedelta(minutes=3)
    database.write(lambda s: nominations.preempt(s, nominee, made, victims, now=now, until=until))


def seen(database: Database, instance_id: str = "other/1", priority: int = 1, now: datetime = NOW) -> Nominated:
    name = instance_id.partition("/")[0]
    return database.read(lambda s: nominations.nominated(s, instance_id, name, priority, now))


def leaving(database: Database, now: datetime = NOW, nominee: str = "high/1") -> list[Leaver]:
    return database.read(lambda s: nominations.leavers(s, nominee, now))


def nothing_is_kept(database: Database) -> bool:
    rows = database.read(lambda s: [*s.exec(select(NominationRow)).all(), *s.exec(select(EvictionRow)).all()])
    return rows == []


def test_room_beyond_what_the_victim_holds_is_kept_from_equals_and_lower_ones(full: Database) -> None:
    preempt(full, tenant("low/1"), gpu_bytes=90)
    assert seen(full, priority=1).bytes_on == seen(full, priority=2).bytes_on == {("h1", "g1"): 10}
    assert seen(full, priority=3).bytes_on == {}
    assert seen(full, "high/1", priority=2).bytes_on == {}
    assert seen(full).leaving == {"low/1"}


def test_all_of_it_is_kept_once_the_victim_is_gone(full: Database) -> None:
    preempt(full, tenant("low/1"), gpu_bytes=90)
    full.write(lambda s: claims.release(s, "low/1", 1))
    assert leaving(full) == []
    assert seen(full).bytes_on == {("h1", "g1"): 90}


def test_who_leaves_is_known_with_when_and_why(full: Database) -> None:
    preempt(full, tenant("low/1"))
    assert leaving(full) == [Leaver("low/1", "low", "h1", NOW, "gives way to high/1 (priority high)", 0)]
    [entry] = full.read(lambda s: s.exec(select(AuditRow)).all())
    assert (entry.actor, entry.action, entry.target) == ("instance:high/1", "instance.preempt", "low/1")
    assert entry.reason == "gives way to high/1 (priority high)"


def test_a_victim_that_was_placed_anew_is_none_any_more(full: Database) -> None:
    preempt(full, tenant("low/1"))
    full.write(lambda s: claims.release(s, "low/1", 1))
    claim(full, "low/1", 2, on("h1", 10, "g1"))
    assert leaving(full) == []


def test_it_ends_when_the_nominee_is_placed_whatever_the_place(full: Database) -> None:
    preempt(full, tenant("low/1"))
    full.write(lambda s: nominations.placed(s, "high/1", "high", ["elsewhere"]))
    assert nothing_is_kept(full)


def test_it_ends_when_the_nominee_is_gone(full: Database) -> None:
    preempt(full, tenant("low/1"))
    full.write(lambda s: projections.forget_instance(s, "high/1"))
    assert nothing_is_kept(full)


def test_a_victim_that_is_gone_leaves_the_room_to_its_nominee(full: Database) -> None:
    preempt(full, tenant("low/1"))
    full.write(lambda s: (claims.release(s, "low/1", 1), projections.forget_instance(s, "low/1")))
    assert leaving(full) == []
    assert seen(full).bytes_on == {("h1", "g1"): 60}


def test_it_expires(full: Database) -> None:
    preempt(full, tenant("low/1"))
    assert seen(full, now=LATER) == Nominated()
    assert leaving(full, LATER) == []
    preempt(full, tenant("low/2", gpu="g2"), nominee=Nominee("other/1", "other", 1), now=LATER)
    names = full.read(lambda s: {r.nominee for r in s.exec(select(NominationRow)).all()})
    assert names == {"other/1"}, "what has expired is cleared away"


def test_the_same_victim_does_not_go_for_two(full: Database) -> None:
    preempt(full, tenant("low/1"))
    with pytest.raises(PlanIsStale, match="somebody else"):
        preempt(full, tenant("low/1"), nominee=Nominee("rival/1", "rival", 3))
    assert {r.nominee for r in _rows(full)} == {"high/1"}


def _rows(database: Database) -> list[NominationRow]:
    return list(database.read(lambda s: s.exec(select(NominationRow)).all()))


@pytest.mark.parametrize("gone", ["released", "given up", "placed anew"])
def test_a_plan_on_a_victim_that_moved_on_is_stale_and_leaves_nothing(full: Database, gone: str) -> None:
    if gone == "given up":
        full.write(lambda s: claims.give_up(s, "low/1", 1))
    else:
        full.write(lambda s: claims.release(s, "low/1", 1))
    if gone == "placed anew":
        claim(full, "low/1", 2, on("h1", 10, "g1"))
    with pytest.raises(PlanIsStale, match="low/1 has moved on"):
        preempt(full, tenant("low/1"))
    assert nothing_is_kept(full)


def test_a_floor_holds_against_two_planners(database: Database) -> None:
    add_host(database, gpus=("g1", "g2"))
    deploy(database, "low", "low/1", "low/2", priority={"level": "low", "floor": 1})
    claim(database, "low/1", 1, on("h1", 80, "g1"))
    claim(database, "low/2", 1, on("h1", 80, "g2"))
    preempt(database, tenant("low/1"))
    with pytest.raises(PlanIsStale, match="can spare 0 ready replicas by now"):
        preempt(database, tenant("low/2", gpu="g2"), nominee=Nominee("rival/1", "rival", 2))


def test_planning_again_replaces_what_was_kept(full: Database) -> None:
    preempt(full, tenant("low/1"))
    preempt(full, tenant("low/2", gpu="g2"))
    assert [x.instance_id for x in leaving(full)] == ["low/2"]


def test_a_replacement_is_bound_for_the_host_that_is_kept_for_it(full: Database) -> None:
    mover = Nominee(MOVE + "low/1", "low", 0)
    full.write(lambda s: nominations.nominate(s, mover, decision("h2", ram=30).seats, SOON))
    assert seen(full, "low/9", priority=0).bound_for == ("h2",)
    assert seen(full, "low/9", priority=0).bytes_on == {}
    assert seen(full, "low/1", priority=0).bound_for == (), "not the one that is moved itself"
    assert seen(full, "other/1", priority=0).bytes_on == {("h2", ""): 30}
    full.write(lambda s: nominations.placed(s, "low/9", "low", ["h1"]))
    assert seen(full, "low/9", priority=0).bound_for == ("h2",), "it went elsewhere"
    full.write(lambda s: nominations.placed(s, "low/9", "low", ["h2"]))
    assert nothing_is_kept(full)


def test_one_that_may_stay_is_neither_leaving_nor_replaced(full: Database) -> None:
    mover = Nominee(MOVE + "low/1", "low", 0)

    def move(session: Session) -> None:
        nominations.nominate(session, mover, decision("h2", ram=30).seats, SOON)
        nominations.evict(session, "high/1", tenant("low/1"), "is moved", until=SOON)

    full.write(move)
    assert seen(full).leaving == frozenset(), "it serves until its replacement is ready"
    assert [x.by for x in leaving(full)] == [None]
    full.write(lambda s: nominations.stay(s, "low/1"))
    assert nothing_is_kept(full)


def test_standings_are_those_of_now(full: Database) -> None:
    assert full.read(lambda s: standings(s, NOW))["low"] == Standing(priority=0, ready=2, floor=0)
    preempt(full, tenant("low/1"))
    assert full.read(lambda s: standings(s, NOW))["low"].ready == 1
    assert full.read(lambda s: standings(s, LATER))["low"].ready == 2


def test_a_deployment_without_a_row_yet_is_an_ordinary_one(database: Database) -> None:
    found = database.read(lambda s: priority_of(s, "nobody"))
    assert (found.level, found.preempts) == ("normal", True)
