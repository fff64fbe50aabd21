"""GPUs that are blamed by engines, and those that take no new claims."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete
from sqlmodel import Session, col, select

from fleet.db.tables import GpuFaultRow, GpuRow

BELIEVED_WITHIN = timedelta(hours=1)
"""Two faults within this, of different engines or different starts of one, are no accident."""
REMEMBERED = timedelta(days=30)
_LONGEST_REASON = 500


def note_fault(
    session: Session,
    gpu_uuids: Sequence[str],
    instance_id: str,
    fence: int,
    reason: str,
    *,
    certain: bool,
    at: datetime,
) -> list[str]:
    """An engine on all these GPUs blames one of them. Returns those that are cordoned by that.

    Noting the same (GPU, instance, fence) again changes nothing. GPUs that are not known any more are left out.
    """
    reason = reason.replace("\x00", "")[:_LONGEST_REASON]
    session.execute(delete(GpuFaultRow).where(col(GpuFaultRow.at) < at - REMEMBERED))
    named = {uuid for uuid in gpu_uuids if len(gpu_uuids) == 1 or uuid in reason}
    cordoned = []
    for uuid in sorted(set(gpu_uuids)):
        gpu = _locked(session, uuid)  # so that of two faults at once the second sees the first
        if gpu is None or session.get(GpuFaultRow, (uuid, instance_id, fence)) is not None:
            continue
        session.add(GpuFaultRow(gpu_uuid=uuid, instance_id=instance_id, fence=fence, reason=reason, at=at))
        session.flush()
        blamed = (certain and uuid in named) or _recent(session, uuid, at) > 1
        if blamed and not gpu.cordoned:
            _close(session, gpu, reason)
            cordoned.append(uuid)
    return cordoned


def cordon(session: Session, uuid: str, reason: str) -> bool:
    """From now on it takes no new claims; what runs there stays. False: there is no such GPU."""
    gpu = _locked(session, uuid)
    if gpu is not None:
        _close(session, gpu, reason)
    return gpu is not None


def uncordon(session: Session, uuid: str) -> bool:
    """It takes claims again and its faults are forgotten. False: there is no such GPU."""
    gpu = _locked(session, uuid)
    if gpu is not None:
        gpu.cordoned, gpu.cordon_reason = False, ""
        session.add(gpu)
        session.execute(delete(GpuFaultRow).where(col(GpuFaultRow.gpu_uuid) == uuid))
    return gpu is not None


def faults(session: Session, uuid: str | None = None) -> dict[str, list[GpuFaultRow]]:
    """Of one GPU or of all, for each that has any; latest first."""
    found: dict[str, list[GpuFaultRow]] = {}
    query = select(GpuFaultRow).order_by(col(GpuFaultRow.at).desc())
    if uuid is not None:
        query = query.where(GpuFaultRow.gpu_uuid == uuid)
    for row in session.exec(query).all():
        found.setdefault(row.gpu_uuid, []).append(row)
    return found


def _recent(session: Session, uuid: str, at: datetime) -> int:
    query = select(GpuFaultRow.fence).where(
        col(GpuFaultRow.gpu_uuid) == uuid, col(GpuFaultRow.at) > at - BELIEVED_WITHIN
    )
    return len(session.exec(query).all())


def _locked(session: Session, uuid: str) -> GpuRow | None:
    return session.get(GpuRow, uuid, with_for_update=True, populate_existing=True)


def _close(session: Session, gpu: GpuRow, reason: str) -> None:
    gpu.cordoned, gpu.cordon_reason = True, reason
    session.add(gpu)
