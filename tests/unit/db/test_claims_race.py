"""Many planners at once: no memory is ever given away twice."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlmodel import Session

from fleet.db import claims, migrate
from fleet.db.hosts import record_state
from fleet.db.session import Database
from fleet.placement.request import Placement
from fleet.states import ClaimState, HostState
from tests.unit.db import planners
from tests.unit.db.ledger import (
    GENERATION,
    add_host,
    allocatable,
    assert_the_books_are_right,
    claim,
    claimed,
    on,
    rows,
    used,
)

GPUS = tuple(f"h1-g{n}" for n in range(6))
PLACES = [on("h1", 60, uuid) for uuid in GPUS] + [on("h1", 60)]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that start each round together."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(planners.PLANNERS)
    with ProcessPoolExecutor(planners.PLANNERS, spawn, planners.share, (barrier,)) as started:
        yield started


@pytest.mark.slow
def test_of_all_who_saw_the_same_room_one_gets_it(pool: ProcessPoolExecutor, database: Database) -> None:
    won = _all_want_the_same(pool, database, guarded=True)
    assert won == len(PLACES)
    assert_the_books_are_right(database)


@pytest.mark.slow
def test_without_the_guard_the_same_race_overbooks(pool: ProcessPoolExecutor, database: Database) -> None:
    won = _all_want_the_same(pool, database, guarded=False)
    assert won > len(PLACES)
    limits = allocatable(database)
    assert any(claimed(database)[key] > limits[key] for key in limits)


@pytest.mark.slow
def test_duplicate_planners_make_one_claim_for_one_fence(pool: ProcessPoolExecutor, database: Database) -> None:
    for n in range(planners.PLANNERS):
        add_host(database, f"h{n}")
    url = _url(database)
    everywhere = [
        pool.submit(planners.all_place_the_same, url, [on(f"h{n}", 10)] * 5) for n in range(planners.PLANNERS)
    ]
    assert sum(f.result(120) for f in everywhere) == 5
    assert len(rows(database)) == 5
    assert_the_books_are_right(database)


@pytest.mark.slow
def test_busy_lives_of_many_planners_keep_the_books_right(pool: ProcessPoolExecutor, database: Database) -> None:
    for host_id in ("h1", "h2"):
        add_host(database, host_id, gpus=(f"{host_id}-a", f"{host_id}-b"))
    url = _url(database)
    lives = [pool.submit(planners.live, url, planner, 25) for planner in range(planners.PLANNERS)]
    counts = [life.result(240) for life in lives]
    assert sum(c["out_of_bounds"] for c in counts) == 0
    assert all(sum(c[what] for c in counts) > 0 for what in ("won", "lost", "freed"))
    assert_the_books_are_right(database)


@pytest.mark.slow
def test_claim_that_is_taken_up_while_others_expire_stays(postgres: Database) -> None:
    claim(postgres, "a", 1, on("h1", 60))
    late = datetime.now(UTC) + timedelta(hours=1)
    with _meanwhile(postgres, lambda s: claims.bind(s, "a", 1)):
        freed = postgres.write(lambda s: claims.expire(s, late))
    assert freed == 0
    assert rows(postgres) == {("a", 1, ""): ClaimState.BOUND}
    assert used(postgres) == {"h1": 60, "g1": 0}


@pytest.mark.slow
def test_recount_does_not_forget_a_claim_that_is_being_made(postgres: Database) -> None:
    claim(postgres, "a", 1, on("h1", 20))

    def being_made(session: Session) -> None:
        claims.claim(session, "b", 1, on("h1", 30), {"h1": GENERATION})
        claims.claim(session, "c", 1, on("h1", 40, "g1"), {"h1": GENERATION})

    with _meanwhile(postgres, being_made):
        postgres.write(lambda s: claims.recount(s, "h1"))
    assert used(postgres) == {"h1": 50, "g1": 40}


@pytest.mark.slow
def test_recount_does_not_keep_a_claim_that_is_being_freed(postgres: Database) -> None:
    for instance_id, placement in (("a", on("h1", 20)), ("b", on("h1", 40, "g1"))):
        claim(postgres, instance_id, 1, placement)
    # A counter that is wrong to begin with makes sure that the recount writes it.
    postgres.write(lambda s: s.execute(text("UPDATE gpu SET used = 41")))

    def being_freed(session: Session) -> None:
        claims.release(session, "b", 1)

    with _meanwhile(postgres, being_freed):
        postgres.write(lambda s: claims.recount(s, "h1"))
    assert used(postgres) == {"h1": 20, "g1": 0}


@pytest.mark.slow
def test_host_that_is_forgotten_leaves_no_claim_that_was_being_made(postgres: Database) -> None:
    with _meanwhile(postgres, lambda s: claims.claim(s, "a", 1, on("h1", 30), {"h1": GENERATION})):
        postgres.write(lambda s: record_state(s, "h1", HostState.FORGOTTEN, "", 1))
    assert rows(postgres) == {}


@pytest.fixture
def postgres(new_postgres_database: Callable[[], str]) -> Iterator[Database]:
    """Where transactions really overlap; SQLite runs one writer at a time."""
    url = new_postgres_database()
    migrate.upgrade(url)
    database = Database(url)
    add_host(database, gpus=("g1",))
    yield database
    database.close()


@contextmanager
def _meanwhile(database: Database, first: Callable[[Session], None]) -> Iterator[None]:
    """Leave ``first`` uncommitted until the body waits for one of its locks."""
    session = Session(database.engine)
    first(session)
    session.flush()
    commit = threading.Thread(target=_commit_when_somebody_waits, args=(database, session))
    commit.start()
    yield
    commit.join(30)
    session.close()


def _commit_when_somebody_waits(database: Database, session: Session) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not database.read(lambda s: s.execute(waiting).scalar()):
        time.sleep(0.01)
    session.commit()


def _all_want_the_same(pool: ProcessPoolExecutor, database: Database, *, guarded: bool) -> int:
    add_host(database, gpus=GPUS)
    url = _url(database)
    places: list[Placement] = PLACES
    planned = [
        pool.submit(planners.all_want_the_same, url, planner, places, guarded) for planner in range(planners.PLANNERS)
    ]
    return sum(f.result(120) for f in planned)


def _url(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)
