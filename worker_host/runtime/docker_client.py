"""Calls to a Docker engine from an event loop: in threads of our own, with errors that tell what they mean."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException

from worker_host.runtime.protocol import RuntimeAway

T = TypeVar("T")

DEFAULT_URL = "unix:///var/run/docker.sock"
_CALL_S = 60
_PING_S = 3
_THREADS = 8
_LOST = (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)


class DockerClient:
    """One Docker engine. It need not be there: every call may raise RuntimeAway."""

    def __init__(self, url: str = "") -> None:
        self.url = url or os.environ.get("DOCKER_HOST", "") or DEFAULT_URL
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="docker")
        self._api: docker.APIClient | None = None
        self._lock = threading.Lock()

    @property
    def api(self) -> docker.APIClient:
        """For blocking calls within ``translated``. Raises RuntimeAway."""
        with self._lock, translated():
            if self._api is None:
                # Asks for the version of the API that both speak.
                self._api = docker.APIClient(base_url=self.url, version="auto", timeout=_CALL_S)
            return self._api

    async def call(self, function: Callable[[docker.APIClient], T]) -> T:
        """``function`` of the API in a thread. Raises RuntimeAway and APIError."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.blocking, function)

    def blocking(self, function: Callable[[docker.APIClient], T]) -> T:
        api = self.api
        with translated():
            return function(api)

    def answers(self) -> bool:
        """Whether there is an engine now. Blocks for a few seconds at most."""
        try:
            with translated():
                docker.APIClient(base_url=self.url, timeout=_PING_S).ping()
        except (RuntimeAway, APIError):
            return False
        return True


@contextmanager
def translated() -> Iterator[None]:
    """RuntimeAway for everything that says that no engine answers; APIError passes."""
    try:
        yield
    except APIError:
        raise
    except _LOST as error:
        raise RuntimeAway(f"the Docker engine does not answer: {error}") from error
    except DockerException as error:
        raise RuntimeAway(f"the Docker engine does not answer: {error}") from error


def in_thread(function: Callable[[], T], name: str) -> "asyncio.Future[T]":
    """``function`` in a daemon thread: for what takes as long as an engine lives, and must not keep us from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            result, error = function(), None
        except BaseException as raised:  # noqa: BLE001 - whoever awaits it gets it
            result, error = None, raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop has ended, and everybody who waited with it
            return

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
