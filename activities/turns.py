"""Who may send a request of a batch now: as many at once, of each model, as there is spare capacity for."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fleet.policy.spare import Spare

_MOST_KNOWN = 1000


class _Line:
    """Those who wait for one model, in the order in which they came."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.spare = Spare()
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        return not self._waiting and self.spare.in_flight == 0

    async def enter(self) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(granted)
        self._grant()
        try:
            await asyncio.wait([granted])
        except asyncio.CancelledError:
            if granted.done():
                self.leave()  # it was given a turn at the same moment
            else:
                self._waiting.remove(granted)
            raise

    def leave(self) -> None:
        self.spare.end()
        self._grant()

    def _grant(self) -> None:
        """Turns to as many as may begin; and again when a pause is over."""
        while self._waiting:
            wait = self.spare.wait(self._clock())
            if wait != 0:
                if wait is not None and self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._go_on)
                return
            self.spare.begin()
            self._waiting.popleft().set_result(None)

    def _go_on(self) -> None:
        self._timer = None
        self._grant()


class Turns:
    """One per process, for all batches."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def turn(self, model: str) -> AsyncIterator[None]:
        """Wait for it, and hold it inside the block."""
        line = self._line(model)
        await line.enter()
        try:
            yield
        finally:
            line.leave()

    def answered(self, model: str) -> None:
        self._line(model).spare.answered()

    def refused(self, model: str, retry_after: float | None) -> None:
        """For want of capacity; ``retry_after`` in seconds."""
        self._line(model).spare.refused(self._clock(), retry_after)

    def limit(self, model: str) -> int:
        return int(self._line(model).spare.limit)

    def _line(self, model: str) -> _Line:
        known = self._lines.get(model)
        if known is None:
            if len(self._lines) >= _MOST_KNOWN:
                self._lines = {m: found for m, found in self._lines.items() if not found.idle}
            known = self._lines[model] = _Line(self._clock)
        return known
