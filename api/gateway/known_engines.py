"""Which engine runs a revision of a deployment, with which LoRA adapters."""

from dataclasses import dataclass

from sqlalchemy import exists
from sqlalchemy import select as sa_select
from sqlmodel import Session, col

from api.gateway.known_routes import Served, adapters_of
from fleet.db.tables import DeploymentRow, InstanceRow, RevisionRow

_CURRENT = 0
"""No revision has this number."""


@dataclass(frozen=True, slots=True)
class Engine:
    kind: str = ""
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Engines:
    served: tuple[Served, ...]
    """All deployments."""
    by_revision: dict[tuple[str, int], Engine]

    def of(self, deployment: str, revision: int) -> Engine:
        """That of the current revision where nothing else is known."""
        known = self.by_revision
        return known.get((deployment, revision)) or known.get((deployment, _CURRENT)) or Engine()


def load_engines(session: Session) -> Engines:
    """Of current revisions, and of older ones that instances still run."""
    query = sa_select(
        col(DeploymentRow.name),
        col(DeploymentRow.created_at),
        col(DeploymentRow.revision),
        col(DeploymentRow.engine),
        col(DeploymentRow.spec)["lora"],
    )
    served, by_revision = [], _older(session)
    for name, created_at, revision, kind, lora in session.execute(query).all():
        engine = Engine(kind, adapters_of(lora))
        by_revision[name, revision] = by_revision[name, _CURRENT] = engine
        served.append(Served(name, int(created_at.timestamp()), engine.adapters))
    return Engines(tuple(served), by_revision)


def _older(session: Session) -> dict[tuple[str, int], Engine]:
    deployment, revision = col(RevisionRow.deployment), col(RevisionRow.revision)
    runs = exists().where(col(InstanceRow.deployment) == deployment, col(InstanceRow.revision) == revision)
    query = (
        sa_select(deployment, revision, col(RevisionRow.engine), col(RevisionRow.spec)["lora"])
        .join(DeploymentRow, col(DeploymentRow.name) == deployment)
        .where(revision != col(DeploymentRow.revision), runs)
    )
    return {(name, number): Engine(kind, adapters_of(lora)) for name, number, kind, lora in session.execute(query)}
