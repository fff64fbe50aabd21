"""Taking work: a Temporal worker for this host's own queue, as long as the relay lets us."""

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.engine import EngineActivities
from activities.host import HostActivities
from fleet import ids
from worker_host.lease import LeaseKeeper
from worker_host.link import Link
from worker_host.pauses import Pauses
from worker_host.supervisor import Supervisor

log = logging.getLogger("holdfast.host")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class Work:
    def __init__(self, link: Link, host_id: str, supervisor: Supervisor, lease: LeaseKeeper) -> None:
        self._link = link
        self._queue = ids.host_queue(host_id)
        self._supervisor = supervisor
        self._lease = lease

    async def take(self, allowed: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. ``allowed`` returns once the control plane has accepted us, and is asked again whenever it
        turned us away. Raises what ``allowed`` raises."""
        pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            await allowed()
            try:
                client = await self._link.temporal()
            except (RuntimeError, RPCError) as error:
                log.warning("Temporal does not answer through %s yet: %s", self._link.address.url, error)
                await pauses.wait()
                continue
            try:
                log.info("taking work from %s", self._queue)
                await self._worker(client).run()
            except (RuntimeError, RPCError) as error:  # the relay refuses us: RuntimeError is what the SDK makes of it
                log.warning("no more work comes from %s: %s", self._queue, error)
            finally:
                self._link.forget(client)
            await pauses.wait()

    def _worker(self, client: Client) -> Worker:
        engines = EngineActivities(self._supervisor)
        host = HostActivities(self._lease)
        return Worker(
            client,
            task_queue=self._queue,
            activities=[engines.run_engine, engines.look_at_engine, host.hold_lease, host.answer_roll_call],
            max_concurrent_activity_task_polls=2,
            graceful_shutdown_timeout=timedelta(seconds=5),
        )
