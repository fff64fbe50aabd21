"""The writes that keep counters of memory within what may be claimed. The guard is in the statement itself.

The statements are made once: building one costs more than the database takes to run it. Locks are taken in one order,
hosts by id, then GPUs by UUID.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import CursorResult, bindparam, delete, update
from sqlmodel import Session, col

from fleet.db.lost import ClaimLost
from fleet.db.tables import ClaimRow, GpuRow, HostRow
from fleet.placement.parts import Part
from fleet.states import HostState, Maintenance

_ANY_PORT = (65536, -1)
"""Lowest and highest of none: any range holds them."""

_TAKE_RAM = (
    update(HostRow)
    .where(
        col(HostRow.id) == bindparam("host"),
        col(HostRow.state) == HostState.READY,
        col(HostRow.maintenance) == Maintenance.NONE,
        col(HostRow.generation) == bindparam("seen"),
        col(HostRow.ram_used) + bindparam("need") <= col(HostRow.ram_allocatable),
        col(HostRow.port_first) <= bindparam("lowest"),
        col(HostRow.port_last) >= bindparam("highest"),
    )
    .values(ram_used=HostRow.ram_used + bindparam("need"))
)
_TAKE_GPU = (
    update(GpuRow)
    .where(
        col(GpuRow.uuid) == bindparam("gpu"),
        col(GpuRow.host_id) == bindparam("host"),
        col(GpuRow.generation) == bindparam("seen"),
        col(GpuRow.healthy),
        ~col(GpuRow.cordoned),
        col(GpuRow.used) + bindparam("need") <= col(GpuRow.allocatable),
    )
    .values(used=GpuRow.used + bindparam("need"))
)
_DELETE = delete(ClaimRow).where(
    col(ClaimRow.instance_id) == bindparam("instance"),
    col(ClaimRow.fence) == bindparam("fenced"),
    col(ClaimRow.host_id) == bindparam("host"),
    col(ClaimRow.gpu_uuid) == bindparam("gpu"),
)
_FREE_RAM = (
    update(HostRow).where(col(HostRow.id) == bindparam("host")).values(ram_used=HostRow.ram_used - bindparam("bytes"))
)
# A card that moved to another host owes nothing for what ran on the one before.
_FREE_GPU = (
    update(GpuRow)
    .where(col(GpuRow.uuid) == bindparam("gpu"), col(GpuRow.host_id) == bindparam("host"))
    .values(used=GpuRow.used - bindparam("bytes"))
)


def take(session: Session, parts: Sequence[Part], generations: Mapping[str, int]) -> None:
    """Raises ClaimLost when a host or GPU has no room, or is not as it was seen; then roll back."""
    for part in sorted(parts, key=lambda p: p.host_id):
        _take_host(session, part, generations[part.host_id])
    wanted = [
        {"gpu": uuid, "host": part.host_id, "seen": generations[part.host_id], "need": part.gpu_bytes}
        for part in parts
        for uuid in part.gpu_uuids
    ]
    wanted.sort(key=lambda w: str(w["gpu"]))
    if _run(session, _TAKE_GPU, wanted) != len(wanted):
        names = ", ".join(str(w["gpu"]) for w in wanted)
        which = f"one of the GPUs {names}" if len(wanted) > 1 else f"GPU {names}"
        raise ClaimLost(f"{which} has no room any more, or changed", tuple(p.host_id for p in parts if p.gpu_uuids))


def give_back(session: Session, rows: Sequence[ClaimRow]) -> None:
    """Delete these claims and subtract them. They are locked: freed twice, they would open room that is taken."""
    keys = [{"instance": r.instance_id, "fenced": r.fence, "host": r.host_id, "gpu": r.gpu_uuid} for r in rows]
    if _run(session, _DELETE, keys) != len(keys):
        raise AssertionError(f"somebody freed claims that this transaction had locked: {keys}")
    ram = [{"host": r.host_id, "bytes": r.memory_bytes} for r in rows if not r.gpu_uuid]
    gpus = [{"gpu": r.gpu_uuid, "host": r.host_id, "bytes": r.memory_bytes} for r in rows if r.gpu_uuid]
    _run(session, _FREE_RAM, sorted(ram, key=lambda f: str(f["host"])))
    _run(session, _FREE_GPU, sorted(gpus, key=lambda f: str(f["gpu"])))


def _take_host(session: Session, part: Part, generation: int) -> None:
    """Also where no RAM is taken: it locks the host, and a host that changed is not claimed."""
    lowest, highest = (min(part.ports), max(part.ports)) if part.ports else _ANY_PORT
    wanted = {"host": part.host_id, "seen": generation, "need": part.ram_bytes, "lowest": lowest, "highest": highest}
    if _run(session, _TAKE_RAM, [wanted]) != 1:
        raise ClaimLost(f"host {part.host_id} has no room any more, or changed", (part.host_id,))


def _run(session: Session, statement: Any, rows: Sequence[Mapping[str, Any]]) -> int:
    """For each of ``rows``, in their order. Returns how many rows of the table it hit."""
    if not rows:
        return 0
    done: CursorResult[Any] = session.connection().execute(statement, rows if len(rows) > 1 else rows[0])
    return done.rowcount
