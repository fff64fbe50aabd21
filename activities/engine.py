"""``run_engine`` on a host: hand the task token to whoever owns engines there, and let go of the activity slot."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Protocol

from temporalio import activity

from fleet.gangs import Acceptance
from fleet.instances import EngineExit, EngineLaunch
from fleet.inventory import EngineRef


class EngineOwner(Protocol):
    async def take(self, launch: EngineLaunch, token: bytes, heartbeat: timedelta | None = None) -> None:
        """Start or adopt the engine and answer for it by ``token`` until it ends. ``heartbeat``: Temporal gives up what
        it has not heard of for so long; None: as usual.

        Returns once the duty is on disk. Raises ApplicationError (not retryable) for a fence older than a known one.
        """
        ...

    async def look(self, engine: EngineRef) -> None:
        """Heartbeat for this engine now."""
        ...

    async def hurry(self, engine: EngineRef) -> None:
        """The same; and when it is stopped, its requests need not finish."""
        ...

    async def accept(self, launch: EngineLaunch) -> Acceptance:
        """Fetch what the engine needs and say whether it can be run here. Starts nothing."""
        ...


_BEAT_S = 5.0


class EngineActivities:
    def __init__(self, owner: EngineOwner) -> None:
        self._owner = owner

    @activity.defn(name="run_engine")
    async def run_engine(self, launch: EngineLaunch) -> EngineExit:
        info = activity.info()
        await self._owner.take(launch, info.task_token, info.heartbeat_timeout)
        activity.raise_complete_async()

    @activity.defn(name="look_at_engine")
    async def look_at_engine(self, engine: EngineRef) -> None:
        await self._owner.look(engine)

    @activity.defn(name="hurry_engine")
    async def hurry_engine(self, engine: EngineRef) -> None:
        await self._owner.hurry(engine)

    @activity.defn(name="accept_engine")
    async def accept_engine(self, launch: EngineLaunch) -> Acceptance:
        async with _heartbeats():
            return await self._owner.accept(launch)


@contextlib.asynccontextmanager
async def _heartbeats() -> AsyncIterator[None]:
    """For as long as it takes: images can be large."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(_BEAT_S)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
