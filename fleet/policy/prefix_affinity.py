"""Requests that begin alike go to the same replica, until it is saturated."""

from collections.abc import Sequence
from typing import TypeVar

from fleet.policy.ask import Ask
from fleet.policy.bounded_load import has_room
from fleet.policy.consistent_hash import Roster, spread
from fleet.policy.least_load import LeastLoad, busyness
from fleet.policy.prefix import share
from fleet.policy.prefix_index import PrefixIndex
from fleet.policy.replica import Replica

R = TypeVar("R", bound=Replica)

WORTH = 0.25
"""A smaller share of a prompt is not worth to be met again: many begin with the same few words."""
PATIENCE_S = 2.0
"""Another replica must be so much sooner, and by what it would have to do again, before affinity ends."""
_HOME_BLOCK = 2
"""By the first three blocks (512 bytes) a prompt's home is found: further on, one's own question begins."""


class PrefixAffinity:
    """Whoever got most of a prompt's beginning lately, if that is worth it and affordable; else by least load.

    Affordable: with at most ``load_factor`` times its share of the requests, and an estimated wait (booked tokens by
    measured prefill rate) that is not longer than the shortest one by more than ``PATIENCE_S`` and what the others
    would have to compute again. A beginning that nobody had goes to the least loaded; among idle ones to its home
    by a consistent hash, so that gateways that know nothing of each other agree.
    """

    __slots__ = ("_factor", "_index", "_least", "_roster")

    def __init__(self, load_factor: float, index: PrefixIndex | None = None) -> None:
        self._factor = load_factor
        self._index = PrefixIndex() if index is None else index
        self._least = LeastLoad()
        self._roster = Roster()

    def choose(self, replicas: Sequence[R], ask: Ask, now: float) -> R:
        if len(replicas) == 1:
            return replicas[0]
        if not ask.prefix:
            return self._least.choose(replicas, ask, now)
        self._roster.read(replicas)
        had, holders = self._index.find(ask.prefix, self._roster.positions, now)
        chosen = self._met_again(replicas, ask, had, holders) if had else None
        if chosen is None:
            chosen = self._anew(replicas, ask, now)
        self._index.add(ask.prefix, chosen.instance_id, had)
        return chosen

    def _met_again(self, replicas: Sequence[R], ask: Ask, had: int, holders: list[str]) -> R | None:
        worth = share(had, len(ask.prefix))
        if worth < WORTH:
            return None
        positions = self._roster.positions
        replica = replicas[positions[holders[0]]]
        if len(holders) > 1:
            replica = min((replicas[positions[id_]] for id_ in holders), key=busyness)
        if not has_room(replica, replicas, self._factor) or _saturated(replica, replicas, worth * ask.prompt_tokens):
            return None
        return replica

    def _anew(self, replicas: Sequence[R], ask: Ask, now: float) -> R:
        least = self._least.choose(replicas, ask, now)
        if least.in_flight:
            return least
        home = replicas[self._roster.home(spread(ask.prefix[min(_HOME_BLOCK, len(ask.prefix) - 1)]))]
        return home if not home.in_flight and home.speed == least.speed else least


def _saturated(replica: Replica, replicas: Sequence[Replica], saved_tokens: float) -> bool:
    """Whether another would begin to answer sooner, although it has all to compute again."""
    rate = replica.prefill_rate
    if not rate:
        return False
    bound = PATIENCE_S + saved_tokens / rate
    wait = replica.tokens / rate
    if wait <= bound:
        return False
    return wait - min(other.tokens / (other.prefill_rate or rate) for other in replicas) > bound
