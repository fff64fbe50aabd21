"""What Holdfast knows of an engine: one shape that all adapters share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fleet.engines.spec import EngineSpec
from fleet.inventory import AcceleratorKind
from fleet.placement.request import Member, ModelCard
from fleet.sizing.facts import Format, ModelFacts
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import GpuClass, Sizing, Workload

NO_CARD = ModelCard()
"""Nothing is known of the model: it generates text."""


class Unstartable(Exception):
    """This launch lacks what the engine needs; the message says what."""


@dataclass(frozen=True)
class Install:
    """How an engine gets onto a host: a virtual environment of its own."""

    requirement: str
    """For pip, with the exact version."""
    binary: str
    """Glob below the environment that finds the program."""
    dependencies: bool = False
    """What it requires is installed, too; else it needs nothing."""
    without: tuple[str, ...] = ()
    """Of what it requires, what it can do without here (names as pip normalises them)."""
    files: tuple[tuple[str, str], ...] = ()
    """(path below its site-packages, text), written last."""


@dataclass(frozen=True)
class Start:
    """Everything that the command line of an engine depends on."""

    binary: Path
    spec: EngineSpec
    model_path: str
    gpu_uuids: Sequence[str]
    """Of this host."""
    address: str
    port: int
    cpu_count: int
    sizing: Sizing | None = None
    """What was booked; the engine is told exactly this. None: a person named the bytes, or nothing is known."""
    card: ModelCard = NO_CARD
    rank: int = 0
    """Which of ``members`` this host is; 0: the leader, where requests go."""
    members: tuple[Member, ...] = ()
    """Of a gang: all its hosts, by rank. Else this host alone, or nobody."""
    ports: tuple[int, ...] = ()
    """Claimed on this host; the first is ``port``."""
    accelerator: AcceleratorKind = AcceleratorKind.NVIDIA
    """What ``gpu_uuids`` are."""
    booked_bytes: int = 0
    """Of each card, or of RAM where there is none; 0: not known."""
    card_bytes: int = 0
    """Memory of the smallest of its cards; 0: not known."""
    interface: str = ""
    """The network interface that holds this member's address."""
    lora_ranks: tuple[int, ...] = ()
    """Of ``spec.lora``, one by one; 0: not known."""

    @property
    def on_gpu(self) -> bool:
        return bool(self.gpu_uuids)

    @property
    def is_gang(self) -> bool:
        return len(self.members) > 1


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """A request that only a working engine answers with 200."""

    path: str
    body: dict[str, Any]
    upload: tuple[str, bytes] | None = None
    """(file name, content): the body then goes along as a form."""


class Progress(NamedTuple):
    value: float
    exact: bool = True
    """False: rounded, so that it may stand still for a while although the engine gets on."""


class Queue(NamedTuple):
    """How full an engine is."""

    running: int
    waiting: int
    kv_usage: float | None = None
    """Share of the KV cache that is in use, 0 to 1; None: it does not say."""
    first_tokens: int = 0
    """Requests that have had their first token, since its start; 0 where it does not say."""
    first_token_s: float = 0.0
    """What those waited for it, all together: between two looks the mean is the quotient of both differences."""


class EngineAdapter(Protocol):
    """Pure: values in, values out."""

    @property
    def name(self) -> str: ...

    @property
    def program(self) -> str:
        """Its name on the PATH of images that have no entrypoint."""
        ...

    @property
    def names_program(self) -> bool:
        """Containers are told to start ``program``, whatever their image would: that starts something more."""
        ...

    @property
    def follower_programs(self) -> tuple[str, ...]:
        """What runs on the other hosts of a gang, beside ``program``; the first that is there. Empty: ``program``."""
        ...

    @property
    def followers_accept(self) -> bool:
        """Followers of a gang accept connections, on their address among its hosts and their first port, once they
        take part. Else that they live is all that is known of them."""
        ...

    @property
    def default_version(self) -> str: ...

    @property
    def default_context(self) -> int:
        """Tokens of one request when neither the deployment nor sizing says."""
        ...

    @property
    def default_concurrency(self) -> int: ...

    @property
    def health_path(self) -> str: ...

    @property
    def metrics_path(self) -> str:
        """Empty: it has no metrics."""
        ...

    @property
    def stop_grace_s(self) -> float:
        """Between SIGTERM (to its first process alone) and SIGKILL (to all)."""
        ...

    @property
    def failure_patterns(self) -> Sequence[tuple[str, str]]:
        """(class, regular expression) peculiar to this engine; looked at before the common ones."""
        ...

    @property
    def formats(self) -> frozenset[Format]:
        """That it loads."""
        ...

    @property
    def accelerators(self) -> frozenset[AcceleratorKind]:
        """That some build of it runs on; which of them a host's build does, its ``EngineBuild`` says."""
        ...

    def install(self, version: str) -> Install | None:
        """None: there is nothing to install, the spec names its own program."""
        ...

    def refuse(self, args: Sequence[str]) -> dict[int, str]:
        """Arguments that collide with what we set ourselves: index → what to do instead."""
        ...

    def conflicts(self, spec: EngineSpec) -> dict[int, str]:
        """Arguments that contradict other fields of the spec, and win over them: index → which field, and how."""
        ...

    def supports(self, facts: ModelFacts, version: str, gpu: GpuClass | None = None) -> str:
        """Why this version cannot run the model (on such a card, if one is given); empty: nothing speaks against it."""
        ...

    def workload(self, spec: EngineSpec, facts: ModelFacts | None = None) -> Workload:
        """What sizing has to make room for: the spec, and over it the person's own arguments."""
        ...

    def command(self, start: Start) -> Command:
        """Of the leader, or of a follower. Raises Unstartable."""
        ...

    def readiness(self, spec: EngineSpec, card: ModelCard = NO_CARD) -> Probe:
        """The one-token request of the leader, of the kind that the model answers."""
        ...

    def measures(self, log: str) -> Measured:
        """What its start-up lines say of memory."""
        ...

    def queue(self, metrics: str) -> Queue | None:
        """From the text of its metrics; None when they do not say."""
        ...

    def busy(self, metrics: str) -> int | None:
        """Requests running or queued, from the text of its metrics; None when they do not say."""
        ...

    def progress(self, metrics: str) -> Progress | None:
        """A number that changes whenever a running request gets on, not only when it ends; None when they do not say.

        An engine whose number stands still with requests in it is restarted: leave out what does not move all the time.
        """
        ...
