"""Taking work: a Temporal worker for this host's own queue, as long as the relay lets us."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio.client import Client
from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig
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
_LOOK_EVERY_S = 1.0
_MOST_METRICS = 10_000
"""Between two looks."""
_POLLS_FAILED = "temporal_long_request_failure"
_TRIED_AGAIN = {
    "ABORTED",
    "CANCELLED",
    "DATA_LOSS",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "UNKNOWN",
}
"""What the SDK itself does not take for the last word."""


class _Polls:
    """Whether the SDK still asks for work: turned away, it gives up without a word, and only its metrics tell."""

    def __init__(self) -> None:
        self._metrics = MetricBuffer(_MOST_METRICS)
        self.runtime = Runtime(telemetry=TelemetryConfig(metrics=self._metrics))

    def turned_away(self) -> str:
        """With what status since the last look; empty: not at all."""
        refused = ""
        for update in self._metrics.retrieve_updates():
            status = str(update.attributes.get("status_code", ""))
            if update.metric.name == _POLLS_FAILED and status not in _TRIED_AGAIN:
                refused = status
        return refused


class Work:
    def __init__(self, link: Link, host_id: str, supervisor: Supervisor, lease: LeaseKeeper) -> None:
        self._link = link
        self._queue = ids.host_queue(host_id)
        self._supervisor = supervisor
        self._lease = lease
        self._polls = _Polls()

    async def take(self, allowed: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. ``allowed`` returns once the control plane has accepted us, and is asked again whenever it
        turned us away. Raises what ``allowed`` raises."""
        pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            await allowed()
            try:
                client = await self._link.temporal(runtime=self._polls.runtime)
            except (RuntimeError, RPCError) as error:
                log.warning("Temporal does not answer through %s yet: %s", self._link.address.url, error)
                await pauses.wait()
                continue
            try:
                log.info("taking work from %s", self._queue)
                await self._until_turned_away(self._worker(client))
            except (RuntimeError, RPCError) as error:  # RuntimeError is what the SDK makes of what it does not know
                log.warning("no more work comes from %s: %s", self._queue, error)
            finally:
                self._link.forget(client)
            await pauses.wait()

    async def _until_turned_away(self, worker: Worker) -> None:
        self._polls.turned_away()  # that was the worker before
        running = asyncio.create_task(worker.run())
        try:
            while not (done := await asyncio.wait({running}, timeout=_LOOK_EVERY_S))[0]:
                if refused := self._polls.turned_away():
                    log.warning("the relay lets nobody ask for work from %s: %s", self._queue, refused)
                    return
            done[0].pop().result()
        finally:
            running.cancel()  # which shuts it down
            await asyncio.wait({running})

    def _worker(self, client: Client) -> Worker:
        engines = EngineActivities(self._supervisor)
        host = HostActivities(self._lease)
        return Worker(
            client,
            task_queue=self._queue,
            activities=[
                engines.run_engine,
                engines.look_at_engine,
                engines.hurry_engine,
                engines.accept_engine,
                host.hold_lease,
                host.answer_roll_call,
            ],
            max_concurrent_activity_task_polls=2,
            graceful_shutdown_timeout=timedelta(seconds=5),
        )
