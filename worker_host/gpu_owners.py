"""Whose memory is it? Tells our engines from everybody else who uses a card."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil

from fleet.telemetry import EngineStatus, ForeignProcess
from worker_host.detect.card import Card, GpuProcess

_DEEPEST = 64
"""Generations from an engine to the process of it that uses a card."""


@dataclass(frozen=True)
class OwnEngine:
    """An engine that runs here, as far as the machine can tell it from what others run."""

    status: EngineStatus
    pids: frozenset[int] = frozenset()
    """Processes of it, as this machine numbers them; what they started counts too."""
    gpu_uuids: tuple[str, ...] = ()
    memory_bytes: int = 0
    """Claimed on each of its GPUs."""


@dataclass(frozen=True)
class Use:
    """Of one card."""

    own_bytes: int
    foreign: tuple[ForeignProcess, ...] = ()


class Owners:
    """Remembers for one round which processes were ours: one that ends while we look is not somebody else's."""

    def __init__(self) -> None:
        self._roots: set[int] = set()
        self._ours: set[int] = set()

    def begin(self, engines: Sequence[OwnEngine]) -> None:
        """Before the cards are asked: engines that end meanwhile are still known."""
        self._roots = {pid for engine in engines for pid in engine.pids}

    def uses(self, cards: Sequence[Card], engines: Sequence[OwnEngine]) -> dict[str, Use]:
        """By UUID. ``engines``: those that run after the cards were asked."""
        self._roots |= {pid for engine in engines for pid in engine.pids}
        claims: dict[str, int] = {}
        for engine in engines:
            for uuid in engine.gpu_uuids:
                claims[uuid] = claims.get(uuid, 0) + engine.memory_bytes
        pids = {p.pid for card in cards for p in card.processes or ()}
        owners = {pid: self._ours_is(pid) for pid in pids}
        self._ours = {pid for pid, ours in owners.items() if ours}
        return {card.gpu.uuid: _use(card, owners, claims.get(card.gpu.uuid, 0)) for card in cards}

    def _ours_is(self, pid: int) -> bool | None:
        """None: there is no such process (any more, or for us: it may be in another container)."""
        if not psutil.pid_exists(pid):
            return True if pid in self._ours or pid in self._roots else None
        return any(ancestor in self._roots for ancestor in _ancestors(pid)) or _session(pid) in self._roots


def _use(card: Card, owners: dict[int, bool | None], claimed: int) -> Use:
    if card.processes is None:
        return Use(own_bytes=claimed)
    own = [p for p in card.processes if owners[p.pid]]
    known = sum(p.memory_bytes or 0 for p in own)
    if any(p.memory_bytes is None for p in own):
        known = max(known, claimed)
    # Those that we cannot see may be ours, but not more of them than ours were given.
    unseen = sum(p.memory_bytes or 0 for p in card.processes if owners[p.pid] is None)
    known = max(known, min(known + unseen, claimed))
    foreign = tuple(_foreign(card.gpu.uuid, p) for p in card.processes if owners[p.pid] is False)
    return Use(own_bytes=known, foreign=foreign)


def _foreign(uuid: str, process: GpuProcess) -> ForeignProcess:
    name = process.name or _name(process.pid)
    return ForeignProcess(pid=process.pid, name=name, gpu_uuid=uuid, memory_bytes=process.memory_bytes or 0)


def _ancestors(pid: int) -> Iterator[int]:
    """Itself first."""
    for _ in range(_DEEPEST):
        yield pid
        try:
            pid = psutil.Process(pid).ppid()
        except psutil.Error:
            return
        if pid <= 1:
            return


def _session(pid: int) -> int | None:
    """An engine leads a session of its own: one whose parent has ended is still in it."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name().replace("\x00", "")[:200]
    except psutil.Error:
        return ""
