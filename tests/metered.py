"""Clients of an engine, some of which leave, with the gateway's meter between: what both sides counted."""

import asyncio
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import httpx
import orjson

from api.gateway.events import EventStream
from api.gateway.meter import Meter
from api.gateway.usage_request import inject, injections
from fleet.http.connection import Connection
from fleet.usage import Usage

_TOPICS = ("a dog", "the sea", "three numbers", "a very long train", "nothing at all", "Paris", "rain")
_TOKEN = b'"content":"'
_MARGIN = 8
"""Tokens that are still to be written when a client leaves: an engine that had finished would not notice."""


@dataclass(frozen=True)
class Answered:
    usage: Usage
    left: bool
    seen: bytes
    """By the client."""


@dataclass
class Client:
    """One after the other, over connections of their own."""

    port: int
    engine: str
    random: Random
    leaving: float
    """Share of those who leave, after a random number of tokens."""

    async def ask(self, **more: Any) -> Answered:
        longest = self.random.randint(_MARGIN + 2, 60)
        leaves = self.random.randint(1, longest - _MARGIN) if self.random.random() < self.leaving else None
        return await self.ask_for(longest, leaves, ignore_eos=True, **more)

    async def ask_for(self, longest: int, leaves: int | None, *, injecting: bool = True, **more: Any) -> Answered:
        """``leaves``: after so many tokens."""
        topic = self.random.choice(_TOPICS)
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": f"Tell me at length about {topic}, in {self.random.randint(2, 99)} chapters."},
        ]
        document = {"model": "m", "messages": messages, "stream": True, "max_tokens": longest, "temperature": 0, **more}
        fields = injections(self.engine, "chat.completions", document) if injecting else None
        meter = Meter("chat.completions", document, fields)
        body = orjson.dumps(document)
        body = inject(body, document, fields) if fields else body
        return await self._exchange(body, meter, leaves)

    async def _exchange(self, body: bytes, meter: Meter, leaves: int | None) -> Answered:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(loop, 60, 60), "127.0.0.1", self.port)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\n"
        connection.begin(b"%bcontent-length: %d\r\n\r\n" % (head, len(body)), body, lambda: None)
        await connection.head()
        status, _ = meter.head(connection.status, connection.headers)
        assert status == 200
        events, seen, tokens = EventStream(), b"", 0
        left = False
        while not connection.ended and not left:
            data = meter.feed(events.feed(await connection.read()))
            seen += data
            tokens += data.count(_TOKEN) - data.count(_TOKEN + b'"')
            left = leaves is not None and tokens >= leaves and b"[DONE]" not in seen
        connection.abort()
        return Answered(meter.usage(left), left, seen)


async def counters(port: int, *names: str) -> dict[str, int]:
    """The engine's own."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    found = dict.fromkeys(names, 0)
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in found:
            found[name] += round(float(line.rsplit(" ", 1)[1]))
    return found


def without_numbers(event: bytes) -> bytes:
    """Without what differs between two answers that are alike."""
    kept = orjson.loads(event.removeprefix(b"data: "))
    for name in ("id", "created"):
        kept.pop(name, None)
    if "timings" in kept:
        kept["timings"] = list(kept["timings"])
    return orjson.dumps(kept)


def total(answers: list[Answered]) -> Usage:
    summed = Usage()
    for answer in answers:
        summed = replace(
            summed,
            prompt_tokens=summed.prompt_tokens + answer.usage.prompt_tokens,
            cached_tokens=summed.cached_tokens + answer.usage.cached_tokens,
            completion_tokens=summed.completion_tokens + answer.usage.completion_tokens,
        )
    return summed
