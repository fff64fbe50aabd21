"""The replica with the most room."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from fleet.policy.ask import Ask
from fleet.policy.replica import Replica

FRESH_S = 2.0
"""What an engine said of its load is believed for so long."""
LOOKED_AT = 16
"""Of more replicas than these, so many are looked at, other ones each time: the best of 16 is about the best of all."""


class Loaded(Protocol):
    @property
    def in_flight(self) -> int:
        """Requests that it works on, or that wait in it."""

    @property
    def capacity(self) -> int:
        """Requests that it works on at a time; 0 (not known) counts as 1."""


L = TypeVar("L", bound=Loaded)
R = TypeVar("R", bound=Replica)
T = TypeVar("T")


def least_loaded(candidates: Sequence[L], turn: int) -> L:
    """The candidate with the smallest ``in_flight / capacity``; among equals, ``turn`` says which one.

    With a ``turn`` that grows by one per request, equals are taken one after another.
    ``candidates`` must not be empty.
    """
    best = candidates[0]
    if len(candidates) == 1:
        return best
    load, room = best.in_flight, best.capacity or 1
    equals = [best]
    for candidate in candidates[1:]:
        other_load, other_room = candidate.in_flight, candidate.capacity or 1
        # load / room against other_load / other_room, without rounding
        difference = other_load * room - load * other_room
        if difference < 0:
            load, room = other_load, other_room
            equals = [candidate]
        elif difference == 0:
            equals.append(candidate)
    return equals[turn % len(equals)]


class LeastLoad:
    """By booked tokens over capacity and speed, then by requests over these, then by speed, then by turn.

    Of an engine that said lately how many requests it has, those of other gateways count too; each is taken to be
    as large as our own there.
    """

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, replicas: Sequence[R], ask: Ask, now: float) -> R:
        if len(replicas) == 1:
            return replicas[0]
        turn = self._turn = self._turn + 1
        if len(replicas) > LOOKED_AT:
            replicas = some_of(replicas, turn)
        stale = now - FRESH_S
        lowest = fewest = fastest = float("inf")
        equals: list[R] = []
        for replica in replicas:
            speed = replica.speed
            room = (replica.capacity or 1) * speed
            tokens: float = replica.tokens
            requests = replica.in_flight
            load = replica.load
            if load is not None and load.at > stale and load.in_flight > load.ours:
                others = load.in_flight - load.ours
                tokens += others * (tokens / requests if requests else ask.tokens)
                requests += others
            score = tokens / room
            if score > lowest:
                continue
            share = requests / room
            if score == lowest:
                if share > fewest or (share == fewest and -speed > fastest):
                    continue
                if share == fewest and -speed == fastest:
                    equals.append(replica)
                    continue
            lowest, fewest, fastest = score, share, -speed
            equals = [replica]
        return equals[turn % len(equals)] if len(equals) > 1 else equals[0]


def some_of(replicas: Sequence[T], turn: int) -> list[T]:
    """``LOOKED_AT`` neighbours, of more than so many; the next ones with each turn."""
    start = turn * LOOKED_AT % len(replicas)
    some = list(replicas[start : start + LOOKED_AT])
    return some if len(some) == LOOKED_AT else some + list(replicas[: LOOKED_AT - len(some)])


def busyness(replica: Replica) -> tuple[float, float]:
    """Booked tokens, then requests, over capacity and speed; the smaller, the more room."""
    room = (replica.capacity or 1) * replica.speed
    return replica.tokens / room, replica.in_flight / room
