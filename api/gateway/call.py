"""One request on its way: what was asked, by whom, and how far it has got."""

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from api.gateway.filters import Headers
from api.gateway.operation import Operation, Shape
from api.gateway.refusals import Refusal
from api.gateway.request import Send
from api.gateway.table import Key
from api.gateway.tracing import Trace
from fleet.policy.ask import Ask

if TYPE_CHECKING:
    from api.gateway.exchange import Exchange
    from api.gateway.route import Route

_SHORT = 64 << 10
"""Up to this, the length of a body says enough about its tokens: a longer one may be a picture."""
_BYTES_PER_TOKEN = 4
_NEW_TOKENS = 256
"""Of an answer whose length the client does not limit, on average."""
_NEW_TOKENS_AT_MOST = 4096
"""Clients set limits that no answer comes near to."""


@dataclass(slots=True, eq=False)
class Call:
    operation: Operation
    method: str
    path: str
    """On engines, with its query; of the operation, unless it is the generic proxy's."""
    model: str
    """The public name of the route that was asked; of the metrics, too."""
    route: "Route"
    key: Key
    body: bytes
    document: dict[str, Any] | None
    """The body, if it is a JSON object."""
    content_type: bytes
    forwarded: bytes
    """Header lines of the client that the engine gets."""
    headers: list[tuple[bytes, bytes]]
    """All that the client sent, names in lower case."""
    stream: bool
    ask: Ask
    started: float
    """By the loop's clock."""
    request_id: str = field(default_factory=lambda: f"req_{os.urandom(12).hex()}")
    at: float = field(default_factory=time.time)
    task: "asyncio.Task[Any] | None" = None
    """That works on it; None: it is on the fast path."""
    gone: bool = False
    """The client left, or does not read."""
    sent: bool = False
    """An engine got it."""
    resent: int = 0
    """Attempts after the first one."""
    deployment: str = ""
    """Where it was sent last, for usage and metrics: the deployment, or ``provider:<name>``."""
    exchange: "Exchange | None" = None
    """The last attempt."""
    trace: Trace | None = None
    """None: it is not sampled."""
    queued_s: float = 0.0
    """It waited here for an engine."""
    first_at: float | None = None
    """When the first event of a streamed answer was passed on."""
    status: int = 0
    opened: bool = False
    """The head of the answer was sent."""
    commenting: "asyncio.Task[None] | None" = None
    """Sends a client that waits for a stream a sign of life."""

    def abandon(self) -> None:
        """Stop whatever is being done for it, at once."""
        self.gone = True
        if self.task is not None:
            self.task.cancel()

    def error_event(self, refusal: Refusal) -> bytes:
        """What ends a stream that comments have begun."""
        if self.operation.shape is Shape.ANTHROPIC:
            return b"event: error\ndata: %b\n\n" % refusal.body_in(Shape.ANTHROPIC)
        return b"data: %b\n\n" % refusal.body

    async def open(self, send: Send, status: int, headers: Headers) -> None:
        """Begin the answer, unless comments have begun it already."""
        if self.opened:
            return
        self.opened = True
        headers = [*headers, (b"x-request-id", self.request_id.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})


def tokens_of(body: bytes, document: dict[str, Any] | None) -> int:
    """About how many tokens the prompt has."""
    if len(body) <= _SHORT or document is None:
        return min(len(body), _SHORT) // _BYTES_PER_TOKEN
    return _text(document) // _BYTES_PER_TOKEN


def new_tokens_of(document: dict[str, Any] | None) -> int:
    """About how many tokens the answer will have."""
    if document is None:
        return 0
    limit = document.get("max_completion_tokens") or document.get("max_tokens") or document.get("max_output_tokens")
    if isinstance(limit, int) and limit > 0:
        return min(limit, _NEW_TOKENS_AT_MOST)
    return _NEW_TOKENS


def _text(document: object) -> int:
    """Characters of all strings in it, but of pictures and sounds. No recursion: clients nest as deep as they like."""
    size = 0
    left = [document]
    while left:
        part = left.pop()
        if isinstance(part, str):
            size += 0 if part.startswith("data:") else len(part)
        elif isinstance(part, list):
            left += part
        elif isinstance(part, dict) and part.get("type") not in ("input_audio", "base64"):
            left += part.values()
    return size
