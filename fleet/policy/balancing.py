"""Which of several replicas gets a request."""

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, assert_never

from fleet.policy.ask import Ask
from fleet.policy.least_load import LOOKED_AT, LeastLoad, busyness, some_of
from fleet.policy.prefix_affinity import PrefixAffinity
from fleet.policy.replica import Replica
from fleet.policy.session_affinity import SessionAffinity
from fleet.routes import Balancing

R = TypeVar("R", bound=Replica)


class Balancer(Protocol):
    def choose(self, replicas: Sequence[R], ask: Ask, now: float) -> R:
        """One of ``replicas``, which must not be empty. It is taken to get the request.

        The same calls to two balancers that were made alike are answered alike. A tuple of replicas is recognised
        when it comes again, which saves time.
        """
        ...


def make_balancer(balancing: Balancing, chance: Callable[[], float] = random.random) -> Balancer:
    """``chance``: the next random number, from 0 to below 1."""
    match balancing.policy:
        case "least_load":
            return LeastLoad()
        case "power_of_two":
            return PowerOfTwo(chance)
        case "prefix_affinity":
            return PrefixAffinity(balancing.load_factor)
        case "session_affinity":
            return SessionAffinity(balancing.load_factor)
        case "weighted":
            return Weighted()
        case "round_robin":
            return RoundRobin()
        case _:
            assert_never(balancing.policy)


class RoundRobin:
    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = -1

    def choose(self, replicas: Sequence[R], ask: Ask, now: float) -> R:
        self._turn += 1
        return replicas[self._turn % len(replicas)]


class PowerOfTwo:
    """The less loaded of two that chance names: gateways that know little of each other do not all pick the same."""

    __slots__ = ("_chance",)

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance

    def choose(self, replicas: Sequence[R], ask: Ask, now: float) -> R:
        count = len(replicas)
        if count == 1:
            return replicas[0]
        first = int(self._chance() * count)
        second = int(self._chance() * (count - 1))
        one, other = replicas[first], replicas[second + (second >= first)]
        return other if busyness(other) < busyness(one) else one


class Weighted:
    """Requests in proportion to speed and capacity, whatever is in flight, and as even as can be.

    Each replica has a clock that moves on by the inverse of its weight with each request; whose would show least
    afterwards is next. One that comes, or comes back, starts about where the others are, and does not get what it
    missed.
    """

    __slots__ = ("_now", "_passes", "_turn")

    def __init__(self) -> None:
        self._now = 0.0
        self._passes: dict[str, float] = {}
        self._turn = 0

    def choose(self, replicas: Sequence[R], ask: Ask, now: float) -> R:
        if len(replicas) == 1:
            return replicas[0]
        if len(replicas) > LOOKED_AT:
            self._turn += 1
            replicas = some_of(replicas, self._turn)
        passes, started = self._passes, self._now
        chosen, lowest, steps = replicas[0], float("inf"), 0.0
        for replica in replicas:
            step = 1 / ((replica.capacity or 1) * replica.speed)
            after = max(passes.setdefault(replica.instance_id, started) + step, started)
            if after < lowest:
                chosen, lowest, steps = replica, after, step
        self._now = max(started, lowest - steps)
        passes[chosen.instance_id] = lowest
        if len(passes) > _REMEMBERED:
            self._passes = {id_: at for id_, at in passes.items() if at > self._now}
        return chosen


_REMEMBERED = 4096
