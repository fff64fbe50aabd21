"""News of containers as a Docker engine tells them, and of the engine itself going and coming back."""

import asyncio
import logging
import time
from typing import Any

import docker
from docker.errors import APIError
from docker.types.daemon import CancellableStream

from worker_host.runtime.docker_client import DockerClient, in_thread, translated
from worker_host.runtime.protocol import RuntimeAway

log = logging.getLogger("holdfast.host")

_RETRY_S = 0.25
_OVERLAP_S = 5
"""So much of the past is told again on connecting: the answer begins before it is complete."""
_NEWS = ["die", "destroy", "oom", "stop", "kill"]


class DockerEvents:
    """Wakes whoever waits for a container: when something happened to it, and whenever the engine can be asked again.

    News say only that looking is worthwhile; what is true is what the engine then answers.
    """

    def __init__(self, client: DockerClient, label: str) -> None:
        self._client = client
        self._label = label
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None
        self._stream: CancellableStream[dict[str, Any]] | None = None

    def watch(self, container_id: str) -> "Watch":
        """From now on: look after this call and you miss nothing."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="events of Docker")
        return Watch(self._waiting, container_id)

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        away = False
        try:
            while True:
                try:
                    await in_thread(lambda: self._listen(loop), "events of Docker")
                except (RuntimeAway, APIError) as error:
                    if not away:
                        log.warning("%s; what runs in it is looked at again when it is back", error)
                    away = True
                else:
                    away = False
                await asyncio.sleep(_RETRY_S)
        finally:
            if self._stream is not None:
                self._stream.close()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until the connection ends. In a thread."""
        api: docker.APIClient = self._client.api
        with translated():
            stream = api.events(
                since=int(time.time()) - _OVERLAP_S,
                filters={"type": "container", "event": _NEWS, "label": self._label},
                decode=True,
            )
            self._stream = stream
            loop.call_soon_threadsafe(self._wake_all)
            for event in stream:
                loop.call_soon_threadsafe(self._wake, event)

    def _wake(self, event: dict[str, Any]) -> None:
        name = event.get("Actor", {}).get("Attributes", {}).get("name", "")
        for known_as in (event.get("id", ""), name):
            for waiting in self._waiting.get(known_as, ()):
                waiting.set()

    def _wake_all(self) -> None:
        for waiting in self._waiting.values():
            for event in waiting:
                event.set()


class Watch:
    """One who waits for one container."""

    def __init__(self, waiting: dict[str, set[asyncio.Event]], container_id: str) -> None:
        self._waiting = waiting
        self._id = container_id
        self._event = asyncio.Event()
        waiting.setdefault(container_id, set()).add(self._event)

    async def news(self) -> None:
        """Until there is some since the last time."""
        await self._event.wait()
        self._event.clear()

    def close(self) -> None:
        others = self._waiting.get(self._id, set())
        others.discard(self._event)
        if not others:
            self._waiting.pop(self._id, None)
