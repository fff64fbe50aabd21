"""What the control plane hears of one engine."""

import asyncio
import logging

from fleet.instances import EngineReport
from worker_host.control_plane import ControlPlane, Gone

log = logging.getLogger("holdfast.host")


class Reports:
    """Sent one after the other, for as long as it takes; a newer one replaces those that still wait."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._waiting: asyncio.Queue[EngineReport] = asyncio.Queue()

    def send(self, report: EngineReport) -> None:
        self._waiting.put_nowait(report)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            report = await self._waiting.get()
            while not self._waiting.empty():  # only the newest level matters
                report = self._waiting.get_nowait()
            try:
                await self._control_plane.report(report)
            except Gone as gone:
                log.info("nobody asks for %s any more: %s", report.instance_id, gone)
