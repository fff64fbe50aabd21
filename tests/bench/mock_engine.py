"""An engine that answers at once with fixed bytes, or with events at a steady pace, and costs next to nothing.

``python -m tests.bench.mock_engine`` prints its port, and runs until its input ends.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from tests.unit.gateway.process import stop_when_input_ends

CHUNKS = 50
CHUNK_PAUSE = 0.02
"""Seconds between two events of a stream."""

_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 40}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 40, "total_tokens": 240},
    }
).encode()
_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_ANSWER),
    _ANSWER,
)
_EVENT = (
    b"data: %b\n\n"
    % json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}],
        }
    ).encode()
)
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_START = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"


class MockEngine(asyncio.Protocol):
    """Expects whole requests, one at a time, as the benchmark's clients and proxies send them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._clock = False
        """The events of this answer say when they were sent."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, mark, body = self._received.partition(b"\r\n\r\n")
        if not mark:
            return
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        if len(body) < int(lower[at:].split(b"\r", 1)[0]):
            return
        self._received = b""
        self._clock = b'"clock": true' in body
        if b'"stream": true' in body:
            self._write(_START + self._event())
            self._loop.call_later(CHUNK_PAUSE, self._next, CHUNKS - 1)
        else:
            self._write(_PLAIN)

    def _next(self, left: int) -> None:
        if self._transport.is_closing():
            return
        if left == 1:
            self._write(self._event() + _END)
            return
        self._write(self._event())
        self._loop.call_later(CHUNK_PAUSE, self._next, left - 1)

    def _event(self) -> bytes:
        if not self._clock:
            return _CHUNK
        event = _EVENT[:-3] + b', "at": %d}\n\n' % time.monotonic_ns()
        return b"%x\r\n%b\r\n" % (len(event), event)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)  # type: ignore[attr-defined]


@contextmanager
def mock_engine() -> Iterator[tuple[str, int]]:
    """(base URL, pid)."""
    command = [sys.executable, "-m", "tests.bench.mock_engine"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.stdin.close()
            process.wait(20)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(MockEngine, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    stop_when_input_ends()
    await server.serve_forever()


if __name__ == "__main__":
    with (
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve())
