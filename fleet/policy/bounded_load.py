"""How far affinity may load one replica more than the others."""

from collections.abc import Sequence
from math import ceil

from fleet.policy.replica import Replica

FEW = 2
"""So many requests no engine finds too many, as long as it works on more than one at a time."""


def level(replicas: Sequence[Replica], factor: float) -> float:
    """Requests for each unit of capacity and speed, at ``factor`` times the mean; the next request is included."""
    room = sum([(replica.capacity or 1) * replica.speed for replica in replicas])
    return factor * (sum([replica.in_flight for replica in replicas]) + 1) / room


def bound(replica: Replica, at_level: float) -> int:
    """Requests that it may have at most, for affinity's sake."""
    return max(ceil(at_level * (replica.capacity or 1) * replica.speed), few(replica))


def few(replica: Replica) -> int:
    """With fewer requests than these, it may always have one more."""
    return 1 if replica.capacity == 1 else FEW


def has_room(replica: Replica, replicas: Sequence[Replica], factor: float) -> bool:
    """Whether one more request stays within its bound."""
    requests = replica.in_flight
    return requests < few(replica) or requests < bound(replica, level(replicas, factor))
