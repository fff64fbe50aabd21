"""Saying what is wrong now and then, not with every attempt."""

import logging
import time
from collections.abc import Callable

_AGAIN_S = 60.0


class Complaints:
    def __init__(self, log: logging.Logger, level: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._level = level
        self._clock = clock
        self._said: tuple[str, float] = ("", 0.0)

    def say(self, text: str) -> None:
        """Logs ``text`` unless it is what was said last, less than a minute ago."""
        last, at = self._said
        if text != last or self._clock() - at >= _AGAIN_S:
            self._log.log(self._level, "%s", text)
            self._said = (text, self._clock())
