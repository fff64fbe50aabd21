"""``run_engine`` on a host: hand the task token to whoever owns engines there, and let go of the activity slot."""

from typing import Protocol

from temporalio import activity

from fleet.instances import EngineExit, EngineLaunch
from fleet.inventory import EngineRef


class EngineOwner(Protocol):
    async def take(self, launch: EngineLaunch, token: bytes) -> None:
        """Start or adopt the engine and answer for it by ``token`` until it ends.

        Returns once the duty is on disk. Raises ApplicationError (not retryable) for a fence older than a known one.
        """
        ...

    async def look(self, engine: EngineRef) -> None:
        """Heartbeat for this engine now."""
        ...


class EngineActivities:
    def __init__(self, owner: EngineOwner) -> None:
        self._owner = owner

    @activity.defn(name="run_engine")
    async def run_engine(self, launch: EngineLaunch) -> EngineExit:
        await self._owner.take(launch, activity.info().task_token)
        activity.raise_complete_async()

    @activity.defn(name="look_at_engine")
    async def look_at_engine(self, engine: EngineRef) -> None:
        await self._owner.look(engine)
