"""Is the new revision as good as the old one? From what gateways counted. Pure."""

from enum import StrEnum

from fleet.model import Record


class Reading(Record):
    """Counters of the engines of one launch; they only grow, so a period is the difference of two."""

    requests: int = 0
    errors: int = 0
    latency: tuple[int, ...] = ()
    """By bucket of ``fleet.policy.latency``; empty: nothing was counted."""


class Judgement(StrEnum):
    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"
    """Too few requests to say."""
