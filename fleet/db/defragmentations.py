"""What defragmentations say of themselves: the running or last one of each deployment."""

from sqlmodel import Session, col, select

from fleet.db.tables import DefragmentationRow, now
from fleet.defragmentations import Defragmentation


def record(session: Session, d: Defragmentation, run_id: str) -> bool:
    """Insert or replace. False when a newer projection, or a later defragmentation, is there already."""
    known = session.get(DefragmentationRow, d.deployment, with_for_update=True)
    if known is not None and known.run_id == run_id and known.projection >= d.projection:
        return False
    if known is not None and known.run_id != run_id and known.started_at > d.started_at:
        return False
    session.merge(
        DefragmentationRow(
            deployment=d.deployment,
            run_id=run_id,
            running=not d.ended,
            message=d.message,
            durable=d.model_dump(mode="json"),
            projection=d.projection,
            started_at=d.started_at,
            updated_at=now(),
        )
    )
    return True


def all_of_them(session: Session) -> list[DefragmentationRow]:
    """Running ones first, then by deployment."""
    query = select(DefragmentationRow).order_by(col(DefragmentationRow.running).desc(), DefragmentationRow.deployment)
    return list(session.exec(query).all())
