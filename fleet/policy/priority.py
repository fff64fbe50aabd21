"""Levels of priority, and what one deployment may be asked to give. Pure."""

from dataclasses import dataclass
from typing import get_args

from fleet.specs import Priority, PrioritySpec

LEVELS: tuple[str, ...] = get_args(Priority)
"""Lowest first; a level's rank is its place here."""
USUAL = "normal"


def rank(level: str) -> int:
    return LEVELS.index(level)


def level(of_rank: int) -> str:
    return LEVELS[max(0, min(of_rank, len(LEVELS) - 1))]


@dataclass(frozen=True)
class Standing:
    """Of one deployment, now: a change of its priority holds at once, whatever its replicas were placed with."""

    priority: int = 1
    ready: int = 0
    """Replicas that serve and are not asked to go."""
    floor: int = 1
    """So many ready ones are not taken."""
    below_floor: bool = False
    """``critical`` ones may take even those."""
    rolling_out: bool = False

    @classmethod
    def of(cls, spec: PrioritySpec, *, ready: int = 0, rolling_out: bool = False) -> "Standing":
        return cls(
            priority=rank(spec.level),
            ready=ready,
            floor=spec.floor,
            below_floor=spec.below_floor,
            rolling_out=rolling_out,
        )

    def spares(self, taker: int) -> int | None:
        """How many ready replicas one of rank ``taker`` may have; None: all."""
        if self.priority >= taker:
            return 0
        if self.below_floor and taker >= rank("critical"):
            return None
        return max(0, self.ready - self.floor)
