"""The replicas of one target, and the requests that wait for one of them.

Late binding: a replica is given as many requests as it works well on, and further ones wait here for whichever is free
first, by priority and fairly between tenants, instead of in the queue of an engine that was picked too early.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Generic, Literal, Protocol, TypeVar

from api.gateway.standing import Standing
from fleet.policy.ask import Ask
from fleet.policy.balancing import Balancer, make_balancer
from fleet.policy.fair_queue import Entry, FairQueue
from fleet.policy.outlier import Fate, Outcome
from fleet.policy.prefill_rate import speeds
from fleet.policy.replica import EngineLoad, Replica
from fleet.policy.retry_budget import RetryBudget
from fleet.policy.shedding import is_shed
from fleet.policy.split import Split
from fleet.routes import Balancing, QueueSpec


class Upstream(Replica, Protocol):
    """One engine under one fence. The pool does the booking: nobody else writes what can be written here,
    but ``avoided_until``."""

    in_flight: int
    tokens: int
    speed: float
    prefill_rate: float
    load: EngineLoad | None
    avoided_until: float
    """It could not be reached: others are asked until then, while there are others."""
    standing: Standing

    @property
    def launch(self) -> int: ...

    @property
    def suspect(self) -> bool: ...

    def note_trial(self) -> None:
        """A request goes to it."""


U = TypeVar("U", bound=Upstream)


@dataclass(frozen=True, slots=True)
class Refused:
    reason: Literal["full", "shed", "too_long"]
    """The queue is full; it was of a kind that is turned away early; it waited as long as it may."""
    retry_after_s: int

    @property
    def status(self) -> int:
        return 503 if self.reason == "too_long" else 429


class Ticket(Generic[U]):
    """One request that waits. Exactly one of both callbacks is called, unless it is cancelled before."""

    __slots__ = ("ask", "entry", "on_ready", "on_refused", "since", "tried", "upstream")

    def __init__(
        self,
        ask: Ask,
        tried: Sequence[U],
        on_ready: Callable[[U], None],
        on_refused: Callable[[Refused], None],
        *,
        now: float,
        expires: float,
    ) -> None:
        self.ask = ask
        self.tried = tried
        self.on_ready = on_ready
        self.on_refused = on_refused
        self.since = now
        self.upstream: U | None = None
        """That it got, booked; whoever asked gives it back."""
        self.entry: Entry[Ticket[U]] = Entry(self, ask.tenant, ask.priority, ask.tokens, expires)

    @property
    def waits(self) -> bool:
        return self.entry.waits


class Pool(Generic[U]):
    """Synchronous, for one thread. Times are seconds of one monotonic clock that callers read.

    A request keeps its pool, so that it finds the replicas that there are by then. What ``take`` or a ticket hands out
    is booked, and must be given back exactly once.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self.upstreams: tuple[U, ...] = ()
        """Those that take new requests; suspect ones too."""
        self.budget = RetryBudget()
        self.in_flight = 0
        """Requests that it has handed out."""
        self._chance = chance
        self._balancing = Balancing()
        self._balancers: dict[int, Balancer] = {}
        """By launch, while requests are split: the rhythm between launches must not favour a replica of one."""
        self._traffic: Mapping[int, int] = {}
        self._split = Split({})
        self._fixed: int | None = None
        self._max_wait_s = 0.0
        self._queue: FairQueue[Ticket[U]] = FairQueue(0)
        self._best: tuple[U, ...] = ()
        """Of all, those that requests should go to, with room or without."""
        self._open: tuple[U, ...] = ()
        """Of these, those with room; some may have lost it to another pool."""
        self._away = False
        """Some are left alone for now."""
        self._look_at = -inf
        """When the first of these may be asked again."""
        self._serving = False
        self._next: tuple[Ticket[U], U] | None = None
        self._given_back_at = 0.0
        self._gap = 1.0
        """Seconds from one request's end to the next one's, on average lately."""

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def update(
        self,
        upstreams: Sequence[U],
        now: float,
        *,
        traffic: Mapping[int, int] | None = None,
        balancing: Balancing | None = None,
        queue: QueueSpec | None = None,
    ) -> None:
        """Take over what the table says now. ``traffic``: weights by launch; empty: all alike."""
        traffic, balancing, queue = traffic or {}, balancing or Balancing(), queue or QueueSpec()
        self._adopt(tuple(upstreams))
        if balancing != self._balancing or traffic != self._traffic:  # else the shares go on where they are
            self._balancing, self._traffic = balancing, traffic
            self._split, self._balancers = Split(traffic), {}
        self._fixed, self._max_wait_s, self._queue.most = queue.in_flight, queue.max_wait_s, queue.max_waiting
        self.changed(now)

    def close(self) -> None:
        """Nothing will come any more; what is handed out may still be given back."""
        self._adopt(())

    def take(self, ask: Ask, tried: Sequence[U], now: float) -> U | None:
        """The one to ask now, which is none of ``tried``; None: all that should be asked have as much as they can do.

        When there are no ``others(tried)``, that stays so until the table changes.
        """
        if now >= self._look_at:
            self.changed(now)
        upstream = self._find(ask, tried, now)
        if upstream is not None:
            self._book(upstream, ask, now)
        return upstream

    def others(self, tried: Sequence[U]) -> bool:
        """Whether there is one that is none of ``tried``."""
        return any(upstream not in tried for upstream in self.upstreams)

    def may_retry(self, now: float) -> bool:
        """Whether the budget has one more retry; True spends it."""
        return self.budget.take(now, self.in_flight + self.waiting)

    def enqueue(
        self,
        ask: Ask,
        on_ready: Callable[[U], None],
        on_refused: Callable[[Refused], None],
        now: float,
        tried: Sequence[U] = (),
    ) -> Ticket[U]:
        """Wait until ``take`` would give one. Callbacks may come before this returns, and may call the pool."""
        ticket = Ticket(ask, tried, on_ready, on_refused, now=now, expires=now + self._max_wait_s)
        if is_shed(ask.priority, self.waiting, self.in_flight, self._chance() if ask.priority < 0 else 0.0):
            on_refused(self._refusal("shed"))
        elif self._queue.push(ticket.entry) or self._displace(ticket):
            self._serve(now)
        else:
            on_refused(self._refusal("full"))
        return ticket

    def cancel(self, ticket: Ticket[U]) -> bool:
        """Whoever asked left. False: it did not wait any more; if it has an ``upstream``, that must be given back."""
        return self._queue.remove(ticket.entry)

    def first_byte(self, upstream: U, ask: Ask, seconds: float, now: float) -> None:
        """A streamed answer began so long after it was sent: from this, limits, rates and speeds are learned.

        Not for answers that come whole: their first byte is their last.
        """
        standing = upstream.standing
        standing.prefill_rate.note(ask.prompt_tokens, seconds)
        upstream.prefill_rate = standing.prefill_rate.value
        if standing.limit.note_first_byte(ask.prompt_tokens, seconds, upstream.in_flight, now):
            standing.tell_changed(now)

    def heard(self, upstream: U, load: EngineLoad, now: float) -> None:
        """An engine, or the proxy in front of it, said of its load."""
        upstream.load = load
        if upstream.standing.limit.note_load(load, upstream.in_flight):
            upstream.standing.tell_changed(now)

    def give_back(self, upstream: U, ask: Ask, outcome: Outcome, now: float) -> None:
        """The request ended, however it did. May call back those that wait."""
        standing = upstream.standing
        changed = standing.outlier.note(outcome, now)
        if outcome.fate is Fate.OVERLOADED:
            changed = standing.limit.note_overload(upstream.in_flight) or changed
        upstream.in_flight -= 1
        upstream.tokens -= ask.prompt_tokens + ask.new_tokens
        self.in_flight -= 1
        self._gap += (min(now - self._given_back_at, 60.0) - self._gap) * 0.05
        self._given_back_at = now
        if changed or (self._away and outcome.fate is Fate.ANSWERED):
            standing.tell_changed(now)
        else:
            standing.tell_returned(upstream.instance_id, now)

    def sweep(self, now: float) -> None:
        """To be called about once a second: ends what has waited too long, and looks at who is how fast."""
        for entry in self._queue.expire(now):
            entry.what.on_refused(self._refusal("too_long"))
        for upstream, speed in zip(self.upstreams, speeds([u.prefill_rate for u in self.upstreams]), strict=True):
            upstream.speed = speed
            if upstream.standing.limit.sweep(now):
                upstream.standing.tell_changed(now)
        if self._away or self.waiting:
            self.changed(now)

    def returned(self, instance_id: str, now: float) -> None:
        open_ = self._open
        if len(open_) != len(self._best) and not any(u.instance_id == instance_id for u in open_):
            self._open = tuple([u for u in self._best if u.in_flight < self._limit(u)])
        if self._queue:
            self._serve(now)

    def changed(self, now: float) -> None:
        away = [until for until in map(_away_until, self.upstreams) if until > now]
        self._away = bool(away)
        self._look_at = min(away, default=inf)
        self._best = self._preferred(self.upstreams, now)
        self._open = tuple([u for u in self._best if u.in_flight < self._limit(u)])
        if self._queue:
            self._serve(now)

    def _adopt(self, upstreams: tuple[U, ...]) -> None:
        for gone in self.upstreams:
            if gone not in upstreams:
                gone.standing.interested.remove(self)
        for upstream in upstreams:
            upstream.standing.limit.resize(upstream.capacity)
            if upstream not in self.upstreams:
                upstream.standing.interested.append(self)
        self.upstreams = upstreams

    def _find(self, ask: Ask, tried: Sequence[U], now: float) -> U | None:
        if tried:
            left = self._preferred([u for u in self.upstreams if u not in tried], now)
            left = tuple([u for u in left if u.in_flight < self._limit(u)])
            return self._choose(left, ask, now) if left else None
        if not self._open:
            return None
        upstream = self._choose(self._open, ask, now)
        if upstream.avoided_until <= now and upstream.in_flight < self._limit(upstream):
            return upstream
        self._look_again(now)
        return self._choose(self._open, ask, now) if self._open else None

    def _look_again(self, now: float) -> None:
        """As ``changed``, without serving: it is called while somebody is being served."""
        serving, self._serving = self._serving, True
        try:
            self.changed(now)
        finally:
            self._serving = serving

    def _choose(self, candidates: Sequence[U], ask: Ask, now: float) -> U:
        if len(candidates) == 1:
            return candidates[0]
        launch = 0
        if self._traffic:
            candidates = self._split.narrow(candidates)
            launch = candidates[0].launch
        balancer = self._balancers.get(launch)
        if balancer is None:
            balancer = self._balancers[launch] = make_balancer(self._balancing, self._chance)
        return balancer.choose(candidates, ask, now)

    def _book(self, upstream: U, ask: Ask, now: float) -> None:
        upstream.in_flight += 1
        upstream.tokens += ask.prompt_tokens + ask.new_tokens
        self.in_flight += 1
        upstream.note_trial()
        if upstream.in_flight >= self._limit(upstream):
            self._open = tuple([u for u in self._open if u is not upstream])
        outlier = upstream.standing.outlier
        if outlier.on_trial:
            outlier.begin(now)
            self._look_again(now)

    def _preferred(self, upstreams: Sequence[U], now: float) -> tuple[U, ...]:
        """Availability comes first: who is left alone, without weight or suspect serves when all are."""
        left = [u for u in upstreams if _away_until(u) <= now] or upstreams
        if self._traffic:
            left = [u for u in left if self._traffic.get(u.launch, 0) > 0] or left
        return tuple([u for u in left if not u.suspect] or left)

    def _limit(self, upstream: U) -> int:
        return self._fixed or upstream.standing.limit.value

    def _serve(self, now: float) -> None:
        """Hand out what there is to those who wait. A callback may give back at once: it is served by this loop."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._queue.pop(lambda entry: self._can_go(entry.what, now)) and self._next is not None:
                ticket, upstream = self._next
                self._book(upstream, ticket.ask, now)
                ticket.upstream = upstream
                ticket.on_ready(upstream)
        finally:
            self._serving = False

    def _can_go(self, ticket: Ticket[U], now: float) -> bool:
        upstream = self._find(ticket.ask, ticket.tried, now)
        self._next = None if upstream is None else (ticket, upstream)
        return upstream is not None

    def _displace(self, ticket: Ticket[U]) -> bool:
        """Of a full queue, somebody less important goes."""
        displaced = self._queue.yield_place(ticket.ask.priority)
        if displaced is None:
            return False
        self._queue.push(ticket.entry)
        displaced.what.on_refused(self._refusal("full"))
        return True

    def _refusal(self, reason: Literal["full", "shed", "too_long"]) -> Refused:
        return Refused(reason, min(max(ceil(self.waiting * self._gap), 1), 60))


def _away_until(upstream: Upstream) -> float:
    return max(upstream.avoided_until, upstream.standing.outlier.until)
