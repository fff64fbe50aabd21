"""What a gateway has learned about one engine; shared by all pools that it is in."""

from typing import Protocol

from fleet.policy.in_flight_limit import LearnedLimit
from fleet.policy.outlier import Outlier
from fleet.policy.prefill_rate import PrefillRate


class Interested(Protocol):
    """Somebody who may have requests that wait for the engine."""

    def returned(self, instance_id: str, now: float) -> None:
        """It has one request less."""

    def changed(self, now: float) -> None:
        """Its limit, or whether it may be asked, is another."""


class Standing:
    """Lives as long as its engine, under one fence."""

    __slots__ = ("interested", "limit", "outlier", "prefill_rate")

    def __init__(self) -> None:
        self.limit = LearnedLimit()
        self.outlier = Outlier()
        self.prefill_rate = PrefillRate()
        self.interested: list[Interested] = []

    def tell_returned(self, instance_id: str, now: float) -> None:
        interested = self.interested
        if len(interested) == 1:
            interested[0].returned(instance_id, now)
            return
        for one in tuple(interested):
            one.returned(instance_id, now)
        self._next_first()

    def tell_changed(self, now: float) -> None:
        for one in tuple(self.interested):
            one.changed(now)
        self._next_first()

    def _next_first(self) -> None:
        """Who was told first may have taken all there was."""
        if len(self.interested) > 1:
            self.interested.append(self.interested.pop(0))
