"""The ledger of memory, one step at a time."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlmodel import Session

from fleet.db import claims
from fleet.db.session import Database
from fleet.db.tables import GpuRow, HostRow
from fleet.inventory import EngineRef
from fleet.placement.request import Placement
from fleet.states import ClaimState, HostState
from tests.unit.db.ledger import add_host, assert_the_books_are_right, claim, on, rows, used


def test_claim_on_ram_takes_it_from_the_host(database: Database) -> None:
    add_host(database)
    claim(database, "a", 1, on("h1", 60))
    assert used(database) == {"h1": 60}
    assert rows(database) == {("a", 1, ""): ClaimState.HELD}


def test_claim_on_gpus_takes_it_from_each_and_leaves_ram_alone(database: Database) -> None:
    add_host(database, gpus=("g1", "g2", "g3"))
    claim(database, "a", 1, on("h1", 60, "g2", "g1"))
    assert used(database) == {"h1": 0, "g1": 60, "g2": 60, "g3": 0}


def test_memory_may_be_taken_to_the_last_byte_and_no_further(database: Database) -> None:
    add_host(database, gpus=("g1",))
    claim(database, "a", 1, on("h1", 100))
    claim(database, "b", 1, on("h1", 100, "g1"))
    for placement in (on("h1", 1), on("h1", 1, "g1")):
        with pytest.raises(claims.ClaimLost):
            claim(database, "c", 1, placement)
    assert_the_books_are_right(database)


def test_placement_is_given_again_when_asked_again_with_its_fence(database: Database) -> None:
    add_host(database, gpus=("g1", "g2"))
    placement = on("h1", 10, "g1", "g2").model_copy(update={"env_for_host": {"A": "sealed:v1:x"}})
    claim(database, "a", 3, placement)
    assert database.read(lambda s: claims.existing(s, "a", 3)) == placement
    assert database.read(lambda s: claims.existing(s, "a", 4)) is None
    assert database.read(lambda s: claims.existing(s, "b", 3)) is None


def test_asking_with_an_old_fence_is_refused(database: Database) -> None:
    add_host(database)
    claim(database, "a", 3, on("h1", 10))
    with pytest.raises(claims.StaleFence):
        database.read(lambda s: claims.existing(s, "a", 2))
    with pytest.raises(claims.StaleFence):
        claim(database, "a", 2, on("h1", 10))
    assert used(database) == {"h1": 10}


def test_claiming_twice_with_one_fence_is_one_claim(database: Database) -> None:
    add_host(database)
    add_host(database, "h2")
    claim(database, "a", 1, on("h1", 10))
    for host_id in ("h1", "h2"):
        with pytest.raises(claims.ClaimLost):
            claim(database, "a", 1, on(host_id, 10))
    assert used(database) == {"h1": 10, "h2": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"state": HostState.SUSPECT},
        {"state": HostState.LOST},
        {"generation": 2},
        {"ram_allocatable": 9},
        {"maintenance": "cordoned"},
        {"maintenance": "draining"},
        {"maintenance": "drained"},
    ],
)
def test_host_that_changed_since_it_was_looked_at_is_not_claimed(database: Database, change: dict[str, Any]) -> None:
    add_host(database)
    _alter(database, HostRow, "h1", change)
    with pytest.raises(claims.ClaimLost):
        claim(database, "a", 1, on("h1", 10))
    assert rows(database) == {}
    assert used(database) == {"h1": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"healthy": False},
        {"cordoned": True},
        {"generation": 2},
        {"allocatable": 9},
        {"host_id": "elsewhere"},
        {"used": 91},
    ],
)
def test_claim_that_fails_on_its_last_gpu_leaves_nothing(database: Database, change: dict[str, Any]) -> None:
    add_host(database, gpus=("g1", "g2"))
    _alter(database, GpuRow, "g2", change)
    before = used(database)
    with pytest.raises(claims.ClaimLost):
        claim(database, "a", 1, on("h1", 10, "g1", "g2"))
    assert rows(database) == {}
    assert used(database) == before


def test_claim_on_a_host_or_gpu_that_does_not_exist_is_lost(database: Database) -> None:
    add_host(database)
    for placement in (on("h9", 10), on("h1", 10, "g9")):
        with pytest.raises(claims.ClaimLost):
            claim(database, "a", 1, placement)
    assert rows(database) == {}


def test_bound_claims_do_not_expire_and_held_ones_do(database: Database) -> None:
    add_host(database)
    claim(database, "bound", 1, on("h1", 10))
    claim(database, "held", 1, on("h1", 20))
    database.write(lambda s: claims.bind(s, "bound", 1))
    in_time = datetime.now(UTC) + claims.HELD_FOR - timedelta(seconds=30)
    too_late = datetime.now(UTC) + claims.HELD_FOR + timedelta(seconds=1)
    assert database.write(lambda s: claims.expire(s, in_time)) == 0
    assert database.write(lambda s: claims.expire(s, too_late)) == 1
    assert database.write(lambda s: claims.expire(s, too_late)) == 0
    assert rows(database) == {("bound", 1, ""): ClaimState.BOUND}
    assert_the_books_are_right(database)


def test_release_frees_its_own_fence_and_older_ones_once(database: Database) -> None:
    add_host(database, gpus=("g1",))
    claim(database, "a", 1, on("h1", 10))
    claim(database, "a", 2, on("h1", 20, "g1"))
    claim(database, "a", 3, on("h1", 30))
    claim(database, "b", 1, on("h1", 40))
    for _ in range(2):
        database.write(lambda s: claims.release(s, "a", 2))
        assert set(rows(database)) == {("a", 3, ""), ("b", 1, "")}
        assert used(database) == {"h1": 70, "g1": 0}


@pytest.mark.parametrize("every", [2**31, 2**62])
def test_all_fences_of_an_instance_can_be_meant_at_once(database: Database, every: int) -> None:
    add_host(database)
    claim(database, "a", 1, on("h1", 10))
    claim(database, "a", 2, on("h1", 10))
    database.write(lambda s: claims.give_up(s, "a", every))
    assert set(rows(database).values()) == {ClaimState.RELEASING}
    database.write(lambda s: claims.release(s, "a", every))
    assert used(database) == {"h1": 0}


def test_memory_that_was_given_up_stays_booked_until_its_host_confirms(database: Database) -> None:
    add_host(database)
    claim(database, "a", 1, on("h1", 60))
    database.write(lambda s: claims.bind(s, "a", 1))
    database.write(lambda s: claims.give_up(s, "a", 1))
    assert used(database) == {"h1": 60}
    still_running = {EngineRef(instance_id="a", fence=1)}
    assert database.write(lambda s: claims.confirm_gone(s, "h1", still_running)) == 0
    assert database.write(lambda s: claims.confirm_gone(s, "h2", set())) == 0
    assert used(database) == {"h1": 60}
    other_fence = {EngineRef(instance_id="a", fence=2)}
    assert database.write(lambda s: claims.confirm_gone(s, "h1", other_fence)) == 1
    assert database.write(lambda s: claims.confirm_gone(s, "h1", other_fence)) == 0
    assert used(database) == {"h1": 0}


def test_confirmation_frees_only_what_was_given_up(database: Database) -> None:
    add_host(database)
    claim(database, "held", 1, on("h1", 10))
    claim(database, "bound", 1, on("h1", 10))
    database.write(lambda s: claims.bind(s, "bound", 1))
    assert database.write(lambda s: claims.confirm_gone(s, "h1", set())) == 0
    assert used(database) == {"h1": 20}


def test_what_was_given_up_cannot_be_bound_or_expire(database: Database) -> None:
    add_host(database)
    claim(database, "a", 1, on("h1", 60))
    database.write(lambda s: claims.give_up(s, "a", 1))
    database.write(lambda s: claims.bind(s, "a", 1))
    database.write(lambda s: claims.expire(s, datetime.now(UTC) + timedelta(days=1)))
    assert rows(database) == {("a", 1, ""): ClaimState.RELEASING}


def test_legitimate_engines_are_those_with_a_claim_not_given_up(database: Database) -> None:
    add_host(database)
    add_host(database, "h2", gpus=("g1", "g2"))
    claim(database, "a", 1, on("h1", 10))
    claim(database, "b", 1, on("h1", 10))
    claim(database, "c", 1, on("h1", 10))
    claim(database, "d", 7, on("h2", 10, "g1", "g2"))
    database.write(lambda s: claims.bind(s, "a", 1))
    database.write(lambda s: claims.give_up(s, "b", 1))
    refs = {EngineRef(instance_id="a", fence=1), EngineRef(instance_id="c", fence=1)}
    assert database.read(lambda s: claims.legitimate(s, "h1")) == refs
    assert database.read(lambda s: claims.legitimate(s, "h2")) == {EngineRef(instance_id="d", fence=7)}
    assert database.read(lambda s: claims.instances_on(s, "h1")) == ["a", "c"]
    assert database.read(lambda s: claims.instances_on(s, "h2")) == ["d"]


def test_recount_sets_the_counters_of_one_host_to_the_sum_of_its_claims(database: Database) -> None:
    add_host(database, gpus=("g1", "g2"))
    add_host(database, "h2")
    claim(database, "a", 1, on("h1", 10))
    claim(database, "b", 1, on("h1", 20, "g1"))
    for kind, key, change in (
        (HostRow, "h1", {"ram_used": 77}),
        (HostRow, "h2", {"ram_used": 5}),
        (GpuRow, "g1", {"used": 0}),
        (GpuRow, "g2", {"used": 99}),
    ):
        _alter(database, kind, key, change)
    database.write(lambda s: claims.recount(s, "h1"))
    assert used(database) == {"h1": 10, "h2": 5, "g1": 20, "g2": 0}


def test_recount_goes_with_a_change_of_the_rows_in_the_same_transaction(database: Database) -> None:
    add_host(database, gpus=("g1",))
    claim(database, "a", 1, on("h1", 20, "g1"))

    def registered_again(session: Session) -> None:
        gpu = session.get_one(GpuRow, "g1")
        gpu.used, gpu.generation = 0, 2
        claims.recount(session, "h1")

    database.write(registered_again)
    assert used(database) == {"h1": 0, "g1": 20}


def test_room_that_was_freed_can_be_claimed_again(database: Database) -> None:
    add_host(database)
    for fence in range(1, 6):
        claim(database, "a", fence, Placement(host_id="h1", memory_bytes=100))
        database.write(partial(claims.release, instance_id="a", fence=fence))
    assert used(database) == {"h1": 0}


def _alter(database: Database, kind: type[HostRow] | type[GpuRow], key: str, change: dict[str, Any]) -> None:
    def alter(session: Session) -> None:
        row = session.get_one(kind, key)
        row.sqlmodel_update(change)
        session.add(row)

    database.write(alter)
