"""Claims of replicas that span hosts, and of the ports and RAM that come with them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import Session, select

from fleet.db import claims
from fleet.db.hosts import record_state
from fleet.db.ports import pick_ports
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, GpuRow, HostRow, PortClaimRow
from fleet.inventory import EngineRef
from fleet.placement.request import Member, Placement
from fleet.states import ClaimState, HostState
from tests.unit.db.ledger import add_host, assert_the_books_are_right, claim, on, rows, used

REF = EngineRef(instance_id="big/0-a", fence=1)
NOTHING = dict.fromkeys(("h1", "h2", "h3", "g1", "g2", "g3"), 0)
FULL = NOTHING | {"h1": 5, "h2": 5, "h3": 5, "g1": 60, "g2": 60, "g3": 60}


@pytest.fixture
def fleet(database: Database) -> Database:
    """Three hosts, each with one GPU and ten ports."""
    for n in (1, 2, 3):
        add_host(database, f"h{n}", gpus=(f"g{n}",))
        alter(database, HostRow, f"h{n}", port_first=20000, port_last=20009)
    return database


def gang(*members: int, **changes: Any) -> Placement:
    leader, *followers = members or (2, 1, 3)
    place = Placement(
        host_id=f"h{leader}",
        gpu_uuids=(f"g{leader}",),
        memory_bytes=60,
        ram_bytes=5,
        ports=(20001, 20002),
        followers=tuple(Member(host_id=f"h{n}", gpu_uuids=(f"g{n}",), ports=(20001,)) for n in followers),
    )
    return place.model_copy(update=changes)


def alter(database: Database, kind: type[HostRow] | type[GpuRow], key: str, **change: Any) -> None:
    def write(session: Session) -> None:
        session.add(session.get_one(kind, key).sqlmodel_update(change))

    database.write(write)


def place(database: Database, placement: Placement | None = None) -> None:
    claim(database, REF.instance_id, REF.fence, placement or gang())


def ports(database: Database) -> set[tuple[str, int]]:
    return database.read(lambda s: {(r.host_id, r.port) for r in s.exec(select(PortClaimRow)).all()})


def states(database: Database) -> dict[str, set[ClaimState]]:
    """By host."""

    def read(session: Session) -> dict[str, set[ClaimState]]:
        found: dict[str, set[ClaimState]] = {}
        for row in session.exec(select(ClaimRow)).all():
            found.setdefault(row.host_id, set()).add(ClaimState(row.state))
        return found

    return database.read(read)


def legitimate(database: Database) -> dict[str, set[EngineRef]]:
    return {h: database.read(lambda s, h=h: claims.legitimate(s, h)) for h in ("h1", "h2", "h3")}  # type: ignore[misc]


def bind(database: Database) -> bool:
    return database.write(lambda s: claims.bind(s, REF.instance_id, REF.fence))


def test_a_gang_takes_gpus_ram_and_ports_of_all_its_hosts(fleet: Database) -> None:
    place(fleet)
    assert used(fleet) == FULL
    assert ports(fleet) == {("h2", 20001), ("h2", 20002), ("h1", 20001), ("h3", 20001)}
    assert legitimate(fleet) == {host: {REF} for host in ("h1", "h2", "h3")}
    assert fleet.read(lambda s: claims.host_of(s, REF.instance_id, REF.fence)) == "h2"
    assert fleet.read(lambda s: claims.hosts_of(s, REF.instance_id, REF.fence)) == ("h2", "h1", "h3")
    assert fleet.read(lambda s: claims.existing(s, REF.instance_id, REF.fence)) == gang()
    assert fleet.read(lambda s: claims.instances_on(s, "h3")) == [REF.instance_id]
    assert_the_books_are_right(fleet)


@pytest.mark.parametrize(
    ("kind", "key", "change"),
    [
        (HostRow, "h3", {"state": HostState.SUSPECT}),
        (HostRow, "h3", {"maintenance": "cordoned"}),
        (HostRow, "h3", {"generation": 2}),
        (HostRow, "h3", {"ram_used": 96}),
        (HostRow, "h3", {"port_first": 20002}),
        (HostRow, "h2", {"port_last": 20001}),
        (GpuRow, "g3", {"used": 41}),
        (GpuRow, "g3", {"cordoned": True}),
    ],
)
def test_a_gang_gets_all_or_nothing(
    fleet: Database, kind: type[HostRow] | type[GpuRow], key: str, change: dict[str, Any]
) -> None:
    alter(fleet, kind, key, **change)
    before = used(fleet)
    with pytest.raises(claims.ClaimLost) as lost:
        place(fleet)
    assert set(lost.value.hosts) & {"h2", "h3"}
    assert (rows(fleet), ports(fleet), used(fleet)) == ({}, set(), before)


def test_a_port_is_given_once(fleet: Database) -> None:
    claim(fleet, "small/0-a", 1, on("h3", 10, "g3").model_copy(update={"ports": (20001,)}))
    with pytest.raises(claims.ClaimLost, match="port"):
        place(fleet)
    assert ports(fleet) == {("h3", 20001)}
    fleet.write(lambda s: claims.release(s, "small/0-a", 1))
    place(fleet)
    assert ("h3", 20001) in ports(fleet)


@pytest.mark.parametrize("wrong", [gang(1, 1), gang(1, 2, 2), gang(gpu_uuids=("g2", "g2")), gang(ports=(20001, 20001))])
def test_a_placement_that_names_something_twice_is_refused(fleet: Database, wrong: Placement) -> None:
    with pytest.raises(ValueError, match="once"):
        place(fleet, wrong)
    assert rows(fleet) == {}


def test_without_gpus_memory_is_ram_and_counted_once(fleet: Database) -> None:
    place(fleet, on("h1", 30).model_copy(update={"ram_bytes": 30}))
    assert used(fleet)["h1"] == 30


def test_a_gang_is_bound_as_a_whole(fleet: Database) -> None:
    place(fleet)
    assert bind(fleet)
    assert bind(fleet)
    assert states(fleet) == {host: {ClaimState.BOUND} for host in ("h1", "h2", "h3")}
    assert fleet.write(lambda s: claims.expire(s, datetime.now(UTC) + timedelta(days=1))) == 0


def test_a_gang_expires_as_a_whole(fleet: Database) -> None:
    place(fleet)
    assert fleet.write(lambda s: claims.expire(s, datetime.now(UTC) + timedelta(days=1))) == 1
    assert (rows(fleet), ports(fleet), used(fleet)) == ({}, set(), NOTHING)
    assert not bind(fleet)


def test_a_gang_of_which_a_host_was_forgotten_cannot_be_bound(fleet: Database) -> None:
    place(fleet)
    fleet.write(lambda s: record_state(s, "h1", HostState.FORGOTTEN, "", 1))
    assert not bind(fleet)
    assert ports(fleet) == {("h2", 20001), ("h2", 20002), ("h3", 20001)}


def test_each_host_frees_its_own_part_once_it_confirms(fleet: Database) -> None:
    place(fleet)
    bind(fleet)
    fleet.write(lambda s: claims.give_up(s, REF.instance_id, REF.fence))
    assert used(fleet) == FULL
    assert legitimate(fleet) == {host: set() for host in ("h1", "h2", "h3")}
    assert fleet.write(lambda s: claims.confirm_gone(s, "h1", {REF})) == 0
    assert fleet.write(lambda s: claims.confirm_gone(s, "h1", set())) == 1
    assert used(fleet) == FULL | {"h1": 0, "g1": 0}
    assert ports(fleet) == {("h2", 20001), ("h2", 20002), ("h3", 20001)}
    for host_id in ("h2", "h3"):
        fleet.write(lambda s, h=host_id: claims.confirm_gone(s, h, set()))  # type: ignore[misc]
    assert (rows(fleet), ports(fleet), used(fleet)) == ({}, set(), NOTHING)


def test_what_followers_hold_stays_booked_until_they_confirm_too(fleet: Database) -> None:
    place(fleet)
    bind(fleet)
    fleet.write(lambda s: claims.release(s, REF.instance_id, REF.fence))
    assert used(fleet) == FULL | {"h2": 0, "g2": 0}
    assert states(fleet) == {host: {ClaimState.RELEASING} for host in ("h1", "h3")}
    fleet.write(lambda s: claims.release(s, REF.instance_id, REF.fence, gone_from=("h1", "h2", "h3")))
    assert (rows(fleet), ports(fleet), used(fleet)) == ({}, set(), NOTHING)


def test_priority_is_kept_with_the_claims(fleet: Database) -> None:
    generations = {"h1": 1, "h2": 1, "h3": 1}
    fleet.write(lambda s: claims.claim(s, "big/0-a", 1, gang(), generations, priority=3))
    assert fleet.read(lambda s: {(r.priority, r.hosts) for r in s.exec(select(ClaimRow)).all()}) == {(3, 3)}
    ranks = fleet.read(lambda s: {(r.rank, r.host_id) for r in s.exec(select(ClaimRow)).all()})
    assert ranks == {(0, "h2"), (1, "h1"), (2, "h3")}


def test_ports_are_picked_among_the_free_ones(fleet: Database) -> None:
    place(fleet)
    for seed in range(20):
        picked = fleet.read(lambda s, seed=seed: pick_ports(s, "h2", 8, seed))  # type: ignore[misc]
        assert set(picked) == set(range(20000, 20010)) - {20001, 20002}
    with pytest.raises(claims.ClaimLost, match="8 free ports"):
        fleet.read(lambda s: pick_ports(s, "h2", 9, 1))


def test_another_seed_picks_another_port(fleet: Database) -> None:
    picked = {seed: fleet.read(lambda s, seed=seed: pick_ports(s, "h1", 1, seed)) for seed in range(20)}  # type: ignore[misc]
    assert len(set(picked.values())) > 3
    assert picked[7] == fleet.read(lambda s: pick_ports(s, "h1", 1, 7))


def test_a_host_that_told_no_range_picks_by_itself(database: Database) -> None:
    add_host(database)
    assert database.read(lambda s: pick_ports(s, "h1", 2, 1)) == ()
    assert database.read(lambda s: pick_ports(s, "nobody", 2, 1)) == ()
