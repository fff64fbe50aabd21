"""What changes from one look at the fleet to the next: a few queries, whatever the number of hosts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlmodel import Session, col

from fleet.db.tables import ClaimRow, DeploymentRow, GpuRow, HostRow, InstanceRow, PortClaimRow
from fleet.states import HostState, Maintenance


class HostLine(NamedTuple):
    id: str
    generation: int
    fingerprint: str
    ram_allocatable: int
    ram_used: int
    port_first: int
    port_last: int
    fabric_address: str
    address: str
    http_port: int
    tunnel_only: bool
    tunnel_url: str


class GpuLine(NamedTuple):
    uuid: str
    generation: int
    allocatable: int
    used: int
    foreign_bytes: int


class ClaimLine(NamedTuple):
    instance_id: str
    fence: int
    gpu_uuid: str
    memory_bytes: int
    state: str
    priority: int
    hosts: int
    instance_state: str | None
    instance_fence: int | None
    instance_since: Any
    """As the driver gives it."""


@dataclass(slots=True)
class HostNumbers:
    """Of one host; equal ones make equal views."""

    host: HostLine
    gpus: list[tuple[Any, ...]] = field(default_factory=list)
    """As ``GpuLine``, sorted; healthy ones that take claims."""
    claims: list[tuple[Any, ...]] = field(default_factory=list)
    """As ``ClaimLine``, sorted."""
    cordoned: list[tuple[str, str]] = field(default_factory=list)
    """(UUID, reason)"""
    ports: int = 0
    """Claimed."""
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of deployments with replicas here."""


def read_numbers(session: Session, only: Collection[str] | None = None) -> dict[str, HostNumbers]:
    """Of all hosts that take new work, or of those of ``only`` that do.

    Plain tuples as the driver gives them: at 8,000 GPUs, making objects of rows costs more than reading them.
    """
    found = {line[0]: HostNumbers(HostLine(*line)) for line in _fetch(session, _HOSTS, only, HostRow.id)}
    for host_id, *gpu in _fetch(session, _GPUS, only, GpuRow.host_id):
        if host_id in found:
            found[host_id].gpus.append(tuple(gpu))
    for host_id, uuid, reason in _fetch(session, _CORDONED, only, GpuRow.host_id):
        if host_id in found:
            found[host_id].cordoned.append((uuid, reason))
    for host_id, count in _fetch(session, _PORTS, only, PortClaimRow.host_id):
        if host_id in found:
            found[host_id].ports = count
    _add_claims(session, found, only)
    for numbers in found.values():
        # The database gives rows in the order in which they were last written.
        numbers.gpus.sort()
        numbers.cordoned.sort()
        if len(numbers.claims) > 1:
            numbers.claims.sort(key=_CLAIM_ORDER)
    return found


def deployment_of(instance_id: str) -> str:
    return instance_id.rpartition("/")[0]


def _add_claims(session: Session, found: dict[str, HostNumbers], only: Collection[str] | None) -> None:
    labels = dict(session.connection().execute(_LABELS).tuples().all())
    for host_id, *claim in _fetch(session, _CLAIMS, only, ClaimRow.host_id):
        numbers = found.get(host_id)
        if numbers is not None:
            numbers.claims.append(tuple(claim))
            deployment = deployment_of(claim[0])
            if deployment in labels:
                numbers.labels[deployment] = labels[deployment]


def _fetch(session: Session, query: Any, only: Collection[str] | None, host_id: Any) -> Sequence[Any]:
    if only is not None:
        query = query.where(host_id.in_(sorted(only)))
    result = session.connection().execute(query)
    rows: Sequence[Any] = result.cursor.fetchall()
    result.close()
    return rows


_CLAIM_ORDER = itemgetter(0, 1, 2)

_HOSTS = select(*(getattr(HostRow, name) for name in HostLine._fields)).where(
    col(HostRow.state) == HostState.READY, col(HostRow.maintenance) == Maintenance.NONE
)
_GPUS = select(*map(col, (GpuRow.host_id, *(getattr(GpuRow, name) for name in GpuLine._fields)))).where(
    col(GpuRow.healthy), ~col(GpuRow.cordoned), col(GpuRow.memory_bytes) > 0
)
_CORDONED = select(col(GpuRow.host_id), col(GpuRow.uuid), col(GpuRow.cordon_reason)).where(col(GpuRow.cordoned))
_PORTS = select(col(PortClaimRow.host_id), func.count()).group_by(col(PortClaimRow.host_id))
_CLAIMS = select(
    col(ClaimRow.host_id),
    *(getattr(ClaimRow, name) for name in ClaimLine._fields[:7]),
    col(InstanceRow.state),
    col(InstanceRow.fence),
    col(InstanceRow.created_at),
).join_from(ClaimRow, InstanceRow, col(InstanceRow.id) == col(ClaimRow.instance_id), isouter=True)
_LABELS = select(col(DeploymentRow.name), col(DeploymentRow.labels))
