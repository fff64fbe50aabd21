"""Waiting for conditions with a deadline."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(condition: Callable[[], T | None], within: float = 15.0, what: str = "") -> T:
    """What ``condition`` answers as soon as that is true; fails the test after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what or condition}")
        await asyncio.sleep(0.01)
    return answer


async def beats_pass(count: Callable[[], int], more: int = 3) -> None:
    """Until ``count`` has grown by ``more``: whatever the engine's owner wants to do by now, it has done."""
    start = count()
    await eventually(lambda: count() >= start + more, what="heartbeats go on")
