"""What a placement costs: a look at the fleet, and its claim, on both databases.

``python -m tests.bench.claims [hosts]`` prints one JSON object a line. A fleet of 1,000 hosts with 8 GPUs each and
4,000 claims is written into a new database of each kind. ``vs`` of a renewed look is the first one, which reads all
inventories; ``vs`` of a placement on PostgreSQL is the same on SQLite.
"""

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sqlmodel import Session

from fleet.db import claims, migrate
from fleet.db.fleet_reader import FleetReader
from fleet.db.ports import pick_ports
from fleet.db.session import Database
from fleet.placement.request import Placement
from fleet.placement.view import HostView
from tests.database_fixtures import postgres_server
from tests.machines import GiB, add_claims, add_machines

HOSTS = 1000
CLAIMS = 4000
LOOKS = 20
PLACEMENTS = 300

Decide = Callable[[FleetReader, int], Placement]
"""Where the n-th replica goes, in memory."""


def main(hosts: int = HOSTS) -> None:
    asyncio.run(_run(hosts))


async def _run(hosts: int) -> None:
    before: dict[str, float] = {}
    for kind, database in databases(hosts):
        first, renewed = await look_ms(database)
        _print(f"look_{kind}", "first_p50", first, None)
        _print(f"look_{kind}", "renewed_p50", renewed, first)
        placed = statistics.median(await place_and_claim_ms(database, somewhere))
        _print(f"place_and_claim_{kind}", "p50", placed, before.get("placed"))
        before["placed"] = placed


def databases(hosts: int = HOSTS) -> Iterator[tuple[str, Database]]:
    """A fleet with claims in each kind; gone when the next one is asked for."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        with _fleet(f"sqlite:///{folder}/fleet.db", hosts) as database:
            yield "sqlite", database
        (Path(folder) / "fleet.db").unlink()
    with postgres_server(on_disk=True) as server, _fleet(server.new_database("bench_"), hosts) as database:
        yield "postgresql", database


async def look_ms(database: Database, looks: int = LOOKS) -> tuple[float, float]:
    """Medians of the first look of a process, and of one that renews another."""
    first = [await _timed(FleetReader(database).look) for _ in range(3)]
    reader = FleetReader(database)
    await reader.look()
    return statistics.median(first), statistics.median([await _timed(partial(reader.look, 0)) for _ in range(looks)])


async def place_and_claim_ms(database: Database, decide: Decide, placements: int = PLACEMENTS) -> list[float]:
    """From the request to the committed claim, each: look (at most a quarter of a second old), decide, claim."""
    reader = FleetReader(database)
    await reader.look()
    return [await _timed(partial(_place, reader, decide, number)) for number in range(placements)]


def somewhere(reader: FleetReader, number: int) -> Placement:
    """The emptier of two hosts by chance: what it costs is next to nothing."""
    chance = random.Random(number)
    hosts = reader.hosts()
    host = max(chance.sample(hosts, 2), key=_room)
    gpu = max(host.gpus, key=lambda g: g.free_bytes)
    return Placement(host_id=host.host_id, gpu_uuids=(gpu.uuid,), memory_bytes=GiB, ram_bytes=GiB)


def _room(host: HostView) -> int:
    return max(g.free_bytes for g in host.gpus)


async def _place(reader: FleetReader, decide: Decide, number: int) -> None:
    while True:
        await reader.look()
        decided = decide(reader, number)
        generations = {h: view.generation for h in decided.hosts if (view := reader.host(h)) is not None}
        try:
            made = await reader.database.awrite(partial(_claim, number=number, on=decided, generations=generations))
        except claims.ClaimLost as lost:
            await reader.refresh(lost.hosts)
            continue
        reader.claimed(f"bench/{number}", 1, made)
        return


def _claim(session: Session, number: int, on: Placement, generations: dict[str, int]) -> Placement:
    made = on.model_copy(update={"ports": pick_ports(session, on.host_id, 2, number)})
    claims.claim(session, f"bench/{number}", 1, made, generations)
    return made


@contextmanager
def _fleet(url: str, hosts: int) -> Iterator[Database]:
    migrate.upgrade(url)
    database = Database(url)
    database.write(partial(add_machines, hosts=hosts))
    database.write(partial(add_claims, hosts=hosts, claims=CLAIMS * hosts // HOSTS))
    if not database.is_sqlite:  # as autovacuum does within a minute
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")
    try:
        yield database
    finally:
        database.close()


async def _timed(what: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await what()
    return (time.perf_counter() - began) * 1000


def _print(bench: str, metric: str, value: float, vs: float | None) -> None:
    line = {"bench": bench, "metric": metric, "value": round(value, 2), "unit": "ms"}
    print(json.dumps(line | {"vs": None if vs is None else round(vs, 2)}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
