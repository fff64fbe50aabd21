"""What changes from one look at the fleet to the next: a few queries, whatever the number of hosts."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import String, cast, func, or_, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
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
    healthy: bool
    cordoned: bool
    cordon_reason: str


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
    instance_since: str | None
    """ISO 8601, UTC."""


@dataclass(frozen=True, slots=True)
class HostNumbers:
    """Of one host; equal ones make equal views.

    GPUs and claims stay the JSON that the database made of them until they are found to be different from before: at
    8,000 GPUs, fetching rows of them costs more than all the rest.
    """

    host: HostLine
    gpus_json: str = "[]"
    claims_json: str = "[]"
    ports: int = 0
    """Claimed."""

    @property
    def gpus(self) -> list[GpuLine]:
        """Those that take claims, and those that are cordoned."""
        return [GpuLine(*line) for line in json.loads(self.gpus_json)]

    @property
    def claims(self) -> list[ClaimLine]:
        """By instance, fence and GPU."""
        return [ClaimLine(*line) for line in sorted(json.loads(self.claims_json), key=lambda line: line[:3])]


@dataclass(frozen=True)
class Numbers:
    hosts: dict[str, HostNumbers]
    labels: dict[str, dict[str, str]]
    """Of all deployments."""


def read_numbers(session: Session, only: Collection[str] | None = None) -> Numbers:
    """Of all hosts that take new work, or of those of ``only`` that do."""
    hosts = [HostLine(*line) for line in _fetch(session, _HOSTS, only, HostRow.id)]
    gpus = dict(_fetch(session, _as_json(session, _GPUS, key=1), only, GpuRow.host_id))
    claims = dict(_fetch(session, _as_json(session, _CLAIMS, key=3), only, ClaimRow.host_id))
    ports = dict(_fetch(session, _PORTS, only, PortClaimRow.host_id))
    found = {h.id: HostNumbers(h, gpus.get(h.id, "[]"), claims.get(h.id, "[]"), ports.get(h.id, 0)) for h in hosts}
    return Numbers(found, dict(session.connection().execute(_LABELS).all()))


def deployment_of(instance_id: str) -> str:
    return instance_id.rpartition("/")[0]


def _as_json(session: Session, query: Any, key: int) -> Any:
    """``query`` selects a host and columns, of which the first ``key`` tell lines apart: of each host one text, a JSON
    array of arrays. In PostgreSQL every write may turn the order of all lines round, so it is told which to keep."""
    host_id, *columns = query.selected_columns
    if session.get_bind().dialect.name == "postgresql":
        lines: Any = cast(func.json_agg(aggregate_order_by(func.json_build_array(*columns), *columns[:key])), String)
    else:
        lines = func.json_group_array(func.json_array(*columns))
    return query.with_only_columns(host_id, lines).group_by(host_id)


def _fetch(session: Session, query: Any, only: Collection[str] | None, host_id: Any) -> Sequence[Any]:
    """Plain tuples, as the driver makes them."""
    if only is not None:
        query = query.where(host_id.in_(sorted(only)))
    result = session.connection().execute(query)
    rows: Sequence[Any] = result.cursor.fetchall()
    result.close()
    return rows


_HOSTS = select(*(getattr(HostRow, name) for name in HostLine._fields)).where(
    col(HostRow.state) == HostState.READY, col(HostRow.maintenance) == Maintenance.NONE
)
_GPUS = select(col(GpuRow.host_id), *(getattr(GpuRow, name) for name in GpuLine._fields)).where(
    or_(col(GpuRow.healthy) & (col(GpuRow.memory_bytes) > 0), col(GpuRow.cordoned))
)
_PORTS = select(col(PortClaimRow.host_id), func.count()).group_by(col(PortClaimRow.host_id))
_CLAIMS = select(
    col(ClaimRow.host_id),
    *(getattr(ClaimRow, name) for name in ClaimLine._fields[:7]),
    col(InstanceRow.state),
    col(InstanceRow.fence),
    col(InstanceRow.created_at),
).join_from(ClaimRow, InstanceRow, col(InstanceRow.id) == col(ClaimRow.instance_id), isouter=True)
_LABELS = select(col(DeploymentRow.name), col(DeploymentRow.labels))
