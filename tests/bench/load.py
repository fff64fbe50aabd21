"""Clients that ask as fast as they get answers, and what that costs the processes under test."""

import asyncio
import json
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import psutil
import uvloop

from tests.bench.mock_engine import CHUNK_PAUSE, CHUNKS

SECONDS = 2.0
_END_OF_CHUNKS = b"0\r\n\r\n"
_CLOCK = b'"at": '

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Way(Protocol):
    async def open(self) -> Streams:
        """A connection to what is asked."""
        ...


@dataclass(frozen=True)
class Straight:
    url: str
    tls: ssl.SSLContext | None = None
    server_name: str | None = None

    async def open(self) -> Streams:
        host, port = self.url.partition("://")[2].split(":")
        return await asyncio.open_connection(host, int(port), ssl=self.tls, server_hostname=self.server_name)


@dataclass
class Sample:
    """What a load saw and what it cost the processes under test."""

    seconds: list[float] = field(default_factory=list)
    """Per request: until its answer was complete, or its first event there."""
    chunks: list[float] = field(default_factory=list)
    """Per event of a stream that carries its time: how long it was on its way."""
    requests: int = 0
    elapsed: float = 0.0
    cpu: float = 0.0

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.seconds) * 1000

    @property
    def cpu_ms(self) -> float:
        return self.cpu / self.requests * 1000


def percentile(seconds: Sequence[float], share: float) -> float:
    """In milliseconds."""
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))] * 1000


def chat(path: str, *lines: str, stream: bool, clock: bool = False) -> bytes:
    """``clock``: the events shall say when they were sent."""
    question = {"role": "user", "content": "word " * 200}
    body = json.dumps({"model": "m", "messages": [question], "stream": stream, "clock": clock}).encode()
    head = (
        f"POST {path} HTTP/1.1",
        "Host: bench",
        *lines,
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*head, "", "")).encode() + body


def measure(
    way: Way, request: bytes, pids: Sequence[int], clients: int, *, stream: bool, seconds: float = SECONDS
) -> Sample:
    """``pids``: whose CPU time counts, and their children's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_load(way, request, clients, stream, 0.3, Sample()))  # warm up: connections, caches
        sample = Sample()
        before, started = _cpu(pids), time.monotonic()
        runner.run(_load(way, request, clients, stream, seconds, sample))
        sample.elapsed = time.monotonic() - started
        sample.cpu = _cpu(pids) - before
    return sample


def _cpu(pids: Sequence[int]) -> float:
    """Seconds so far."""
    processes = [p for pid in pids for p in (psutil.Process(pid), *psutil.Process(pid).children())]
    return sum(sum(p.cpu_times()[:2]) for p in processes)


async def _load(way: Way, request: bytes, clients: int, stream: bool, seconds: float, sample: Sample) -> None:
    until = time.monotonic() + seconds
    ask = _ask_streamed if stream else _ask
    # Streams start spread over the time of one, or all their events would fall into the same moments.
    spread = CHUNKS * CHUNK_PAUSE / clients if stream else 0.0
    await asyncio.gather(*(_client(way, request, ask, n * spread, until, sample) for n in range(clients)))


Ask = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter, Sample], Awaitable[float]]


async def _client(way: Way, request: bytes, ask: Ask, delay: float, until: float, sample: Sample) -> None:
    await asyncio.sleep(delay)
    reader, writer = await way.open()
    while time.monotonic() < until:
        sample.seconds.append(await ask(request, reader, writer, sample))
        sample.requests += 1
    writer.transport.abort()


async def _ask(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _sample: Sample) -> float:
    started = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    assert b" 200 " in head, head
    at = lower.index(b"content-length:") + 15
    await reader.readexactly(int(lower[at : lower.index(b"\r", at)]))
    return time.perf_counter() - started


async def _ask_streamed(
    request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sample: Sample
) -> float:
    started = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head, head
    await reader.readuntil(b"data: ")
    first = time.perf_counter() - started
    if b'"clock": true' not in request:
        await reader.readuntil(_END_OF_CHUNKS)
        return first
    for n in range(CHUNKS):
        event = await reader.readuntil(b"\n\n")
        if n:  # the first one waits for its request
            at = event.index(_CLOCK) + len(_CLOCK)
            sample.chunks.append((time.monotonic_ns() - int(event[at : event.index(b"}", at)])) / 1e9)
    await reader.readuntil(_END_OF_CHUNKS)
    return first
