"""How a gateway wakes a deployment: through Temporal, of which it needs nothing else."""

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fleet.errors import Unavailable
from fleet.settings import Settings

if TYPE_CHECKING:
    from api.temporal_client import WorkflowClient

Wake = Callable[[str, int], Awaitable[None]]


def waker(settings: Settings) -> Wake:
    """For a process that has no connection to Temporal: it is made when the first deployment is woken."""
    return _Waker(settings)


class _Waker:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: WorkflowClient | None = None
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, name: str, replicas: int) -> None:
        await (await self._connected()).wake_deployment(name, replicas)

    async def _connected(self) -> "WorkflowClient":
        async with self._one_at_a_time:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> "WorkflowClient":
        # Late, and beside the loop: it takes half a second and a third of a gateway's memory.
        temporal = await asyncio.to_thread(importlib.import_module, "fleet.temporal")
        ours = await asyncio.to_thread(importlib.import_module, "api.temporal_client")
        try:
            client: WorkflowClient = ours.WorkflowClient(await temporal.connect(self._settings, lazy=True))
        except (OSError, RuntimeError, ValueError) as error:  # a certificate that is not there, an address that is none
            raise Unavailable(f"no way to Temporal: {error}", hint="see HOLDFAST_TEMPORAL_*") from error
        return client
