"""How fast a replica reads prompts, from when its answers begin. Pure."""

from collections.abc import Sequence
from math import log2

FEWEST_TOKENS = 128
"""Of shorter prompts, the first byte says more about everything else."""
_UP, _DOWN = 0.3, 0.03
"""A request that had to wait for others says too little, never too much: what is fast is believed sooner."""
SLOWEST, FASTEST = 0.25, 4.0


class PrefillRate:
    """``value`` is in prompt tokens a second; 0: not known. What comes from the prefix cache makes it higher."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def note(self, prompt_tokens: int, seconds: float) -> None:
        if prompt_tokens < FEWEST_TOKENS or seconds <= 0:
            return
        rate = prompt_tokens / seconds
        if not self.value:
            self.value = rate
        else:
            self.value += (rate - self.value) * (_UP if rate > self.value else _DOWN)


def speeds(rates: Sequence[float]) -> list[float]:
    """Of each, relative to their mean, in powers of two: what differs by chance is alike, and takes turns.

    All 1 while any rate is not known (0).
    """
    if not rates or not all(rates):
        return [1.0] * len(rates)
    mean = sum(rates) / len(rates)
    return [min(max(2.0 ** round(log2(rate / mean)), SLOWEST), FASTEST) for rate in rates]
