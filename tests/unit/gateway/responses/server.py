"""A web server with the Responses API over an engine that answers from a script."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvicorn

from api.gateway.filters import Filter
from api.gateway.refusals import Refusal
from api.gateway.responses import Collect, Prepared, ResponsesToChat, StoredResponses, answer_stored, prepare
from tests.unit.gateway.responses.shapes import EVENTS, JSON

Script = Callable[[dict[str, Any]], list[bytes]]
"""What an engine answers to a request."""


@dataclass
class Engine:
    script: Script
    native: bool = False
    """It speaks the Responses API itself."""
    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)


class Server:
    """An ASGI application. The bearer token is the key's id."""

    def __init__(self, stored: StoredResponses, engine: Engine) -> None:
        self._stored = stored
        self._engine = engine

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        key = dict(scope["headers"])[b"authorization"].decode().removeprefix("Bearer ")
        body = await _body(receive)
        if scope["path"] != "/v1/responses":
            status, answer = await answer_stored(
                self._stored, scope["method"], scope["path"], scope["query_string"], key
            )
            await _send(send, status, JSON, [answer])
            return
        try:
            ready = await prepare(orjson.loads(body), key, self._stored)
            filtered, asked = self._way(ready)
        except Refusal as refusal:
            await _send(send, refusal.status, JSON, [refusal.body])
            return
        self._engine.asked.append(asked)
        streams = bool(asked.get("stream")) and self._engine.status == 200
        status, headers = filtered.head(self._engine.status, EVENTS if streams else JSON)
        pieces = [filtered.feed(piece) for piece in self._engine.script(asked)]
        await _send(send, status, headers, [*pieces, filtered.end()])

    def _way(self, ready: Prepared) -> tuple[Filter, dict[str, Any]]:
        if self._engine.native:
            return Collect(ready, self._stored.save), ready.document
        conversion = ResponsesToChat(ready, self._stored.save)
        asked = conversion.request(ready.document)
        return conversion.answer(), asked


async def _body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _send(send: Any, status: int, headers: Any, pieces: list[bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def serving(stored: StoredResponses, engine: Engine) -> AsyncIterator[str]:
    """The server's URL; what is stored is written meanwhile."""
    config = uvicorn.Config(Server(stored, engine), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    tasks = [asyncio.create_task(server.serve()), asyncio.create_task(stored.run())]
    try:
        async with asyncio.timeout(20):
            while not server.started:
                await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        await tasks[0]
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await stored.stop()
