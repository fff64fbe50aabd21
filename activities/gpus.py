"""GPUs that engines blame."""

import logging
from datetime import UTC, datetime

from sqlmodel import Session
from temporalio import activity

from activities.contracts import GpuContract, GpuFault
from fleet.db import gpus
from fleet.db.session import Database

log = logging.getLogger("holdfast.controller")


class GpuActivities(GpuContract):
    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn(name="note_gpu_fault")
    async def note_gpu_fault(self, fault: GpuFault) -> None:
        now = datetime.now(UTC)

        def note(session: Session) -> list[str]:
            return gpus.note_fault(
                session,
                fault.gpu_uuids,
                fault.instance_id,
                fault.fence,
                fault.reason,
                certain=fault.certain,
                at=now,
            )

        for uuid in await self._database.awrite(note):
            log.warning("GPU %s is cordoned: %s", uuid, fault.reason)
