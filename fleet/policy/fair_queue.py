"""Who is next: by priority, and among equals so that all tenants get as many tokens. Bounded. Pure; time is given."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

LOOKED_AT = 16
"""So many are asked whether they can go now, before nobody is taken to be able to."""
P = TypeVar("P")


@dataclass(eq=False, slots=True)
class Entry(Generic[P]):
    what: P
    tenant: str = ""
    priority: int = 0
    """Higher ones go first, always."""
    tokens: int = 1
    """What it will cost; at least 1 is counted."""
    expires: float = float("inf")
    waits: bool = field(default=False, init=False)
    """It is in a queue."""


class FairQueue(Generic[P]):
    """Strict priorities; within one, start-time fair queueing over tenants by tokens; one tenant's own in turn.

    A tenant's clock moves on by the tokens of each request that is taken out, and whose clock shows least is next. A
    tenant that had nothing to ask begins at the clock of who was served last: it gets no more for having been away.
    Every operation is O(log n).
    """

    def __init__(self, most: int) -> None:
        self.most = most
        """Entries; lowering it turns nobody out."""
        self._classes: dict[int, _Class[P]] = {}
        self._priorities: list[int] = []
        """Highest first."""
        self._expiring: list[tuple[float, int, Entry[P]]] = []
        """A heap; entries that left are still in it."""
        self._count = 0
        self._turn = 0

    def __len__(self) -> int:
        return self._count

    def push(self, entry: Entry[P]) -> bool:
        """False: there is no room."""
        if self._count >= self.most:
            return False
        self._turn += 1
        if entry.priority not in self._classes:
            self._classes[entry.priority] = _Class()
            self._priorities = sorted(self._classes, reverse=True)
        self._classes[entry.priority].push(entry, self._turn)
        entry.waits = True
        self._count += 1
        if entry.expires < float("inf"):
            heappush(self._expiring, (entry.expires, self._turn, entry))
        return True

    def pop(self, can_take: Callable[[Entry[P]], bool]) -> Entry[P] | None:
        """The first one that ``can_take`` says yes to, of those that are looked at; that is asked nothing after."""
        left = LOOKED_AT
        for priority in self._priorities:
            entry, left = self._classes[priority].pop(can_take, left)
            if entry is not None:
                self._gone(entry)
                return entry
            if left <= 0:
                break
        return None

    def remove(self, entry: Entry[P]) -> bool:
        """False: it was not waiting any more."""
        if not entry.waits:
            return False
        self._classes[entry.priority].remove(entry)
        self._gone(entry)
        return True

    def expire(self, now: float) -> list[Entry[P]]:
        """Takes out those whose time is over."""
        over = []
        expiring = self._expiring
        while expiring and (expiring[0][0] <= now or not expiring[0][2].waits):
            entry = heappop(expiring)[2]
            if self.remove(entry):
                over.append(entry)
        return over

    def yield_place(self, priority: int) -> Entry[P] | None:
        """Takes out the newest of the least important, if that is less important than ``priority``."""
        for lowest in reversed(self._priorities):
            if lowest >= priority:
                return None
            entry = self._classes[lowest].newest()
            if entry is not None:
                self.remove(entry)
                return entry
        return None

    def _gone(self, entry: Entry[P]) -> None:
        entry.waits = False
        self._count -= 1
        if len(self._classes[entry.priority]) == 0 and len(self._priorities) > _KEPT_CLASSES:
            del self._classes[entry.priority]
            self._priorities.remove(entry.priority)
        if len(self._expiring) > 2 * self._count + 64:
            self._expiring = [item for item in self._expiring if item[2].waits]
            heapify(self._expiring)


@dataclass(slots=True)
class _Tenant(Generic[P]):
    clock: float
    entries: "OrderedDict[Entry[P], None]" = field(default_factory=OrderedDict)
    queued: bool = False


class _Class(Generic[P]):
    """One priority."""

    def __init__(self) -> None:
        self._clock = 0.0
        self._tenants: dict[str, _Tenant[P]] = {}
        self._heap: list[tuple[float, int, _Tenant[P]]] = []
        """Tenants with entries, each once; some may have lost theirs."""
        self._entries: OrderedDict[Entry[P], None] = OrderedDict()
        """All, in the order in which they came."""
        self._forget_at = _TENANTS

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, entry: Entry[P], turn: int) -> None:
        if not self._entries or len(self._tenants) >= self._forget_at:
            self._forget_idle()
        tenant = self._tenants.get(entry.tenant)
        if tenant is None:
            tenant = self._tenants[entry.tenant] = _Tenant(self._clock)
        self._entries[entry] = None
        tenant.entries[entry] = None
        if not tenant.queued:
            tenant.clock = max(tenant.clock, self._clock)
            tenant.queued = True
            heappush(self._heap, (tenant.clock, turn, tenant))

    def remove(self, entry: Entry[P]) -> None:
        del self._entries[entry]
        del self._tenants[entry.tenant].entries[entry]

    def newest(self) -> Entry[P] | None:
        return next(reversed(self._entries), None)

    def pop(self, can_take: Callable[[Entry[P]], bool], looks: int) -> tuple[Entry[P] | None, int]:
        """And how many looks are left."""
        aside: list[tuple[float, int, _Tenant[P]]] = []
        found = None
        while self._heap and looks > 0 and found is None:
            item = heappop(self._heap)
            tenant = item[2]
            if not tenant.entries:
                tenant.queued = False
                continue
            for entry in _first(tenant.entries, looks):
                looks -= 1
                if can_take(entry):
                    found = entry
                    break
            if found is None:
                aside.append(item)
            else:
                self._serve(found, tenant, item[1])
        for item in aside:
            heappush(self._heap, item)
        return found, looks

    def _serve(self, entry: Entry[P], tenant: _Tenant[P], turn: int) -> None:
        self.remove(entry)
        self._clock = max(self._clock, tenant.clock)
        tenant.clock += max(1, entry.tokens)
        tenant.queued = bool(tenant.entries)
        if tenant.queued:
            heappush(self._heap, (tenant.clock, turn, tenant))

    def _forget_idle(self) -> None:
        """Of tenants that ask nothing, only those that are ahead have something to be remembered for, for a while."""
        if not self._entries:
            self._clock = max((tenant.clock for tenant in self._tenants.values()), default=self._clock)
            self._tenants = {}
            self._heap = []
        if len(self._tenants) < self._forget_at:
            return
        kept = {name: t for name, t in self._tenants.items() if t.queued or t.clock > self._clock}
        if len(kept) > _TENANTS:
            kept = {name: t for name, t in kept.items() if t.queued}
        self._tenants = kept
        self._forget_at = max(_TENANTS, 2 * len(kept))


def _first(entries: "OrderedDict[Entry[P], None]", most: int) -> Iterator[Entry[P]]:
    for entry, _ in zip(entries, range(most), strict=False):
        yield entry


_TENANTS = 1024
"""That are remembered although they ask nothing."""
_KEPT_CLASSES = 16
