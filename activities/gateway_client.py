"""How the control plane asks a gateway on behalf of an API key."""

from dataclasses import dataclass
from typing import Protocol

import httpx

from fleet.policy.batch_answers import retry_after

MOST_ANSWER_BYTES = 32 << 20
_TIMEOUT = httpx.Timeout(900.0, connect=5.0, pool=None)
"""A gateway gives up on an engine before this; the rest is for one that is gone without a word."""


class NotReached(Exception):
    """No gateway took the request: nobody has seen it."""


class AnswerLost(Exception):
    """It was sent, and what became of it is not known."""


class AnswerTooLarge(Exception):
    """It is larger than ``MOST_ANSWER_BYTES``."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    request_id: str = ""
    retry_after: float | None = None


class Tickets(Protocol):
    """``fleet.access.visitor.Visitor``."""

    def gateway(self, key_id: str) -> str: ...


class GatewayClient:
    """One per process."""

    def __init__(self, url: str, tickets: Tickets) -> None:
        """``url``: without ``/v1``."""
        self._url = url
        self._tickets = tickets
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=128)
        self._http = httpx.AsyncClient(timeout=_TIMEOUT, limits=limits, trust_env=False)

    async def ask(self, key_id: str, endpoint: str, body: bytes) -> Answer:
        """POST to ``endpoint`` (with ``/v1``). Raises NotReached, AnswerLost, AnswerTooLarge."""
        headers = {
            "authorization": f"Bearer {self._tickets.gateway(key_id)}",
            "content-type": "application/json",
            "holdfast-priority": "low",
        }
        try:
            async with self._http.stream("POST", self._url + endpoint, content=body, headers=headers) as response:
                return await _read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL) as error:
            raise NotReached(repr(error)) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise AnswerLost(type(error).__name__) from error

    async def aclose(self) -> None:
        await self._http.aclose()


async def _read(response: httpx.Response) -> Answer:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MOST_ANSWER_BYTES:
            raise AnswerTooLarge
    headers = response.headers
    return Answer(
        response.status_code, bytes(body), headers.get("x-request-id", ""), retry_after(headers.get("retry-after"))
    )
