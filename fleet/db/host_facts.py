"""What placement knows of a host besides numbers, read from its inventory once for each state of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session, col, select

from fleet.db.tables import HostRow
from fleet.inventory import EngineBuild, Gpu, Inventory, LinkType
from fleet.placement.view import GpuView

DISTANCE = {LinkType.NVLINK: 5, LinkType.PIX: 10, LinkType.PHB: 30, LinkType.NODE: 40, LinkType.SYS: 50}
Key = tuple[int, str]
"""(generation, fingerprint): other facts have another one."""


@dataclass(frozen=True)
class HostFacts:
    key: Key
    name: str
    labels: dict[str, str]
    reserved_for: dict[str, str]
    engines: tuple[EngineBuild, ...]
    runtimes: tuple[str, ...]
    gpus: dict[str, GpuView]
    """By UUID, with nothing free yet."""


@dataclass
class KnownHosts:
    """Facts of hosts, kept from one look to the next. For one thread at a time."""

    facts: dict[str, HostFacts] = field(default_factory=dict)

    def learn(self, session: Session, wanted: dict[str, Key]) -> None:
        """Read what is not known, or not any more."""
        new = [host_id for host_id, key in wanted.items() if not self._knows(host_id, key)]
        if new:
            self.facts.update((facts_of.id, _facts(facts_of)) for facts_of in _rows(session, new))

    def forget(self, host_ids: Iterable[str]) -> None:
        for host_id in host_ids:
            self.facts.pop(host_id, None)

    def _knows(self, host_id: str, key: Key) -> bool:
        known = self.facts.get(host_id)
        return known is not None and known.key == key


_ALL_RATHER_THAN = 100
"""So many names in a query are slower than all rows, and databases have their limits."""


def _rows(session: Session, host_ids: list[str]) -> Iterable[Any]:
    wanted = (HostRow.id, HostRow.generation, HostRow.fingerprint, HostRow.name)
    query = select(*wanted, HostRow.labels, HostRow.reserved_for, HostRow.inventory)  # type: ignore[call-overload]
    if len(host_ids) <= _ALL_RATHER_THAN:
        query = query.where(col(HostRow.id).in_(host_ids))
    named = set(host_ids)
    return (row for row in session.execute(query) if row.id in named)


def _facts(row: Any) -> HostFacts:
    inventory = Inventory.model_validate(row.inventory) if row.inventory else None
    return HostFacts(
        key=(row.generation, row.fingerprint),
        name=row.name,
        labels=row.labels,
        reserved_for=row.reserved_for,
        engines=inventory.engines if inventory else (),
        runtimes=inventory.runtimes if inventory else (),
        gpus={gpu.uuid: _gpu(gpu) for gpu in inventory.gpus} if inventory else {},
    )


def _gpu(gpu: Gpu) -> GpuView:
    return GpuView(
        uuid=gpu.uuid,
        free_bytes=0,
        total_bytes=gpu.memory_bytes,
        kind=gpu.kind,
        part=bool(gpu.parent_uuid),
        name=gpu.name,
        compute_capability=gpu.compute_capability,
        unified=gpu.unified,
        numa_node=gpu.numa_node,
        index=gpu.index,
        links=tuple((link.peer, DISTANCE[link.type]) for link in gpu.links),
    )
