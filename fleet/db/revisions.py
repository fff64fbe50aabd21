"""What deployments were, to go back to."""

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from fleet.db.tables import RevisionRow, now
from fleet.deployment_status import outcome
from fleet.deployments import Deployment

KEPT = 20
"""Revisions of a deployment; the oldest go first."""

_LIVE = ("live", "rolling out")


def record(session: Session, d: Deployment, run_id: str) -> None:
    """Write the current revision and how the others ended. Called with every newer projection; twice is once."""
    session.execute(delete(RevisionRow).where(col(RevisionRow.deployment) == d.name, col(RevisionRow.run_id) != run_id))
    known = session.get(RevisionRow, (d.name, d.revision))
    if known is None:
        session.add(
            RevisionRow(
                deployment=d.name,
                revision=d.revision,
                run_id=run_id,
                spec=d.spec.model_dump(mode="json"),
                engine=d.engine,
                engine_version=d.engine_version,
                cause=d.cause,
                outcome=outcome(d),
                created_at=now(),
            )
        )
    elif known.outcome != outcome(d):
        known.outcome = outcome(d)
        session.add(known)
    session.flush()
    _close_others(session, d)
    if known is None:
        _prune(session, d)


def kept(session: Session, deployment: str) -> list[RevisionRow]:
    """Newest first."""
    query = select(RevisionRow).where(RevisionRow.deployment == deployment)
    return list(session.exec(query.order_by(col(RevisionRow.revision).desc())).all())


def forget(session: Session, deployment: str, run_id: str) -> None:
    session.execute(
        delete(RevisionRow).where(col(RevisionRow.deployment) == deployment, col(RevisionRow.run_id) == run_id)
    )


def _close_others(session: Session, d: Deployment) -> None:
    stable = d.rollout.stable.revision if d.rollout is not None and d.rollout.stable is not None else None
    others = col(RevisionRow.revision).not_in([r for r in (d.revision, stable) if r is not None])
    ours = (col(RevisionRow.deployment) == d.name, others, col(RevisionRow.outcome).in_(_LIVE))
    if d.given_up is not None:
        given_up = (*ours, col(RevisionRow.revision) == d.given_up.revision)
        session.execute(update(RevisionRow).where(*given_up).values(outcome=d.given_up.outcome))
    for was, becomes in (("live", "superseded"), ("rolling out", "abandoned")):
        session.execute(update(RevisionRow).where(*ours, col(RevisionRow.outcome) == was).values(outcome=becomes))


def _prune(session: Session, d: Deployment) -> None:
    used = {d.revision} | (
        {d.rollout.stable.revision} if d.rollout is not None and d.rollout.stable is not None else set()
    )
    old = session.exec(
        select(RevisionRow.revision)
        .where(RevisionRow.deployment == d.name, col(RevisionRow.revision).not_in(used))
        .order_by(col(RevisionRow.revision).desc())
        .offset(KEPT - len(used))
    ).all()
    if old:
        gone = delete(RevisionRow).where(col(RevisionRow.deployment) == d.name, col(RevisionRow.revision).in_(old))
        session.execute(gone)
