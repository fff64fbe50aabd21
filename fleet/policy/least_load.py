"""The replica with the most room."""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Loaded(Protocol):
    @property
    def in_flight(self) -> int:
        """Requests that it works on, or that wait in it."""

    @property
    def capacity(self) -> int:
        """Requests that it works on at a time; 0 (not known) counts as 1."""


L = TypeVar("L", bound=Loaded)


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
