"""What deciding where a request goes needs to know of a replica."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine, or the proxy in front of it, said of its load with an answer."""

    at: float
    """By the caller's clock."""
    in_flight: int
    """Requests that are in it, of all gateways."""
    waiting: int = 0
    """Of these, those that it has not begun."""
    kv_used: float = 0.0
    """Share of its KV cache; 0 to 1."""
    ours: int = 0
    """Of ``in_flight``, those of the gateway that heard it; the others are of other gateways."""


class Replica(Protocol):
    """Lives as long as its engine; policies may keep what they know of one by ``instance_id``."""

    @property
    def instance_id(self) -> str: ...

    @property
    def in_flight(self) -> int:
        """Requests that this gateway has in it."""

    @property
    def tokens(self) -> int:
        """``Ask.tokens`` of these, together: booked when sent, given back at the end."""

    @property
    def capacity(self) -> int:
        """Requests that it works on at a time; 0: not known."""

    @property
    def speed(self) -> float:
        """Relative to the others of its deployment: on average 1; from measured answers, for mixed GPUs."""

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second, measured; 0: not known yet."""

    @property
    def load(self) -> EngineLoad | None:
        """What it said last."""
