"""Waiting between attempts: longer each time, and never in step with other hosts."""

import asyncio
import random


def jittered(seconds: float) -> float:
    """Between half of it and the whole."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311


class Pauses:
    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first = self._next = first_s
        self._longest = longest_s

    async def wait(self) -> None:
        await asyncio.sleep(jittered(self._next))
        self._next = min(self._next * 2, self._longest)

    def begin_anew(self) -> None:
        self._next = self._first
