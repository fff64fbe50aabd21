"""Engines as containers of a Docker engine of this machine."""

import asyncio
import logging
import os
import re
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import docker
from docker.errors import APIError, NotFound

from fleet.inventory import EngineRef
from worker_host.runtime.container_log import LogCopy, copy
from worker_host.runtime.containers import ATTEMPT, FENCE, HOST, INSTANCE, NETWORK, PORT, arguments, name_of
from worker_host.runtime.docker_client import DockerClient, in_thread, translated
from worker_host.runtime.docker_events import DockerEvents
from worker_host.runtime.journal import Entry, Journal
from worker_host.runtime.process import began, lives, until_ended
from worker_host.runtime.protocol import CannotStart, ContainerRef, Exit, Handle, Job, ProcessRef, RuntimeAway

_log = logging.getLogger("holdfast.host")

_AWAY_S = 0.5
_LAST_NEWS_S = 10.0
"""So long a Docker engine that is away may take to come back and say how a container ended that is gone."""
_ULIMIT = re.compile(r"error setting rlimits?.*?(?:type (\d+))?: operation not permitted", re.IGNORECASE)
_ULIMIT_NAMES = {"3": "stack", "7": "nofile", "8": "memlock"}
_RUNNING = ("running", "paused", "restarting")
_ENDED = ("exited", "dead")


class DockerRuntime:
    """They carry their (host, instance, fence) as labels. An engine ends when Docker says so, never because Docker
    itself is away: calls that change something wait for it, and look again when it is back."""

    def __init__(self, client: DockerClient, host_id: str, journal: Journal) -> None:
        self._client = client
        self._host_id = host_id
        self._journal = journal
        self._denied: set[str] = set()
        """Limits that this Docker engine may not raise."""
        self._events = DockerEvents(client, f"{HOST}={host_id}")

    async def start(self, job: Job) -> ContainerRef:
        """Also raises RuntimeAway; then it may run all the same, and is found by its labels."""
        starting = asyncio.create_task(self._client.call(lambda api: self._start(api, job)))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait({starting})  # who cancels it wants to find what it has started
            raise
        except APIError as error:
            raise CannotStart(f"cannot start a container: {_said(error)}") from error
        except OSError as error:  # our own notes
            raise CannotStart(str(error)) from error

    def all(self) -> list[tuple[EngineRef, ContainerRef]]:
        """While Docker is away: what may run."""
        try:
            found = self._containers(_RUNNING)
        except (RuntimeAway, APIError):
            return [(e.engine, ContainerRef(id=e.name, name=e.name)) for e in self._journal.entries()]
        self._journal.correct([Entry(engine=f.engine, name=f.ref.name, port=f.port) for f in found])
        return [(f.engine, f.ref) for f in found]

    def find(self, engine: EngineRef) -> ContainerRef | None:
        """Also one that has ended meanwhile: it can still say how."""
        try:
            found = [(f.engine, f.ref) for f in self._containers((*_RUNNING, *_ENDED))]
        except (RuntimeAway, APIError):
            found = self.all()
        return next((ref for known, ref in found if known == engine), None)

    def port(self, handle: Handle) -> int | None:
        ref = _mine(handle)
        try:
            found = {f.ref.name: f.port for f in self._containers((*_RUNNING, *_ENDED))}
        except (RuntimeAway, APIError):
            found = {e.name: e.port for e in self._journal.entries()}
        return found.get(ref.name) or None

    async def alive(self, handle: Handle) -> bool:
        """True when Docker is away, unless its process can be seen to have gone."""
        ref = _mine(handle)
        try:
            facts = await self._client.call(lambda api: _inspect(api, ref.id))
        except RuntimeAway:
            process = _process(ref)
            return process is None or lives(process)
        return facts is not None and facts["State"]["Status"] in _RUNNING

    async def wait(self, handle: Handle) -> Exit:
        ref = _mine(handle)
        watch = self._events.watch(ref.id)
        process = _process(ref)
        ending = asyncio.create_task(until_ended(process)) if process is not None else None
        try:
            while True:
                exit_ = await self._exit(ref)
                if exit_ is not None:
                    return exit_
                news = asyncio.create_task(watch.news())
                await asyncio.wait({news} | ({ending} if ending else set()), return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                if ending is not None and ending.done():
                    # Its process has gone, which Docker may not know yet, or be away.
                    return await self._exit_within(ref, _LAST_NEWS_S) or Exit()
        finally:
            watch.close()
            if ending is not None:
                ending.cancel()

    async def terminate(self, handle: Handle) -> None:
        await self._signal(_mine(handle), signal.SIGTERM)

    async def kill(self, handle: Handle) -> None:
        await self._signal(_mine(handle), signal.SIGKILL)

    async def keep_log(self, handle: Handle, log: Path) -> None:
        """Both outputs, as Docker keeps them."""
        ref, told = _mine(handle), False
        while True:
            try:
                over = not await self._client.call(lambda api: _is_running(api, ref.id))
                await self._copy_log(ref, log)
                if over:  # it was when the copy began, so that is complete
                    return
            except NotFound:
                return
            except (RuntimeAway, APIError, OSError) as error:
                if not told:
                    _log.warning("the log of %s stands still: %s", ref, error)
                told = True
                await asyncio.sleep(_AWAY_S)

    async def until_back(self) -> bool:
        away = False
        while not await asyncio.to_thread(self._client.answers):
            away = True
            await asyncio.sleep(_AWAY_S)
        return away

    async def discard(self, handle: Handle) -> None:
        """When Docker is away it stays, until ``clear_up``."""
        try:
            await self._client.call(lambda api: _remove(api, _mine(handle).id))
        except (RuntimeAway, APIError) as error:
            _log.warning("cannot remove %s: %s", handle, error)

    def clear_up(self, keep: set[EngineRef]) -> None:
        """Remove containers that have ended and that nobody answers for. Blocks. Raises RuntimeAway and APIError."""
        for found in self._containers(_ENDED):
            if found.engine not in keep:
                _log.info("removing %s of %s, which has ended", found.ref, found.engine)
                self._client.blocking(lambda api, i=found.ref.id: _remove(api, i))  # type: ignore[misc]

    async def aclose(self) -> None:
        await self._events.aclose()

    # -- starting ---------------------------------------------------------------------------------------------

    def _start(self, api: docker.APIClient, job: Job) -> ContainerRef:
        if job.container is None:
            raise CannotStart(f"cannot start {job.engine} in a container: no image")
        if not job.container.host_network:
            _ensure_network(api)
        name = name_of(job, self._host_id)
        self._journal.begin(Entry(engine=job.engine, name=name, port=job.port))
        try:
            return self._created_and_started(api, job, name)
        finally:
            self._journal.made(name)

    def _created_and_started(self, api: docker.APIClient, job: Job, name: str) -> ContainerRef:
        while True:
            container_id = _create(api, name, arguments(api, job, self._host_id, without_ulimits=self._denied))
            try:
                api.start(container_id)
            except APIError as error:
                _remove(api, container_id)
                denied = _denied_ulimits(_said(error)) - self._denied
                if not denied:
                    raise
                _log.warning("this Docker engine may not raise the limits of %s: engines go without", denied)
                self._denied |= denied
                continue
            if self._denied:
                _note(job.log, f"this Docker engine may not raise the limits of {', '.join(sorted(self._denied))}")
            facts = _inspect(api, container_id)
            return _ref(facts) if facts else ContainerRef(id=container_id, name=name)

    # -- looking ----------------------------------------------------------------------------------------------

    def _containers(self, states: tuple[str, ...]) -> list["_Found"]:
        """The latest attempts first. Raises RuntimeAway and APIError."""
        filters = {"label": [f"{HOST}={self._host_id}"], "status": list(states)}
        found = []
        for summary in self._client.blocking(lambda api: api.containers(all=True, filters=filters)):
            facts = self._client.blocking(lambda api, i=summary["Id"]: _inspect(api, i))  # type: ignore[misc]
            if facts is None or facts["State"]["Status"] not in states:
                continue
            labels = (facts.get("Config") or {}).get("Labels") or {}
            try:
                engine = EngineRef(instance_id=labels[INSTANCE], fence=int(labels[FENCE]))
                found.append(_Found(int(labels[ATTEMPT]), int(labels[PORT]), engine, _ref(facts)))
            except (KeyError, ValueError):
                continue
        return sorted(found, key=lambda f: -f.attempt)

    async def _exit(self, ref: ContainerRef) -> Exit | None:
        """None: it has not ended, or nobody can know."""
        try:
            facts = await self._client.call(lambda api: _inspect(api, ref.id))
        except (RuntimeAway, APIError):
            return None
        if facts is None:
            return Exit()
        state = facts["State"]
        if state["Status"] not in _ENDED:
            return None
        code = int(state["ExitCode"])
        return Exit(-(code - 128) if code in (137, 143, 139, 134) else code, bool(state["OOMKilled"]) and code != 0)

    async def _exit_within(self, ref: ContainerRef, longest_s: float) -> Exit | None:
        try:
            async with asyncio.timeout(longest_s):
                while (exit_ := await self._exit(ref)) is None:
                    await asyncio.sleep(0.05)
                return exit_
        except TimeoutError:
            return None

    # -- changing ---------------------------------------------------------------------------------------------

    async def _signal(self, ref: ContainerRef, number: signal.Signals) -> None:
        """By Docker, or directly while Docker is away; if neither can, until Docker is back."""
        told = False
        while True:
            try:
                await self._client.call(lambda api: _kill(api, ref.id, number))
                return
            except (RuntimeAway, APIError) as error:
                process = _process(ref)
                if process is not None:
                    if lives(process):
                        os.kill(process.pid, number)
                    return
                if not told:
                    _log.warning("cannot signal %s until Docker is back: %s", ref, error)
                told = True
                await asyncio.sleep(_AWAY_S)

    async def _copy_log(self, ref: ContainerRef, into: Path) -> None:
        """Until its output ends, or the connection does."""
        stop = threading.Event()
        streams: list[Any] = []

        def run() -> None:
            target = LogCopy(into)
            try:
                with translated():
                    stream = self._client.api.logs(
                        ref.id, stream=True, follow=True, timestamps=True, since=target.since
                    )
                    streams.append(stream)
                    if not stop.is_set():
                        copy(stream, target, stop)
            finally:
                target.close()

        copying = in_thread(run, f"log of {ref.name}")
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:
            stop.set()
            for stream in streams:
                stream.close()
            raise


class _Found(NamedTuple):
    attempt: int
    port: int
    engine: EngineRef
    ref: ContainerRef


def _note(log: Path, text: str) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as notes:
        notes.write(f"[holdfast: {text}]\n")


def _mine(handle: Handle) -> ContainerRef:
    if not isinstance(handle, ContainerRef):
        raise TypeError(f"{handle} is no container")
    return handle


def _process(ref: ContainerRef) -> ProcessRef | None:
    return ProcessRef(pid=ref.pid, began=ref.began) if ref.pid is not None and ref.began else None


def _ref(facts: Mapping[str, Any]) -> ContainerRef:
    pid = int(facts["State"].get("Pid") or 0)
    seen = began(pid) if pid and _is_of(pid, facts["Id"]) else None
    return ContainerRef(id=facts["Id"], name=facts["Name"].lstrip("/"), pid=pid or None, began=seen or "")


def _is_of(pid: int, container_id: str) -> bool:
    """Whether that number means the container's process to us, too: we may be in a container ourselves."""
    try:
        return container_id in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def _inspect(api: docker.APIClient, container_id: str) -> dict[str, Any] | None:
    try:
        return dict(api.inspect_container(container_id))
    except NotFound:
        return None


def _is_running(api: docker.APIClient, container_id: str) -> bool:
    facts = _inspect(api, container_id)
    return facts is not None and facts["State"]["Status"] in _RUNNING


def _create(api: docker.APIClient, name: str, wanted: dict[str, Any]) -> str:
    """One of that name from an attempt that was given up half-way is replaced."""
    try:
        return str(api.create_container(name=name, **wanted)["Id"])
    except APIError as error:
        if error.status_code != 409:
            raise
        _remove(api, name)
        return str(api.create_container(name=name, **wanted)["Id"])


def _remove(api: docker.APIClient, container: str) -> None:
    try:
        api.remove_container(container, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:  # it is being removed already
            raise


def _kill(api: docker.APIClient, container_id: str, number: signal.Signals) -> None:
    try:
        api.kill(container_id, int(number))
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:  # it does not run
            raise


def _ensure_network(api: docker.APIClient) -> None:
    """In which no engine can reach another."""
    if any(n["Name"] == NETWORK for n in api.networks(names=[NETWORK])):
        return
    try:
        api.create_network(
            NETWORK,
            driver="bridge",
            check_duplicate=True,
            options={"com.docker.network.bridge.enable_icc": "false"},
        )
    except APIError as error:
        if error.status_code != 409:
            raise


def _denied_ulimits(complaint: str) -> set[str]:
    found = _ULIMIT.search(complaint)
    if found is None:
        return set()
    return {_ULIMIT_NAMES[found[1]]} if found[1] in _ULIMIT_NAMES else set(_ULIMIT_NAMES.values())


def _said(error: APIError) -> str:
    return str(error.explanation or error).strip()
