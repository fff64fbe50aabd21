"""The last look at the fleet, kept in memory and cheap to renew. One for each controller process.

It may be behind: a decision on it is only tried, and the ledger's guarded write (``fleet.db.claims``) says whether it
holds. So any number of planners may each have one.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial

from sqlmodel import Session

from fleet.db.fleet_numbers import HostNumbers, Numbers, deployment_of, read_numbers
from fleet.db.fleet_view import SeenHost, labels_here, learn, see
from fleet.db.host_facts import KnownHosts
from fleet.db.session import Database
from fleet.host_client import HostAddress
from fleet.placement.parts import Part, parts_of
from fleet.placement.request import Placement
from fleet.placement.view import HostView, Occupant

MAX_AGE_S = 0.25


@dataclass(frozen=True)
class Changes:
    version: int
    """To ask for what changes after this."""
    hosts: tuple[HostView, ...]
    """New ones, and those of which anything is different."""
    gone: tuple[str, ...]
    """Take no work any more."""


@dataclass
class _Kept:
    numbers: HostNumbers
    seen: SeenHost
    version: int
    ahead: bool = False
    """A claim of ours was put on it before the database was asked again."""


@dataclass(frozen=True)
class _Own:
    """A claim that this process has made."""

    instance_id: str
    fence: int
    placement: Placement
    priority: int


@dataclass(frozen=True)
class _Look:
    numbers: Numbers
    seen: dict[str, SeenHost]
    """Of hosts of which something is different."""


@dataclass
class FleetReader:
    """All methods belong to one event loop; only reading happens in a thread."""

    database: Database
    max_age_s: float = MAX_AGE_S
    clock: Callable[[], float] = time.monotonic
    version: int = 0
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _labels: dict[str, dict[str, str]] = field(default_factory=dict)
    _gone: dict[str, int] = field(default_factory=dict)
    _known: KnownHosts = field(default_factory=KnownHosts)
    _read_at: float | None = None
    _meanwhile: list[_Own] = field(default_factory=list)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self, max_age_s: float | None = None) -> int:
        """Read anew if the last whole look is older than ``max_age_s``. Returns the version of what is seen now."""
        longest = self.max_age_s if max_age_s is None else max_age_s
        asked = self.clock()
        async with self._reading:
            # Whoever waited for another's look that began after they asked has what they want.
            if self._read_at is None or self._read_at < asked - longest:
                await self._read(None)
        return self.version

    async def refresh(self, host_ids: Collection[str]) -> int:
        """Read these hosts anew now (``ClaimLost.hosts``; none named: all). Returns the version."""
        async with self._reading:
            await self._read(set(host_ids) or None)
        return self.version

    def hosts(self, deployment: str = "") -> list[HostView]:
        """As last seen, by id. ``deployment``: whose replicas on each are counted."""
        return [self._kept[host_id].seen.view_for(deployment) for host_id in sorted(self._kept)]

    def host(self, host_id: str) -> HostView | None:
        kept = self._kept.get(host_id)
        return kept.seen.view if kept is not None else None

    def address_of(self, host_id: str) -> HostAddress | None:
        kept = self._kept.get(host_id)
        return kept.seen.address if kept is not None else None

    def changes(self, since: int = 0) -> Changes:
        """What is different from version ``since`` (0: from nothing)."""
        hosts = (kept.seen.view for kept in self._kept.values() if kept.version > since)
        gone = (host_id for host_id, version in self._gone.items() if version > since)
        return Changes(self.version, tuple(hosts), tuple(gone))

    def claimed(self, instance_id: str, fence: int, placement: Placement, priority: int = 1) -> None:
        """Count a claim that was just committed, before the database is asked again. Twice is once."""
        own = _Own(instance_id, fence, placement, priority)
        if self._reading.locked():
            self._meanwhile.append(own)  # the reading may have begun before it was committed
        self._count(own)

    async def _read(self, only: set[str] | None) -> None:
        began, self._meanwhile = self.clock(), []
        look = await self.database.aread(partial(self._ask, only=only))
        self._take_in(look, only)
        for own in self._meanwhile:
            self._count(own)
        if only is None:
            self._read_at = began

    def _ask(self, session: Session, only: set[str] | None) -> _Look:
        numbers = read_numbers(session, only)
        learn(session, numbers, self._known)
        relabelled = numbers.labels != self._labels
        different = (
            h for h, now in numbers.hosts.items() if self._differs(h, now, numbers.labels if relabelled else None)
        )
        return _Look(numbers, {host_id: self._see(host_id, numbers) for host_id in different})

    def _differs(self, host_id: str, now: HostNumbers, labels: dict[str, dict[str, str]] | None) -> bool:
        kept = self._kept.get(host_id)
        if kept is None or kept.ahead or kept.numbers != now:
            return host_id in self._known.facts
        view = kept.seen.view
        return labels is not None and labels_here(view.occupants, labels) != view.deployment_labels

    def _see(self, host_id: str, numbers: Numbers) -> SeenHost:
        return see(self._known.facts[host_id], numbers.hosts[host_id], numbers.labels)

    def _take_in(self, look: _Look, only: set[str] | None) -> None:
        self.version += 1
        for host_id, now in look.numbers.hosts.items():
            kept, seen = self._kept.get(host_id), look.seen.get(host_id)
            if seen is None and kept is not None and kept.ahead:  # a claim came while we read
                seen = self._see(host_id, look.numbers)
            if seen is not None:
                same = kept is not None and kept.seen == seen
                self._kept[host_id] = _Kept(now, seen, kept.version if kept is not None and same else self.version)
                self._gone.pop(host_id, None)
        if only is None:
            self._labels = look.numbers.labels
        for host_id in (set(self._kept) if only is None else only) - set(look.numbers.hosts):
            if self._kept.pop(host_id, None) is not None:
                self._gone[host_id] = self.version
                self._known.forget([host_id])

    def _count(self, own: _Own) -> None:
        self.version += 1
        for part in parts_of(own.placement):
            kept = self._kept.get(part.host_id)
            if kept is not None and not _has(kept.seen.view, own):
                kept.seen, kept.version, kept.ahead = _with(kept.seen, part, own), self.version, True


def _has(view: HostView, own: _Own) -> bool:
    return any((o.instance_id, o.fence) == (own.instance_id, own.fence) for o in view.occupants)


def _with(seen: SeenHost, part: Part, own: _Own) -> SeenHost:
    view, deployment = seen.view, deployment_of(own.instance_id)
    occupant = Occupant(
        instance_id=own.instance_id,
        deployment=deployment,
        fence=own.fence,
        gpu_bytes=tuple((uuid, part.gpu_bytes) for uuid in sorted(part.gpu_uuids)),
        ram_bytes=part.ram_bytes,
        priority=own.priority,
        hosts=len(own.placement.hosts),
    )
    after = replace(
        view,
        ram_free_bytes=view.ram_free_bytes - part.ram_bytes,
        gpus=tuple(
            replace(g, free_bytes=g.free_bytes - part.gpu_bytes) if g.uuid in part.gpu_uuids else g for g in view.gpus
        ),
        ports_free=view.ports_free - len(part.ports),
        occupants=tuple(sorted((*view.occupants, occupant), key=lambda o: (o.instance_id, o.fence))),
    )
    replicas = seen.replicas | {deployment: seen.replicas.get(deployment, 0) + 1}
    return replace(seen, view=after, replicas=replicas)
