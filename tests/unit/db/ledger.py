"""Hosts, GPUs and the books of memory, for tests."""

from sqlmodel import Session, select

from fleet.db import claims
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, GpuRow, HostRow
from fleet.placement.request import Placement
from fleet.states import ClaimState, HostState

GENERATION = 1


def add_host(database: Database, host_id: str = "h1", ram: int = 100, gpus: tuple[str, ...] = ()) -> None:
    """A ready host with ``ram`` bytes, and GPUs of 100 bytes each."""

    def add(session: Session) -> None:
        session.add(
            HostRow(
                id=host_id,
                name=host_id,
                state=HostState.READY,
                credential_hash=host_id,
                generation=GENERATION,
                ram_allocatable=ram,
            )
        )
        for index, uuid in enumerate(gpus):
            session.add(
                GpuRow(
                    uuid=uuid,
                    host_id=host_id,
                    index=index,
                    kind="nvidia",
                    name="test",
                    memory_bytes=110,
                    allocatable=100,
                    generation=GENERATION,
                )
            )

    database.write(add)


def on(host_id: str, memory: int, *gpus: str) -> Placement:
    return Placement(host_id=host_id, memory_bytes=memory, gpu_uuids=gpus)


def claim(database: Database, instance_id: str, fence: int, placement: Placement, generation: int = GENERATION) -> None:
    database.write(lambda s: claims.claim(s, instance_id, fence, placement, dict.fromkeys(placement.hosts, generation)))


def rows(database: Database) -> dict[tuple[str, int, str], ClaimState]:
    """State of every claim, by (instance, fence, GPU)."""

    def query(session: Session) -> dict[tuple[str, int, str], ClaimState]:
        found = session.exec(select(ClaimRow)).all()
        return {(r.instance_id, r.fence, r.gpu_uuid): ClaimState(r.state) for r in found}

    return database.read(query)


def used(database: Database) -> dict[str, int]:
    """Counter of every host's RAM (by host id) and every GPU (by UUID)."""

    def query(session: Session) -> dict[str, int]:
        hosts = {h.id: h.ram_used for h in session.exec(select(HostRow)).all()}
        return hosts | {g.uuid: g.used for g in session.exec(select(GpuRow)).all()}

    return database.read(query)


def claimed(database: Database) -> dict[str, int]:
    """What the counters must say: the sum of the claims."""

    def query(session: Session) -> dict[str, int]:
        sums = dict.fromkeys([h.id for h in session.exec(select(HostRow)).all()], 0)
        sums |= dict.fromkeys([g.uuid for g in session.exec(select(GpuRow)).all()], 0)
        for row in session.exec(select(ClaimRow)).all():
            sums[row.gpu_uuid or row.host_id] += row.memory_bytes
        return sums

    return database.read(query)


def allocatable(database: Database) -> dict[str, int]:
    def query(session: Session) -> dict[str, int]:
        hosts = {h.id: h.ram_allocatable for h in session.exec(select(HostRow)).all()}
        return hosts | {g.uuid: g.allocatable for g in session.exec(select(GpuRow)).all()}

    return database.read(query)


def assert_the_books_are_right(database: Database) -> None:
    counters, limits = used(database), allocatable(database)
    assert counters == claimed(database)
    assert all(0 <= counters[key] <= limits[key] for key in limits)
