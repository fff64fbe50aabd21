"""What a host's status says of its GPUs, brought into the ledger."""

from sqlmodel import Session, col, select

from fleet.db.host_settings import vram_reserved
from fleet.db.tables import GpuRow, HostRow
from fleet.inventory import Inventory
from fleet.placement.room import gpu_room
from fleet.policy.foreign import settled
from fleet.telemetry import GpuStatus, HostStatus

NOT_REPORTED = "its host does not report it any more"


def apply_status(session: Session, host_id: str, status: HostStatus) -> bool:
    """From now on placement knows which cards are sick, and what others use of each. True: something has changed.

    Claims that are there stay, even if they do not fit any more: then nothing new does. A cordon stays whatever is
    reported. The same status again changes nothing, nor does one of a host that is not known (any more).
    """
    row = session.get(HostRow, host_id, populate_existing=True)
    if row is None or not row.inventory:
        return False
    reserved = vram_reserved(Inventory.model_validate(row.inventory), row.reserve)
    said = {gpu.uuid: gpu for gpu in status.gpus}
    # Cards that are away keep their old generation, and are news for the next registration.
    current = (GpuRow.host_id == host_id, GpuRow.generation == row.generation)
    locked = select(GpuRow).where(*current).order_by(col(GpuRow.uuid)).with_for_update()
    changes = [
        _apply(gpu, said.get(gpu.uuid), reserved)
        for gpu in session.exec(locked.execution_options(populate_existing=True)).all()
        if not gpu.uuid.endswith(f"@{host_id}")  # another host has this card
    ]
    session.flush()
    return any(changes)


def _apply(gpu: GpuRow, said: GpuStatus | None, reserved: int) -> bool:
    if said is None:
        healthy, reason, foreign = False, NOT_REPORTED, gpu.foreign_bytes
    else:
        known = said.memory_used_bytes is not None
        seen = said.foreign_bytes if known else gpu.foreign_bytes
        healthy, reason, foreign = said.healthy, said.reason, settled(gpu.foreign_bytes, seen, gpu.memory_bytes)
    room = gpu_room(gpu.memory_bytes, foreign, reserved)
    before = (gpu.healthy, gpu.reason, gpu.foreign_bytes, gpu.allocatable)
    after = (healthy, reason, foreign, room)
    if before == after:
        return False
    gpu.healthy, gpu.reason, gpu.foreign_bytes, gpu.allocatable = after
    return True
