"""A web server that answers from a script, with a conversion in between."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvicorn

from api.gateway.anthropic import anthropic_error
from api.gateway.conversion import Conversion
from api.gateway.refusals import Refusal
from tests.unit.gateway.anthropic.shapes import EVENTS, JSON


@dataclass
class Script:
    """What the engine answers, and what it was asked."""

    pieces: list[bytes] = field(default_factory=list)
    status: int = 200
    events: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)


Convert = Callable[[str], Conversion]


def app(script: Script, convert: Convert) -> Any:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        conversion = convert(scope["path"])
        try:
            script.asked.append(conversion.request(orjson.loads(body)))
        except Refusal as refusal:
            refused = anthropic_error(refusal.status, str(refusal))
            await send({"type": "http.response.start", "status": refusal.status, "headers": JSON})
            await send({"type": "http.response.body", "body": refused})
            return
        answer = conversion.answer()
        status, headers = answer.head(script.status, EVENTS if script.events else JSON)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in script.pieces:
            await send({"type": "http.response.body", "body": answer.feed(piece), "more_body": True})
        await send({"type": "http.response.body", "body": answer.end()})

    return serve


@asynccontextmanager
async def serving(script: Script, convert: Convert) -> AsyncIterator[str]:
    """The server's URL."""
    config = uvicorn.Config(app(script, convert), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(20):
            while not server.started:
                await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task
