"""What one request used."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True)
class Usage:
    """As the engine says, or counted by the gateway. Cached tokens are part of the prompt's, reasoning of the
    completion's."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    audio_seconds: float = 0.0
    images: int = 0
    estimated: bool = False
    """The engine's own count did not come: the client left, or the answer broke off."""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One per request that was sent to an engine, kept exactly once under its id."""

    request_id: str
    at: datetime
    """When the request came."""
    key_id: str
    route: str
    """Public name that was asked for (aliases resolved)."""
    deployment: str
    """Or ``provider:<name>``."""
    operation: str
    """``chat.completions``, ``embeddings``, …"""
    status: int
    """499: the client left."""
    usage: Usage
    duration_s: float
    ttft_s: float | None = None
    """Until the first event of a streamed answer."""
