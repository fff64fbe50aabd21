"""This host's proof of life."""

import asyncio
import logging

from temporalio.client import Client

from fleet.hosts import HostLease
from worker_host.records import LeaseRecord, Records, pack, unpack
from worker_host.task_token import Beat, TaskToken

log = logging.getLogger("holdfast.host")

BEAT_S = 2.0
"""A quarter of the lease's timeout: three may be lost."""


class LeaseKeeper:
    """Heartbeats by the token of ``hold_lease``; a new process goes on with the old one's token."""

    def __init__(self, client: Client, records: Records) -> None:
        self._client = client
        self._records = records
        self._task: asyncio.Task[None] | None = None
        self.missing = asyncio.Event()
        """Set while we hold none: we must register again."""
        self.missing.set()

    async def take(self, lease: HostLease, token: bytes) -> None:
        record = LeaseRecord(lease=lease, token=pack(token))
        await asyncio.to_thread(self._records.save_lease, record)
        self._start(record)

    def resume(self) -> None:
        """Go on with the lease of the process before us, if there was one."""
        record = self._records.lease()
        if record is not None:
            self._start(record)

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _start(self, record: LeaseRecord) -> None:
        if self._task is not None:
            self._task.cancel()
        self.missing.clear()
        self._task = asyncio.create_task(self._beat(record), name="lease")

    async def _beat(self, record: LeaseRecord) -> None:
        token = TaskToken(self._client, unpack(record.token))
        while True:
            match await token.heartbeat():
                case Beat.STOP:
                    await token.report_cancellation()
                    break
                case Beat.VOID:
                    break
                case Beat.ALIVE:
                    await asyncio.sleep(BEAT_S)
                case Beat.UNREACHABLE:  # whether we are lost is for the other side to decide
                    await asyncio.sleep(BEAT_S / 4)
        log.warning("the lease is over")
        await asyncio.to_thread(self._records.save_lease, None)
        self.missing.set()
