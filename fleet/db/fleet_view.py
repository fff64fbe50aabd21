"""The fleet as placement sees it, from what the ledger says now."""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlmodel import Session

from fleet.db.fleet_numbers import ClaimLine, GpuLine, HostNumbers, deployment_of, read_numbers
from fleet.db.host_facts import HostFacts, KnownHosts
from fleet.host_client import HostAddress
from fleet.placement.view import GpuView, HostView, Occupant
from fleet.states import ClaimState, InstanceState

_LEAVING = (InstanceState.DRAINING, InstanceState.STOPPED)


@dataclass(frozen=True)
class SeenHost:
    view: HostView
    """Of no deployment in particular, and without the model file."""
    address: HostAddress
    replicas: dict[str, int]
    """By deployment, without those whose claims were given up."""

    def view_for(self, deployment: str) -> HostView:
        count = self.replicas.get(deployment, 0)
        return replace(self.view, replicas_of_deployment=count) if count else self.view


def read_fleet(session: Session, deployment: str = "", known: KnownHosts | None = None) -> list[HostView]:
    """All hosts that take new work, as they are now, by id. ``deployment``: whose replicas on each host are counted.

    ``known``: what earlier looks learned, so that no inventory is read twice.
    """
    known = known if known is not None else KnownHosts()
    numbers = read_numbers(session)
    learn(session, numbers, known)
    seen = (see(known.facts[host_id], numbers[host_id]) for host_id in sorted(numbers) if host_id in known.facts)
    return [host.view_for(deployment) for host in seen]


def learn(session: Session, numbers: dict[str, HostNumbers], known: KnownHosts) -> None:
    known.learn(session, {host_id: (n.host.generation, n.host.fingerprint) for host_id, n in numbers.items()})


def see(facts: HostFacts, numbers: HostNumbers) -> SeenHost:
    host = numbers.host
    claims = [ClaimLine(*line) for line in numbers.claims]
    view = HostView(
        host_id=host.id,
        name=facts.name,
        generation=host.generation,
        labels=facts.labels,
        ram_free_bytes=host.ram_allocatable - host.ram_used,
        ram_total_bytes=host.ram_allocatable,
        gpus=_gpus(facts, numbers),
        engines=facts.engines,
        replicas_of_deployment=0,
        model=None,
        cordoned_gpus=tuple(numbers.cordoned),
        runtimes=facts.runtimes,
        reserved_for=facts.reserved_for,
        fabric_address=host.fabric_address,
        occupants=_occupants(claims),
        deployment_labels=dict(numbers.labels),
        **_ports_free(numbers),
    )
    address = HostAddress(host.id, host.address, host.http_port, bool(host.tunnel_only), host.tunnel_url)
    return SeenHost(view, address, _replicas(claims))


def _gpus(facts: HostFacts, numbers: HostNumbers) -> tuple[GpuView, ...]:
    found = []
    for line in numbers.gpus:
        gpu = GpuLine(*line)
        card = facts.gpus.get(gpu.uuid)
        if card is not None and gpu.generation == numbers.host.generation:
            found.append(replace(card, free_bytes=gpu.allocatable - gpu.used, foreign_bytes=gpu.foreign_bytes))
    return tuple(sorted(found, key=lambda g: (g.index, g.uuid)))


def _ports_free(numbers: HostNumbers) -> dict[str, Any]:
    """Nothing of a host that has told no range: its engines find ports by themselves."""
    first, last = numbers.host.port_first, numbers.host.port_last
    return {"ports_free": last - first + 1 - numbers.ports} if last else {}


def _occupants(claims: list[ClaimLine]) -> tuple[Occupant, ...]:
    """One for each (instance, fence), in their order."""
    placements: dict[tuple[str, int], list[ClaimLine]] = {}
    for claim in claims:
        placements.setdefault((claim.instance_id, claim.fence), []).append(claim)
    return tuple(_occupant(lines) for lines in placements.values())


def _occupant(lines: list[ClaimLine]) -> Occupant:
    first = lines[0]
    current = first.instance_fence == first.fence
    return Occupant(
        instance_id=first.instance_id,
        deployment=deployment_of(first.instance_id),
        fence=first.fence,
        gpu_bytes=tuple((line.gpu_uuid, line.memory_bytes) for line in lines if line.gpu_uuid),
        ram_bytes=sum(line.memory_bytes for line in lines if not line.gpu_uuid),
        priority=first.priority,
        ready=current and first.instance_state == InstanceState.READY and first.state != ClaimState.RELEASING,
        leaving=first.state == ClaimState.RELEASING or (current and first.instance_state in _LEAVING),
        hosts=first.hosts,
        since=_utc(first.instance_since),
    )


def _utc(value: datetime | str | None) -> datetime | None:
    """SQLite has it as text, without a time zone."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def _replicas(claims: list[ClaimLine]) -> dict[str, int]:
    here = {claim.instance_id for claim in claims if claim.state != ClaimState.RELEASING}
    return dict(Counter(map(deployment_of, here)))
