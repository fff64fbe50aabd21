"""Engines as plain processes of this machine, which outlive the host worker."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from fleet.inventory import EngineRef
from fleet.model import Record

_HANDED_DOWN = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
"""Of our environment. Everything else stays with us: it holds tokens and keys."""
_HOST, _INSTANCE, _FENCE = "HOLDFAST_ENGINE_HOST", "HOLDFAST_ENGINE_INSTANCE", "HOLDFAST_ENGINE_FENCE"
PORT = "HOLDFAST_ENGINE_PORT"
"""In the environment of an engine: where it listens, should its record be lost."""
_EXIT_POLL_S = 0.5
"""Only where the system has no pidfd."""


class ProcessRef(Record):
    """A process, told from a later one with the same number by when it began."""

    pid: int
    began: str


class ProcessRuntime:
    """Starts, finds, watches and stops engine processes. They carry their (instance, fence) in their environment."""

    def __init__(self, host_id: str) -> None:
        self._host_id = host_id
        self._children: dict[ProcessRef, subprocess.Popen[bytes]] = {}

    def start(self, engine: EngineRef, argv: Sequence[str], env: Mapping[str, str], log: Path) -> ProcessRef:
        """Raises OSError. In a session of its own, so that no signal for us reaches it."""
        log.parent.mkdir(parents=True, exist_ok=True)
        labels = {_HOST: self._host_id, _INSTANCE: engine.instance_id, _FENCE: str(engine.fence)}
        inherited = {k: v for k in _HANDED_DOWN if (v := os.environ.get(k))}
        with log.open("ab") as output:
            child = subprocess.Popen(
                list(argv),
                env={**inherited, **env, **labels},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ref = ProcessRef(pid=child.pid, began=_began(child.pid) or "")
        self._children[ref] = child
        return ref

    def find(self, engine: EngineRef) -> ProcessRef | None:
        """A process of this engine that we forgot, because we died between starting it and writing it down."""
        return next((ref for known, ref in self.all() if known == engine), None)

    def all(self) -> list[tuple[EngineRef, ProcessRef]]:
        """Every engine process of this host, known or not; without what an engine started itself."""
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
            found[process.pid] = (parent, engine, ProcessRef(pid=process.pid, began=_began(process.pid) or ""))
        # Labels are inherited. One whose parent has gone counts: it still holds memory.
        return [(engine, ref) for parent, engine, ref in found.values() if parent not in found]

    def port(self, ref: ProcessRef) -> int | None:
        """Where it was told to listen; None when it was not told by ``PORT``."""
        try:
            said = psutil.Process(ref.pid).environ().get(PORT, "")
        except (psutil.Error, OSError):
            return None
        return int(said) if said.isascii() and said.isdigit() else None

    def alive(self, ref: ProcessRef) -> bool:
        child = self._children.get(ref)
        if child is not None and child.poll() is not None:
            return False
        return _began(ref.pid) == ref.began and not _is_zombie(ref.pid)

    async def wait(self, ref: ProcessRef) -> int | None:
        """Until it has ended. The exit code, negative for a signal; None when it was not our child."""
        await _until_ended(ref)
        child = self._children.pop(ref, None)
        return await asyncio.to_thread(child.wait) if child is not None else None

    def terminate(self, ref: ProcessRef) -> None:
        self._signal(ref, signal.SIGTERM)

    def kill(self, ref: ProcessRef) -> None:
        """With everything that it started."""
        if self.alive(ref):
            try:
                os.killpg(ref.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._signal(ref, signal.SIGKILL)

    def _signal(self, ref: ProcessRef, number: int) -> None:
        if not self.alive(ref):
            return
        try:
            os.kill(ref.pid, number)
        except ProcessLookupError:
            return


async def _until_ended(ref: ProcessRef) -> None:
    try:
        descriptor = os.pidfd_open(ref.pid)
    except (OSError, AttributeError):
        while _began(ref.pid) == ref.began and not _is_zombie(ref.pid):
            await asyncio.sleep(_EXIT_POLL_S)
        return
    try:
        if _began(ref.pid) != ref.began:
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


def free_port(address: str) -> int:
    """A port that is free now; if somebody is quicker, the engine fails with class ``port`` and is tried again."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _began(pid: int) -> str | None:
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
