"""Eight planners on 2,000 GPUs that are killed at random moments: nothing is given away twice, and nothing is lost."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

import pytest
from sqlmodel import Session, select

from fleet.db import claims
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, PortClaimRow
from fleet.placement.parts import parts_of
from fleet.placement.request import Placement
from tests.machines import add_machines
from tests.unit.db import fleet_planners
from tests.unit.db.ledger import allocatable, assert_the_books_are_right, claimed, used

HOSTS = 250
PLANNERS = 8
PLACEMENTS = 5000
KILLS = 10
WITHIN_S = 200
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.unit.db.fleet_planners"])


@pytest.mark.slow
def test_planners_that_are_killed_at_any_moment_neither_overbook_nor_leak(database: Database, tmp_path: Path) -> None:
    _add_fleet(database)
    placed, killed = _race(database, tmp_path, PLACEMENTS, kills=KILLS)
    assert placed >= PLACEMENTS
    assert killed == KILLS
    assert_the_books_are_right(database)
    assert database.read(_ports) == database.read(_ports_of_claims)
    assert _held(tmp_path) == database.read(_claims_held)
    _all_gone(database)
    assert set(used(database).values()) == {0}
    assert database.read(_claims_held) == database.read(_ports) == set()


@pytest.mark.slow
def test_without_the_guard_the_same_planners_overbook(database: Database, tmp_path: Path) -> None:
    _add_fleet(database)
    _race(database, tmp_path, PLACEMENTS // 4, guarded=False)
    limits, sums = allocatable(database), claimed(database)
    assert [gpu for gpu in limits if sums[gpu] > limits[gpu]] != []


def _add_fleet(database: Database) -> None:
    """GPUs of 100 bytes, and hosts with little more RAM and ports than they are asked for."""
    fleet = partial(add_machines, hosts=HOSTS, gpu_bytes=100, ram_bytes=120, ports=(20000, 20023))
    database.write(fleet)


def _race(
    database: Database, folder: Path, placements: int, *, kills: int = 0, guarded: bool = True
) -> tuple[int, int]:
    """Returns how many placements were made and how many planners were killed."""
    placed = RawArray("l", PLANNERS)  # a lock would stay locked when its holder is killed
    url = database.url.render_as_string(hide_password=False)
    quota = placements // PLANNERS
    orders = [fleet_planners.Orders(url, planner, quota, folder, guarded) for planner in range(PLANNERS)]
    running = [_start(order, placed) for order in orders]
    killed, deadline = 0, time.monotonic() + WITHIN_S
    while any(process.is_alive() for process in running):
        assert time.monotonic() < deadline, f"placed {list(placed)}"
        wait([process.sentinel for process in running if process.is_alive()], timeout=0.02)
        if killed < kills and sum(placed) >= placements * (killed + 1) // (kills + 1):
            victim = _victim(orders, running, placed)
            _kill(running[victim])
            running[victim] = _start(orders[victim], placed)
            killed += 1
    assert [process.exitcode for process in running] == [0] * PLANNERS
    return sum(placed), killed


def _start(orders: fleet_planners.Orders, placed: Sequence[int]) -> BaseProcess:
    process = _forks.Process(target=fleet_planners.live, args=(orders, placed))
    process.start()
    return process


def _victim(orders: list[fleet_planners.Orders], running: list[BaseProcess], placed: Sequence[int]) -> int:
    busy = [n for n in range(PLANNERS) if running[n].is_alive() and placed[n] < orders[n].quota]
    return random.choice(busy)


def _kill(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)


def _held(folder: Path) -> set[tuple[str, int]]:
    """What the planners say that they hold."""
    told = [json.loads((folder / f"{planner}.json").read_text()) for planner in range(PLANNERS)]
    return {(instance_id, fence) for keys in told for instance_id, fence in keys}


def _claims_held(session: Session) -> set[tuple[str, int]]:
    return {(r.instance_id, r.fence) for r in session.exec(select(ClaimRow)).all()}


def _ports(session: Session) -> set[tuple[str, int, str, int]]:
    return {(r.host_id, r.port, r.instance_id, r.fence) for r in session.exec(select(PortClaimRow)).all()}


def _ports_of_claims(session: Session) -> set[tuple[str, int, str, int]]:
    found = set()
    for row in session.exec(select(ClaimRow)).all():
        parts = [p for p in parts_of(Placement.model_validate(row.placement)) if p.host_id == row.host_id]
        found |= {(part.host_id, port, row.instance_id, row.fence) for part in parts for port in part.ports}
    return found


def _all_gone(database: Database) -> None:
    """What was never taken up expires; the rest is given up, and its hosts confirm."""

    def give_up_and_confirm(session: Session) -> None:
        claims.expire(session, datetime.now(UTC) + timedelta(hours=1))
        for instance_id, fence in sorted(_claims_held(session)):
            claims.give_up(session, instance_id, fence)
        for host in range(HOSTS):
            claims.confirm_gone(session, f"h{host:04d}", set())

    database.write(give_up_and_confirm)
