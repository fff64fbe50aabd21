"""What a host can run engines in: one shape for processes and containers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import Field

from fleet.engines.devices import ContainerDevices
from fleet.inventory import EngineRef
from fleet.model import Record

LOOPBACK = "127.0.0.1"
"""Where engines can be reached, and by this host only."""
EVERYWHERE = "0.0.0.0"  # noqa: S104
"""Where an engine listens in a network of its own, of which its host publishes one port on loopback."""


class ProcessRef(Record):
    """A process, told from a later one with the same number by when it began."""

    kind: Literal["process"] = "process"
    pid: int
    began: str

    @property
    def name(self) -> str:
        return str(self.pid)

    def __str__(self) -> str:
        return f"pid {self.pid}"


class ContainerRef(Record):
    kind: Literal["docker"] = "docker"
    id: str
    name: str
    pid: int | None = None
    """Of its first process, if that can be seen from here."""
    began: str = ""
    """As in ``ProcessRef``; empty: the process cannot be seen from here."""

    def __str__(self) -> str:
        return f"container {self.name}"


Handle = Annotated[ProcessRef | ContainerRef, Field(discriminator="kind")]
"""A running engine, as its host remembers it."""


class Exit(NamedTuple):
    """How an engine ended by itself."""

    code: int | None = None
    """Negative for a signal; None when nobody can know."""
    out_of_memory: bool = False
    """The kernel killed it, because it took more memory than it was allowed."""


class CannotStart(Exception):
    """The engine cannot be run; the message is in words that ``fleet.engines.failures`` knows."""


class RuntimeAway(Exception):
    """The container engine does not answer now. What it runs may go on all the same."""


@dataclass(frozen=True)
class Container:
    """What a job needs to be run in a container."""

    image: str
    """By digest or id: exactly this one, and it is here."""
    host_network: bool = False
    mounts: tuple[Path, ...] = ()
    """Read-only, at the same place inside."""
    devices: ContainerDevices = field(default_factory=ContainerDevices)
    shm_bytes: int | None = None
    host_ipc: bool = False
    cpus: float | None = None
    memory_bytes: int | None = None
    """More than that, and the kernel kills it."""
    program: str = ""
    """Started instead of the image's entrypoint; empty: that is the program."""


@dataclass(frozen=True)
class Job:
    """An engine to be run once."""

    engine: EngineRef
    attempt: int
    argv: tuple[str, ...]
    """In a container that starts its program by itself, the program's name is left out."""
    env: Mapping[str, str]
    port: int
    """On loopback of this host."""
    log: Path
    container: Container | None = None


class Runtime(Protocol):
    """Starts, finds, watches and stops engines that carry their (host, instance, fence).

    ``all``, ``find`` and ``port`` block, and are for threads. Whatever asks a container engine may raise RuntimeAway,
    unless it says that it waits.
    """

    async def start(self, job: Job) -> Handle:
        """Raises CannotStart. Of a job that was begun and given up half-way, nothing is left to run."""
        ...

    def all(self) -> Sequence[tuple[EngineRef, Handle]]:
        """Everything of this host that runs, whether anybody remembers it or not."""
        ...

    def find(self, engine: EngineRef) -> Handle | None:
        """An engine that we forgot, because we died between starting it and writing it down."""
        ...

    def port(self, handle: Handle) -> int | None:
        """Where it was told to listen; None when it does not carry it."""
        ...

    async def alive(self, handle: Handle) -> bool:
        """False only if it has certainly ended."""
        ...

    async def wait(self, handle: Handle) -> Exit:
        """Until it has ended, however long the container engine is away meanwhile. Can be asked again and again."""
        ...

    async def terminate(self, handle: Handle) -> None:
        """Ask it to end. Nothing happens to one that has ended."""
        ...

    async def kill(self, handle: Handle) -> None:
        """With everything that it started. Waits for the container engine; nothing happens to one that has ended."""
        ...

    async def keep_log(self, handle: Handle, log: Path) -> None:
        """See that its output is in ``log`` and that ``log`` does not grow without end. Returns when it has ended and
        said everything; cancelled and called again, by whichever process, it misses nothing and repeats nothing."""
        ...

    async def until_back(self) -> bool:
        """Until the container engine answers; whether it was away. Without it nobody can reach the ports that it
        publishes, so an engine that does not answer meanwhile need not hang."""
        ...

    async def discard(self, handle: Handle) -> None:
        """Remove what is left of one that has ended, its log apart. Twice is the same as once."""
        ...
