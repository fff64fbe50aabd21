"""Engines as plain processes of this machine, which outlive the host worker."""

import asyncio
import os
import signal
import socket
import subprocess
from pathlib import Path

import psutil

from fleet.inventory import EngineRef
from worker_host.log_cap import cap
from worker_host.runtime.protocol import LOOPBACK, CannotStart, Exit, Handle, Job, ProcessRef

_HANDED_DOWN = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
"""Of our environment. Everything else stays with us: it holds tokens and keys."""
_HOST, _INSTANCE, _FENCE = "HOLDFAST_ENGINE_HOST", "HOLDFAST_ENGINE_INSTANCE", "HOLDFAST_ENGINE_FENCE"
PORT = "HOLDFAST_ENGINE_PORT"
"""In the environment of an engine: where it listens, should its record be lost."""
_EXIT_POLL_S = 0.5
"""Only where the system has no pidfd."""
_CAP_EVERY_S = 5.0
_LABELLED_LOOKS = 500
"""A thousandth of a second apart."""


class ProcessRuntime:
    """They carry their (instance, fence) in their environment. Nothing here ever raises RuntimeAway."""

    def __init__(self, host_id: str) -> None:
        self._host_id = host_id
        self._children: dict[ProcessRef, subprocess.Popen[bytes]] = {}

    async def start(self, job: Job) -> ProcessRef:
        """In a session of its own, so that no signal for us reaches it."""
        labels = {
            _HOST: self._host_id,
            _INSTANCE: job.engine.instance_id,
            _FENCE: str(job.engine.fence),
            PORT: str(job.port),
        }
        inherited = {k: v for k in _HANDED_DOWN if (v := os.environ.get(k))}
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("ab") as output:
                child = subprocess.Popen(  # noqa: ASYNC220 - returns once the program is loaded
                    list(job.argv),
                    env={**inherited, **job.env, **labels},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:  # ValueError: no such argument can be passed
            raise CannotStart(str(error)) from error
        ref = ProcessRef(pid=child.pid, began=began(child.pid) or "")
        self._children[ref] = child
        await self._until_labelled(child)
        return ref

    async def _until_labelled(self, child: "subprocess.Popen[bytes]") -> None:
        """The system shows an environment a moment after the program was loaded; until then nobody could find it."""
        for _ in range(_LABELLED_LOOKS):
            if child.poll() is not None or _is_labelled(child.pid):
                return
            await asyncio.sleep(0.001)

    def find(self, engine: EngineRef) -> ProcessRef | None:
        return next((ref for known, ref in self.all() if known == engine), None)

    def all(self) -> list[tuple[EngineRef, ProcessRef]]:
        """Without what an engine started itself."""
        found: dict[int, tuple[int, EngineRef, ProcessRef]] = {}
        for process in psutil.process_iter():
            try:
                env = process.environ()
                if env.get(_HOST) != self._host_id or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                engine = EngineRef(instance_id=env[_INSTANCE], fence=int(env[_FENCE]))
                parent = process.ppid()
            except (psutil.Error, OSError, KeyError, ValueError):
                continue
            found[process.pid] = (parent, engine, ProcessRef(pid=process.pid, began=began(process.pid) or ""))
        # Labels are inherited. One whose parent has gone counts: it still holds memory.
        return [(engine, ref) for parent, engine, ref in found.values() if parent not in found]

    def port(self, handle: Handle) -> int | None:
        try:
            said = psutil.Process(_mine(handle).pid).environ().get(PORT, "")
        except (psutil.Error, OSError):
            return None
        return int(said) or None if said.isascii() and said.isdigit() else None

    async def alive(self, handle: Handle) -> bool:
        return self._lives(_mine(handle))

    async def wait(self, handle: Handle) -> Exit:
        """Without a code when it was not our child."""
        ref = _mine(handle)
        await until_ended(ref)
        child = self._children.pop(ref, None)
        return Exit(await asyncio.to_thread(child.wait) if child is not None else None)

    async def terminate(self, handle: Handle) -> None:
        self._signal(_mine(handle), signal.SIGTERM)

    async def kill(self, handle: Handle) -> None:
        ref = _mine(handle)
        if self._lives(ref):
            try:
                os.killpg(ref.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._signal(ref, signal.SIGKILL)

    async def keep_log(self, handle: Handle, log: Path) -> None:
        """It writes the file itself. While no host process lives, nobody keeps it short; the next one does at once."""
        ending = asyncio.create_task(until_ended(_mine(handle)))
        try:
            while not ending.done():
                await asyncio.to_thread(cap, log)
                await asyncio.wait({ending}, timeout=_CAP_EVERY_S)
            await asyncio.to_thread(cap, log)
        finally:
            ending.cancel()

    async def until_back(self) -> bool:
        """Processes need nobody."""
        return False

    async def discard(self, handle: Handle) -> None:
        """Nothing is left of a process."""

    def _lives(self, ref: ProcessRef) -> bool:
        child = self._children.get(ref)
        if child is not None and child.poll() is not None:
            return False
        return lives(ref)

    def _signal(self, ref: ProcessRef, number: int) -> None:
        if not self._lives(ref):
            return
        try:
            os.kill(ref.pid, number)
        except ProcessLookupError:
            return


def _is_labelled(pid: int) -> bool:
    try:
        return _INSTANCE in psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return False


def _mine(handle: Handle) -> ProcessRef:
    if not isinstance(handle, ProcessRef):
        raise TypeError(f"{handle} is no process")
    return handle


async def until_ended(ref: ProcessRef) -> None:
    try:
        descriptor = os.pidfd_open(ref.pid)
    except (OSError, AttributeError):
        while lives(ref):
            await asyncio.sleep(_EXIT_POLL_S)
        return
    try:
        if began(ref.pid) != ref.began:
            return  # the number belongs to somebody else by now
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


def free_port(address: str = LOOPBACK) -> int:
    """A port that is free now; if somebody is quicker, the engine fails with class ``port`` and is tried again."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def lives(ref: ProcessRef) -> bool:
    """Whether it is there and no zombie."""
    return began(ref.pid) == ref.began and not _is_zombie(ref.pid)


def began(pid: int) -> str | None:
    """When the process began, in a form that does not move with the clock; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return stat.rpartition(b")")[2].split()[19].decode()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True
