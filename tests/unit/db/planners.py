"""What each of several planner processes does in the tests of racing claims; spawned processes import it."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from multiprocessing.synchronize import Barrier

from sqlalchemy import update
from sqlmodel import Session, col, or_, select

from fleet.db import claims
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, GpuRow, HostRow
from fleet.inventory import EngineRef
from fleet.placement.request import Placement
from fleet.states import ClaimState
from tests.unit.db.ledger import GENERATION, on

PLANNERS = 8
_barrier: list[Barrier] = []


def share(barrier: Barrier) -> None:
    """Initializer of each process."""
    _barrier.append(barrier)


def all_want_the_same(url: str, planner: int, places: list[Placement], guarded: bool) -> int:
    """Look for room, wait until all have looked, take it. Returns how many places were won."""
    database = Database(url)
    take = claims.claim if guarded else _claim_without_guard
    won = 0
    for number, place in enumerate(places):
        looks_free = database.read(partial(_room, place=place)) >= place.memory_bytes
        _barrier[0].wait(60)
        if looks_free:
            won += _won(database, take, f"{planner}/{number}", place)
        _barrier[0].wait(60)
    database.close()
    return won


def all_place_the_same(url: str, places: list[Placement]) -> int:
    """Claim under the same (instance, fence) as everybody else, each somewhere else."""
    database = Database(url)
    won = 0
    for number, place in enumerate(places):
        _barrier[0].wait(60)
        won += _won(database, claims.claim, f"same/{number}", place)
    database.close()
    return won


def live(url: str, planner: int, steps: int) -> dict[str, int]:
    """A random life of claims; counts what happened and how often a counter was seen outside its bounds."""
    database = Database(url)
    chance = random.Random(planner)
    counts = {"won": 0, "lost": 0, "freed": 0, "out_of_bounds": 0}
    mine: list[tuple[str, int]] = []
    _barrier[0].wait(60)
    for step in range(steps):
        if mine and chance.random() < 0.4:
            _let_go(database, chance, *mine.pop())
            counts["freed"] += 1
        else:
            key, host_id = (f"{planner}/{step}", step), chance.choice(["h1", "h2"])
            gpus = chance.choice([(), (f"{host_id}-a",), (f"{host_id}-b", f"{host_id}-a")])
            won = _won(database, claims.claim, key[0], on(host_id, chance.choice([30, 50]), *gpus), key[1])
            counts["won" if won else "lost"] += 1
            mine += [key] if won else []
        database.write(lambda s: claims.recount(s, chance.choice(["h1", "h2"])))
        counts["out_of_bounds"] += database.read(_out_of_bounds)
    database.close()
    return counts


def _won(
    database: Database,
    take: Callable[[Session, str, int, Placement, dict[str, int]], None],
    instance_id: str,
    place: Placement,
    fence: int = 1,
) -> int:
    try:
        database.write(lambda s: take(s, instance_id, fence, place, {place.host_id: GENERATION}))
    except claims.ClaimLost:
        return 0
    return 1


def _let_go(database: Database, chance: random.Random, instance_id: str, fence: int) -> None:
    match chance.randrange(3):
        case 0:
            database.write(lambda s: claims.release(s, instance_id, fence))
        case 1:
            database.write(lambda s: claims.give_up(s, instance_id, fence))
            for host_id in ("h1", "h2"):
                database.write(partial(_confirm, host_id=host_id))
        case _:
            database.write(lambda s: claims.bind(s, instance_id, fence))
            database.write(lambda s: claims.expire(s, datetime.now(UTC)))
            database.write(lambda s: claims.release(s, instance_id, fence))


def _confirm(session: Session, host_id: str) -> None:
    claims.confirm_gone(session, host_id, _running(session))


def _running(session: Session) -> set[EngineRef]:
    rows = session.exec(select(ClaimRow).where(ClaimRow.state != ClaimState.RELEASING)).all()
    return {EngineRef(instance_id=r.instance_id, fence=r.fence) for r in rows}


def _room(session: Session, place: Placement) -> int:
    if not place.gpu_uuids:
        host = session.get_one(HostRow, place.host_id)
        return host.ram_allocatable - host.ram_used
    gpus = [session.get_one(GpuRow, uuid) for uuid in place.gpu_uuids]
    return min(gpu.allocatable - gpu.used for gpu in gpus)


def _out_of_bounds(session: Session) -> int:
    gpus = select(GpuRow.uuid).where(or_(GpuRow.used < 0, GpuRow.used > GpuRow.allocatable))
    hosts = select(HostRow.id).where(or_(HostRow.ram_used < 0, HostRow.ram_used > HostRow.ram_allocatable))
    return len(session.exec(gpus).all()) + len(session.exec(hosts).all())


def _claim_without_guard(
    session: Session, instance_id: str, fence: int, placement: Placement, _generations: dict[str, int]
) -> None:
    """What ``claims.claim`` writes, but trusting what was seen before: what the guard prevents."""
    need = placement.memory_bytes
    if not placement.gpu_uuids:
        host = update(HostRow).where(col(HostRow.id) == placement.host_id)
        session.execute(host.values(ram_used=HostRow.ram_used + need))
    for uuid in placement.gpu_uuids:
        session.execute(update(GpuRow).where(col(GpuRow.uuid) == uuid).values(used=GpuRow.used + need))
    for uuid in placement.gpu_uuids or ("",):
        session.add(
            ClaimRow(
                instance_id=instance_id,
                fence=fence,
                gpu_uuid=uuid,
                host_id=placement.host_id,
                memory_bytes=need,
                state=ClaimState.HELD,
                placement=placement.model_dump(mode="json"),
            )
        )
