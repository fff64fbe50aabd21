"""What this host says of itself every ten seconds, and what it shows to Prometheus."""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from fleet.inventory import Gpu, Inventory
from fleet.settings import Settings
from fleet.telemetry import GpuStatus, HostStatus, Refusal
from worker_host import host_metrics
from worker_host.detect import known, machine
from worker_host.detect.card import Card, Look
from worker_host.detect.cards import Cards
from worker_host.detect.inventory import inventory_of
from worker_host.detect.vendors import all_vendors
from worker_host.gpu_owners import OwnEngine, Owners, Use

LOOK_S = 1.5
"""A status waits no longer for the cards."""
_REGISTER_LOOK_S = 5.0
"""Engines may be waiting for this process to go on. Until a slow driver has answered, cards are as they were before."""
_FIRST_LOOK_S = 60.0
_MOST = 1000
"""Refusals and foreign processes in one status."""
_ENGINES_MOST = 10_000


def _nothing() -> Sequence[Refusal]:
    return ()


def _nowhere() -> str:
    return ""


@dataclass(frozen=True)
class Sources:
    """What others in this process know. All are called from a thread."""

    engines: Callable[[], Sequence[OwnEngine]]
    refusals: Callable[[], Sequence[Refusal]] = _nothing
    """Those since it was last asked; each is told once."""
    address: Callable[[], str] = _nowhere


class Telemetry:
    """Blocks; to be called in a thread. Calls from several at once take turns."""

    def __init__(
        self, settings: Settings, name: str, folder: Path, sources: Sources, cards: Cards | None = None
    ) -> None:
        """``folder``: where this host keeps its things."""
        self._settings = settings
        self._name = name
        self._sources = sources
        self._memory = folder / "cards.json"
        self._cards = cards or Cards(all_vendors(watch=True), known.read(self._memory))
        self._owners = Owners()
        self._lock = threading.Lock()
        self._written: tuple[Gpu, ...] | None = None
        self._gpus: tuple[Gpu, ...] = ()
        self._unheard: list[Refusal] = []
        self._last: tuple[HostStatus, tuple[Gpu, ...]] | None = None
        psutil.cpu_percent()  # its first answer is always 0

    def inventory(self) -> Inventory:
        """What this host is and has now. A host that knows no cards yet waits for slow drivers."""
        with self._lock:
            longest = _REGISTER_LOOK_S if self._cards.known() else _FIRST_LOOK_S
            return inventory_of(self._settings, self._name, self._look(longest))

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """All that were there at the last look, those included that were added since this process began. No waiting."""
        return self._gpus

    def take(self) -> HostStatus:
        """How this host is now. What it refused is told once: give the status to ``unheard`` if nobody got it."""
        with self._lock:
            return self._take()[0]

    def unheard(self, status: HostStatus) -> None:
        """Nobody got this status: what it tells of refusals is told again by the next."""
        with self._lock:
            self._unheard = [*status.refusals, *self._unheard][:_MOST]

    def metrics(self) -> bytes:
        """For Prometheus: the last status that was taken, or the first one."""
        with self._lock:
            status, gpus = self._last or self._first()
            return host_metrics.render(status, gpus, machine.ram_bytes())

    def _first(self) -> tuple[HostStatus, tuple[Gpu, ...]]:
        status, gpus = self._take()
        self._unheard = list(status.refusals)
        return status, gpus

    def _take(self) -> tuple[HostStatus, tuple[Gpu, ...]]:
        self._owners.begin(self._sources.engines())
        look = self._look(LOOK_S)
        engines = self._sources.engines()
        uses = self._owners.uses(look.cards, engines)
        status = HostStatus(
            boot_id=machine.boot_id(),
            inventory=inventory_of(self._settings, self._name, look).fingerprint(),
            at=datetime.now(UTC),
            address=self._sources.address(),
            gpus=tuple(_with_foreign(card, uses[card.gpu.uuid]) for card in look.cards),
            engines=tuple(engine.status for engine in engines)[:_ENGINES_MOST],
            foreign=tuple(process for use in uses.values() for process in use.foreign)[:_MOST],
            refusals=self._refusals(),
            cpu_utilization=min(1.0, max(0.0, psutil.cpu_percent() / 100)),
            ram_used_bytes=_ram_used(),
            disk_free_bytes=machine.disk(self._settings.home)[1],
            load=_load(),
        )
        self._last = status, tuple(card.gpu for card in look.cards)
        return self._last

    def _look(self, longest_s: float) -> Look:
        look = self._cards.look(longest_s)
        self._gpus = tuple(card.gpu for card in look.cards)
        remembered = self._cards.known()
        if remembered != self._written:
            known.write(self._memory, remembered)
            self._written = remembered
        return look

    def _refusals(self) -> tuple[Refusal, ...]:
        told = [*self._unheard, *self._sources.refusals()]
        self._unheard = []
        return tuple(told[:_MOST])


def _with_foreign(card: Card, use: Use) -> GpuStatus:
    used = card.status.memory_used_bytes
    if used is None or card.gpu.partitioned:
        return card.status
    return card.status.model_copy(update={"foreign_bytes": max(0, used - use.own_bytes)})


def _ram_used() -> int:
    ram = psutil.virtual_memory()
    return int(ram.total - ram.available)


def _load() -> float | None:
    with contextlib.suppress(OSError):
        return os.getloadavg()[0]
    return None
