"""The fleet as placement sees it, from what the ledger says now."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlmodel import Session

from fleet.db.fleet_numbers import ClaimLine, GpuLine, HostNumbers, Numbers, deployment_of, read_numbers
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
    facts = known.facts
    seen = (see(facts[h], numbers.hosts[h], numbers.labels) for h in sorted(numbers.hosts) if h in facts)
    return [host.view_for(deployment) for host in seen]


def learn(session: Session, numbers: Numbers, known: KnownHosts) -> None:
    hosts = ((host_id, numbers.hosts[host_id].host) for host_id in numbers.hosts)
    known.learn(session, {host_id: (host.generation, host.fingerprint) for host_id, host in hosts})


def see(facts: HostFacts, numbers: HostNumbers, labels: Mapping[str, dict[str, str]]) -> SeenHost:
    """``labels``: of all deployments."""
    host, gpus, claims = numbers.host, numbers.gpus, numbers.claims
    occupants = _occupants(claims)
    view = HostView(
        host_id=host.id,
        name=facts.name,
        generation=host.generation,
        labels=facts.labels,
        ram_free_bytes=host.ram_allocatable - host.ram_used,
        ram_total_bytes=host.ram_allocatable,
        gpus=_gpus(facts, gpus),
        engines=facts.engines,
        replicas_of_deployment=0,
        model=None,
        cordoned_gpus=tuple((g.uuid, g.cordon_reason) for g in gpus if g.cordoned),
        runtimes=facts.runtimes,
        reserved_for=facts.reserved_for,
        fabric_address=host.fabric_address,
        occupants=occupants,
        deployment_labels=labels_here(occupants, labels),
        **_ports_free(numbers),
    )
    address = HostAddress(host.id, host.address, host.http_port, bool(host.tunnel_only), host.tunnel_url)
    return SeenHost(view, address, _replicas(claims))


def labels_here(occupants: Iterable[Occupant], labels: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    return {o.deployment: labels[o.deployment] for o in occupants if o.deployment in labels}


def _gpus(facts: HostFacts, lines: list[GpuLine]) -> tuple[GpuView, ...]:
    """Not those that the present inventory does not have: they are away."""
    found = []
    for gpu in lines:
        card = facts.gpus.get(gpu.uuid)
        if card is not None and gpu.healthy and not gpu.cordoned and gpu.generation == facts.key[0]:
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


def _utc(value: str | None) -> datetime | None:
    """SQLite forgets time zones."""
    if value is None:
        return None
    read = datetime.fromisoformat(value)
    return read if read.tzinfo is not None else read.replace(tzinfo=UTC)


def _replicas(claims: list[ClaimLine]) -> dict[str, int]:
    here = {claim.instance_id for claim in claims if claim.state != ClaimState.RELEASING}
    return dict(Counter(map(deployment_of, here)))
