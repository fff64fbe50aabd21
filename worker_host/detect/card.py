"""What every vendor's detection answers with: cards, how they are now, and who uses them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fleet.inventory import AcceleratorKind, Gpu
from fleet.telemetry import GpuStatus


class CannotLook(Exception):
    """The driver or its tool is there and gives no answer. The message says what it said instead."""


@dataclass(frozen=True)
class GpuProcess:
    pid: int
    memory_bytes: int | None
    """None: the driver does not say."""
    name: str = ""


@dataclass(frozen=True)
class Card:
    gpu: Gpu
    status: GpuStatus
    """``foreign_bytes`` is left to whoever knows which processes are ours."""
    processes: tuple[GpuProcess, ...] | None = None
    """None: the driver does not say who uses it."""


def card_of(gpu: Gpu, processes: tuple[GpuProcess, ...] | None = None, **figures: float | None) -> Card:
    """``figures``: fields of ``GpuStatus``."""
    status = GpuStatus.model_validate({"uuid": gpu.uuid, "healthy": gpu.healthy, "reason": gpu.reason} | figures)
    return Card(gpu, status, processes)


def checked(gpu: Gpu, tool: str, trouble: str = "") -> Gpu:
    """Unhealthy if there is ``trouble``, or if ``tool`` does not say how much memory there is to give."""
    reason = trouble or ("" if gpu.memory_bytes else f"{tool} does not say how much memory it has")
    return gpu.model_copy(update={"healthy": not reason, "reason": reason})


@dataclass(frozen=True)
class Look:
    cards: tuple[Card, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be found out, and why."""


class Vendor(Protocol):
    """One file of this package each."""

    @property
    def kind(self) -> AcceleratorKind: ...

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        """All cards of this vendor; none if there is neither driver nor tool. One that is sick is listed as that.

        Blocks. ``known``: cards as seen before; of those, what never changes need not be asked again.
        Raises CannotLook.
        """
        ...


UNKNOWN = "unknown-"


def unnamed(kind: AcceleratorKind, machine: str, index: int) -> str:
    """UUID for a card that could not tell its own; unlike that of any card of another host."""
    return f"{UNKNOWN}{kind}-{machine}-{index}"


def placed(kind: AcceleratorKind, machine: str, place: str | int) -> str:
    """UUID for a card that has none: the slot that it is in."""
    return f"{kind}-{machine}-{place}"
