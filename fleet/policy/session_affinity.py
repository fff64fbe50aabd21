"""Requests of one session go to one replica, as long as that has not too many more than the others."""

from collections.abc import Sequence
from typing import TypeVar

from fleet.policy.ask import Ask
from fleet.policy.bounded_load import bound, few, level
from fleet.policy.consistent_hash import Roster, key_of
from fleet.policy.least_load import LeastLoad
from fleet.policy.replica import Replica

R = TypeVar("R", bound=Replica)


class SessionAffinity:
    """A consistent hash with bounded load: nothing is remembered, so all gateways send a session to the same place."""

    __slots__ = ("_factor", "_least", "_roster")

    def __init__(self, load_factor: float) -> None:
        self._factor = load_factor
        self._least = LeastLoad()
        self._roster = Roster()

    def choose(self, replicas: Sequence[R], ask: Ask, now: float) -> R:
        if len(replicas) == 1:
            return replicas[0]
        if not ask.session:
            return self._least.choose(replicas, ask, now)
        self._roster.read(replicas)
        order = self._roster.order(key_of(ask.session))
        home = replicas[next(order)]
        if home.in_flight < few(home):
            return home
        at = level(replicas, self._factor)
        if home.in_flight < bound(home, at):
            return home
        # Not all can be above their share: there always is one.
        return next(r for r in map(replicas.__getitem__, order) if r.in_flight < bound(r, at))
