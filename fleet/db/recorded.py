"""All that the database knows of the fleet at once, to make workflows anew from, and what goes when they are gone."""

from collections.abc import Iterable

from sqlmodel import Session, select

from fleet import ids
from fleet.db import claims, projections, revisions
from fleet.db.tables import ClaimRow, DeploymentRow, HostRow, InstanceRow
from fleet.resync import Rows

_EVERY_FENCE = 1 << 62


def everything(session: Session) -> Rows:
    return Rows(
        hosts=session.exec(select(HostRow)).all(),
        deployments=session.exec(select(DeploymentRow)).all(),
        instances=session.exec(select(InstanceRow)).all(),
        claims=session.exec(select(ClaimRow)).all(),
    )


def workflows(session: Session, *, instances: bool = True) -> set[str]:
    """Ids of those that should exist. A host that has joined but never registered has none yet."""
    found = {ids.host_workflow(i) for i in session.exec(select(HostRow.id).where(HostRow.projection > 0)).all()}
    found |= {ids.deployment_workflow(n) for n in session.exec(select(DeploymentRow.name)).all()}
    if instances:
        found |= {ids.instance_workflow(i) for i in session.exec(select(InstanceRow.id)).all()}
    return found


def give_up(session: Session, stale: Iterable[tuple[str, int]]) -> None:
    """(instance, fence): those claims and older ones. Their hosts stop the engines and confirm."""
    for instance_id, fence in stale:
        claims.give_up(session, instance_id, fence)


def clean_up_instance(session: Session, instance_id: str) -> None:
    """Nobody will: its engine may still run, until its host finds it unknown and stops it."""
    claims.give_up(session, instance_id, _EVERY_FENCE)
    projections.forget_instance(session, instance_id)


def forget_deployment(session: Session, name: str, run_id: str) -> None:
    projections.forget_deployment(session, name, run_id)
    revisions.forget(session, name, run_id)
