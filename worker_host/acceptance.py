"""Whether this host can run its part of a gang: what is missing is fetched, and a yes is kept for a while."""

import asyncio
import socket
import time
from pathlib import Path

from fleet.access.sealing import CannotOpen
from fleet.engines.catalog import adapter_for
from fleet.gangs import Acceptance
from fleet.instances import EngineLaunch, EnginePhase, EngineReport
from worker_host.endings import Endings
from worker_host.install import InstallFailed
from worker_host.records import EngineRecord
from worker_host.reports import Reports
from worker_host.runtime.protocol import EVERYWHERE, CannotStart, RuntimeAway
from worker_host.supervised import HostParts

PROMISED_FOR_S = 1800.0
"""Longer than all hosts of a gang together may take to answer."""


class Promises:
    """Under which fences this host has said yes. Lost with its process: then the launch itself is what counts."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[int, float]] = {}

    def make(self, launch: EngineLaunch) -> None:
        self._made[launch.instance_id] = (launch.fence, time.monotonic() + PROMISED_FOR_S)

    def newest(self, instance_id: str) -> int:
        """0: none, or none any more."""
        now = time.monotonic()
        self._made = {known: made for known, made in self._made.items() if made[1] > now}
        return self._made.get(instance_id, (0, 0.0))[0]

    def keep(self, instance_id: str) -> None:
        """The engine was asked for."""
        self._made.pop(instance_id, None)


async def answer(parts: HostParts, launch: EngineLaunch) -> Acceptance:
    """Pull, install and check what the engine will need here; starts nothing."""
    record = EngineRecord(launch=launch, token=None)
    reports = Reports(parts.control_plane)
    telling = asyncio.create_task(reports.run())

    def say(share: float | None, message: str) -> None:
        reports.send(_progress(launch, share, message))

    try:
        await parts.starter.prepare(adapter_for(launch.spec), record, say)
        await asyncio.to_thread(_check, launch)
    except (CannotStart, InstallFailed, RuntimeAway, CannotOpen, OSError) as error:
        endings = Endings(parts.logs, adapter_for(launch.spec), record, ())
        return Acceptance(refusal=endings.never_started(str(error)))
    finally:
        telling.cancel()
    return Acceptance()


def _progress(launch: EngineLaunch, share: float | None, message: str) -> EngineReport:
    return EngineReport(
        instance_id=launch.instance_id,
        fence=launch.fence,
        sequence=int(time.time() * 1000),  # below those of the engine itself, which begin with the time of its start
        phase=EnginePhase.DOWNLOADING,
        progress=share,
        message=message,
        rank=launch.rank,
    )


def _check(launch: EngineLaunch) -> None:
    """Raises CannotStart."""
    here = launch.here
    if here.model_path and not Path(here.model_path).exists():
        raise CannotStart(f"the model is not here: {here.model_path} does not exist")
    if launch.rank and not here.address:
        raise CannotStart("this host has no address on a network that the hosts of a gang share: set fabric_address")
    taken = [str(port) for port in here.ports if not _is_free(port)]
    if taken:
        raise CannotStart(f"address already in use: ports {', '.join(taken)}, which were claimed for it")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((EVERYWHERE, port))
        except OSError:
            return False
    return True
