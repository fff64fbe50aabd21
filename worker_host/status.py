"""Telling the control plane, every ten seconds, how this host is."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc

from fleet.join import StatusAnswer
from fleet.telemetry import STATUS_EVERY_S, HostStatus
from worker_host.address import HostAddress
from worker_host.control_plane import ControlPlane

log = logging.getLogger("holdfast.host")


class Telemetry(Protocol):
    def take(self) -> HostStatus:
        """How the host is now. Blocks."""
        ...

    def unheard(self, status: HostStatus) -> None:
        """Nobody heard this one. Blocks."""
        ...


class StatusLoop:
    """Sends the newest only: what could not be said is old when it can be."""

    def __init__(
        self,
        control_plane: ControlPlane,
        telemetry: Telemetry,
        address: HostAddress,
        heard: Callable[[StatusAnswer], None],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        """``changed`` is awaited when the host must register anew: its address or its inventory is another one."""
        self._control_plane = control_plane
        self._telemetry = telemetry
        self._address = address
        self._heard = heard
        self._changed = changed
        self._away = False
        self.registered: tuple[str, str] | None = None
        """Address and fingerprint of the inventory that the control plane has accepted."""

    async def run(self) -> None:
        """Until cancelled. Raises what ``changed`` raises."""
        while True:
            await asyncio.sleep(STATUS_EVERY_S * random.uniform(0.9, 1.1))  # noqa: S311
            await self.once()

    async def once(self) -> None:
        if self.registered is None:
            return  # it would not be heard
        await asyncio.to_thread(self._address.look)
        status = await asyncio.to_thread(self._telemetry.take)
        if (self._address.current, status.inventory) != self.registered:
            await self._changed()
        await self._send(status)

    async def _send(self, status: HostStatus) -> None:
        try:
            answer = await self._control_plane.status(status)
        except grpc.aio.AioRpcError as error:
            if not self._away:
                log.warning("the control plane does not hear how this host is: %s", error.details())
            self._away = True
            await asyncio.to_thread(self._telemetry.unheard, status)
            return
        self._away = False
        self._heard(answer)
