"""Ports of hosts, claimed with the memory that their engines get."""

import random
from collections.abc import Collection, Sequence

from sqlalchemy import delete, text
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


def pick_ports(session: Session, host_id: str, count: int, seed: int | str) -> tuple[int, ...]:
    """``count`` ports of the host's range that nobody claims, at random, for a claim in the same transaction.

    What else listens on them is not known here: an engine that finds its port taken fails, and the next attempt,
    with another ``seed``, gets another one. Empty for a host that has told no range: it picks by itself.
    Raises ClaimLost when there are not so many.
    """
    query = select(HostRow.port_first, HostRow.port_last).where(HostRow.id == host_id)
    first, last = session.exec(query).first() or (0, 0)
    if not last:
        return ()
    taken = set(session.exec(select(PortClaimRow.port).where(PortClaimRow.host_id == host_id)).all())
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
    for instance_id, fence, host_id in sorted(owners, key=lambda o: o[2]):
        session.execute(
            delete(PortClaimRow).where(
                col(PortClaimRow.host_id) == host_id,
                col(PortClaimRow.instance_id) == instance_id,
                col(PortClaimRow.fence) == fence,
            )
        )
