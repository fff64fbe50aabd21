"""What deployments stand for, as their projections say now: a change of a priority holds at once."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlmodel import Session, col, select

from fleet.db.tables import DeploymentRow, EvictionRow, InstanceRow
from fleet.policy.priority import Standing, rank
from fleet.specs import PrioritySpec
from fleet.states import InstanceState


def priority_of(session: Session, deployment: str) -> PrioritySpec:
    """The usual one while the deployment's first projection is on its way."""
    spec = session.exec(select(DeploymentRow.spec).where(DeploymentRow.name == deployment)).first()
    return _priority(spec or {})


def priorities(session: Session) -> dict[str, int]:
    """Ranks, by deployment."""
    rows = session.exec(select(DeploymentRow.name, DeploymentRow.spec)).all()
    return {name: rank(_priority(spec).level) for name, spec in rows}


def standings(session: Session, now: datetime) -> dict[str, Standing]:
    """Of all deployments. Replicas that were told to go do not count as ready."""
    told = select(EvictionRow.instance_id).where(EvictionRow.expires_at > now, col(EvictionRow.by).is_not(None))
    serving = select(InstanceRow.deployment).where(InstanceRow.state == InstanceState.READY)
    ready = Counter(session.exec(serving.where(col(InstanceRow.id).not_in(told))).all())
    rows = session.exec(select(DeploymentRow.name, DeploymentRow.spec, DeploymentRow.rollout)).all()
    return {
        name: Standing.of(_priority(spec), ready=ready[name], rolling_out=rollout is not None)
        for name, spec, rollout in rows
    }


def _priority(spec: Mapping[str, Any]) -> PrioritySpec:
    return PrioritySpec.model_validate(spec.get("priority") or {})
