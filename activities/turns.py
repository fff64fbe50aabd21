"""Who may send a request of a batch now: as many at once, of each model, as there is spare capacity for."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fleet.policy.spare import Spare

_MOST_KNOWN = 1000


class _Line:
    """Those who wait for one model, in the order in which they came."""

    def __init__(self) -> None:
        self.spare = Spare()
        self.waiting: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        return not self.waiting and self.spare.in_flight == 0

    def wake(self, now: float) -> None:
        """As many as may begin."""
        free = int(self.spare.limit) - self.spare.in_flight if now >= self.spare.not_before else 0
        while free > 0 and self.waiting:
            first = self.waiting.popleft()
            if not first.done():
                first.set_result(None)
                free -= 1


class Turns:
    """One per process, for all batches."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def turn(self, model: str) -> AsyncIterator[None]:
        """Wait for it, and hold it inside the block."""
        line = self._line(model)
        while (wait := line.spare.wait(self._clock())) != 0:
            await self._wait(line, wait)
        line.spare.begin()
        try:
            yield
        finally:
            line.spare.end()
            line.wake(self._clock())

    def answered(self, model: str) -> None:
        self._line(model).spare.answered()

    def refused(self, model: str, retry_after: float | None) -> None:
        """For want of capacity; ``retry_after`` in seconds."""
        self._line(model).spare.refused(self._clock(), retry_after)

    def limit(self, model: str) -> int:
        return int(self._line(model).spare.limit)

    async def _wait(self, line: _Line, seconds: float | None) -> None:
        woken = asyncio.get_running_loop().create_future()
        line.waiting.append(woken)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(woken, seconds)
        except asyncio.CancelledError:
            line.wake(self._clock())  # whoever is behind must not wait for one that has left
            raise
        finally:
            with suppress(ValueError):
                line.waiting.remove(woken)

    def _line(self, model: str) -> _Line:
        known = self._lines.get(model)
        if known is None:
            if len(self._lines) >= _MOST_KNOWN:
                self._lines = {m: found for m, found in self._lines.items() if not found.idle}
            known = self._lines[model] = _Line()
        return known
