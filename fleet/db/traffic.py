"""What gateways have counted: how engines answered, by launch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Insert, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from fleet.db.tables import DeploymentRow, TrafficRow, now
from fleet.policy.canary import Reading

KEEP = timedelta(days=7)
"""Rows that nobody has written for so long are deleted, unless a rollout may still be compared with them."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What one gateway has sent to one engine so far."""

    instance_id: str
    fence: int
    deployment: str
    launch: int
    requests: int
    errors: int
    latency: tuple[int, ...]
    """By bucket of ``fleet.policy.latency``."""


def write(session: Session, gateway: str, sums: Sequence[Sums]) -> None:
    """Insert or replace. Writing the same twice, or older sums after newer ones, changes nothing."""
    if not sums:
        return
    rows = [{"gateway": gateway, "updated_at": now(), **_columns(s)} for s in sums]
    session.execute(_upsert(session), rows)


def read(session: Session, deployment: str, launch: int) -> Reading:
    """Sums over all gateways and engines of a launch."""
    rows = session.exec(
        select(TrafficRow.requests, TrafficRow.errors, TrafficRow.latency).where(
            TrafficRow.deployment == deployment, TrafficRow.launch == launch
        )
    ).all()
    return Reading(
        requests=sum(requests for requests, _, _ in rows),
        errors=sum(errors for _, errors, _ in rows),
        latency=tuple(map(sum, zip(*(latency for _, _, latency in rows), strict=True))),
    )


def forget(session: Session, deployment: str, *, gateway: str | None = None) -> None:
    """Delete what was counted for a deployment that is gone: by everyone, or by one gateway."""
    rows = delete(TrafficRow).where(col(TrafficRow.deployment) == deployment)
    session.execute(rows if gateway is None else rows.where(col(TrafficRow.gateway) == gateway))


def prune(session: Session, at: datetime) -> None:
    """Delete what was last written more than ``KEEP`` before ``at``."""
    deployments = session.exec(select(DeploymentRow.name, DeploymentRow.rollout, DeploymentRow.traffic))
    compared = [name for name, rollout, traffic in deployments if rollout or traffic]
    old = delete(TrafficRow).where(col(TrafficRow.updated_at) < at - KEEP)
    session.execute(old.where(col(TrafficRow.deployment).not_in(compared)))


def _columns(sums: Sums) -> dict[str, Any]:
    return asdict(sums) | {"latency": list(sums.latency)}


def _upsert(session: Session) -> Insert:
    dialect = session.get_bind().dialect.name
    insert = sqlite.insert(TrafficRow) if dialect == "sqlite" else postgresql.insert(TrafficRow)
    new = insert.excluded
    return insert.on_conflict_do_update(
        index_elements=["gateway", "instance_id", "fence"],
        set_={name: new[name] for name in ("requests", "errors", "latency", "updated_at")},
        where=(new.requests >= TrafficRow.requests) & (new.errors >= TrafficRow.errors),
    )
