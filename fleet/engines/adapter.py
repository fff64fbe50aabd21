"""What Holdfast knows of an engine: one shape that all adapters share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fleet.engines.spec import EngineSpec


@dataclass(frozen=True)
class Install:
    """How an engine gets onto a host: a virtual environment of its own."""

    requirement: str
    """For pip, with the exact version."""
    binary: str
    """Glob below the environment that finds the program."""


@dataclass(frozen=True)
class Start:
    """Everything that the command line of an engine depends on."""

    binary: Path
    spec: EngineSpec
    model_path: str
    gpu_uuids: Sequence[str]
    address: str
    port: int
    cpu_count: int


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """A request that only a working engine answers with 200."""

    path: str
    body: dict[str, Any]


class Progress(NamedTuple):
    value: float
    exact: bool = True
    """False: rounded, so that it may stand still for a while although the engine gets on."""


class EngineAdapter(Protocol):
    name: str
    program: str
    """Its name on the PATH of images that have no entrypoint."""
    default_version: str
    default_context: int
    """Tokens of one request when the deployment does not say."""
    default_concurrency: int
    health_path: str
    metrics_path: str
    stop_grace_s: float
    """Between SIGTERM and SIGKILL."""
    failure_patterns: Sequence[tuple[str, str]]
    """(class, regular expression) peculiar to this engine; looked at before the common ones."""

    def install(self, version: str) -> Install: ...

    def refuse(self, args: Sequence[str]) -> dict[int, str]:
        """Arguments that collide with what we set ourselves: index → what to do instead."""
        ...

    def command(self, start: Start) -> Command: ...

    def readiness(self, spec: EngineSpec) -> Probe:
        """The one-token request."""
        ...

    def busy(self, metrics: str) -> int | None:
        """Requests running or queued, from the text of its metrics; None when they do not say."""
        ...

    def progress(self, metrics: str) -> Progress | None:
        """A number that changes whenever a running request gets on, not only when it ends; None when they do not say.

        An engine whose number stands still with requests in it is restarted: leave out what does not move all the time.
        """
        ...
