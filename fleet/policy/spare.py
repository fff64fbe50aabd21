"""How many requests may be in flight at once without being in anybody's way: found out by asking.

More as long as answers come; half, and a pause, when one is refused for want of capacity.
"""

from dataclasses import dataclass

FIRST = 4.0
MOST = 64.0
LONGEST_PAUSE_S = 60.0
FIRST_PAUSE_S = 1.0


@dataclass
class Spare:
    """For one model. Times are seconds of any clock that does not go back."""

    limit: float = FIRST
    in_flight: int = 0
    not_before: float = 0.0
    refusals: int = 0
    """In a row."""

    def wait(self, now: float) -> float | None:
        """Seconds until the next one may begin; 0: now. None: only when another one has ended."""
        if now < self.not_before:
            return self.not_before - now
        return 0.0 if self.in_flight < int(self.limit) else None

    def begin(self) -> None:
        self.in_flight += 1

    def end(self) -> None:
        self.in_flight -= 1

    def answered(self) -> None:
        """One more for each round of as many as there may be."""
        self.refusals = 0
        self.limit = min(MOST, self.limit + 1 / self.limit)

    def refused(self, now: float, retry_after: float | None) -> None:
        """``retry_after``: seconds, as the refusal says. Those that were sent together count as one refusal."""
        if now >= self.not_before:
            self.refusals += 1
            self.limit = max(1.0, self.limit / 2)
        pause = retry_after if retry_after is not None else FIRST_PAUSE_S * 2 ** min(self.refusals - 1, 10)
        self.not_before = max(self.not_before, now + min(max(pause, 0.05), LONGEST_PAUSE_S))
