"""Ports of hosts, claimed with the memory that their engines get."""

import random
from collections.abc import Collection, Sequence

from sqlalchemy import bindparam, delete, text
from sqlmodel import Session, col, select

from fleet.db.lost import ClaimLost
from fleet.db.tables import HostRow, PortClaimRow
from fleet.placement.parts import Part

Owner = tuple[str, int, str]
"""(instance, fence, host)."""

# Both databases spell it so. The primary key is the guard: of two that take a port, one finds it taken.
_TAKE = text(
    "INSERT INTO port_claim (host_id, port, instance_id, fence) VALUES (:host_id, :port, :instance_id, :fence)"
    " ON CONFLICT (host_id, port) DO NOTHING"
)

_RANGE_AND_TAKEN = (
    select(HostRow.port_first, HostRow.port_last, PortClaimRow.port)
    .join_from(HostRow, PortClaimRow, col(PortClaimRow.host_id) == col(HostRow.id), isouter=True)
    .where(col(HostRow.id) == bindparam("host"))
)
_FREE = delete(PortClaimRow).where(
    col(PortClaimRow.host_id) == bindparam("host"),
    col(PortClaimRow.instance_id) == bindparam("instance"),
    col(PortClaimRow.fence) == bindparam("fenced"),
)


def pick_ports(session: Session, host_id: str, count: int, seed: int | str) -> tuple[int, ...]:
    """``count`` ports of the host's range that nobody claims, at random, for a claim in the same transaction.

    What else listens on them is not known here: an engine that finds its port taken fails, and the next attempt,
    with another ``seed``, gets another one. Empty for a host that has told no range: it picks by itself.
    Raises ClaimLost when there are not so many.
    """
    rows = session.connection().execute(_RANGE_AND_TAKEN, {"host": host_id}).all()
    if not rows or not rows[0].port_last:
        return ()
    first, last, taken = rows[0].port_first, rows[0].port_last, {row.port for row in rows}
    free = [port for port in range(first, last + 1) if port not in taken]
    if len(free) < count:
        raise ClaimLost(f"host {host_id} has {len(free)} free ports for engines, {count} are needed", (host_id,))
    return tuple(random.Random(seed).sample(free, count))  # noqa: S311 (to miss each other, not a secret)


def take(session: Session, instance_id: str, fence: int, parts: Sequence[Part]) -> None:
    """Raises ClaimLost when somebody has one of them. Call it with the hosts locked."""
    wanted = [
        {"host_id": part.host_id, "port": port, "instance_id": instance_id, "fence": fence}
        for part in parts
        for port in part.ports
    ]
    if not wanted:
        return
    if session.connection().execute(_TAKE, wanted).rowcount != len(wanted):
        hosts = tuple(part.host_id for part in parts)
        raise ClaimLost(f"a port of {' or '.join(hosts)} was taken meanwhile", hosts)


def free(session: Session, owners: Collection[Owner]) -> None:
    rows = [{"instance": i, "fenced": fence, "host": host} for i, fence, host in sorted(owners, key=lambda o: o[2])]
    session.connection().execute(_FREE, rows)
