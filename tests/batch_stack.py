"""Files and batches with everything real but the models: Temporal, a controller process, clients of others."""

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from api.batch_starter import BatchStarter
from api.openai_files import FilesAndBatches, Limits
from api.temporal_client import WorkflowClient
from fleet.access.errands import BATCH_PRIORITY, gateway_tickets, visitor_of
from fleet.access.keys import master_sealer_of
from fleet.db.authority import ensure
from fleet.db.migrate import upgrade
from fleet.db.session import Database
from fleet.errors import Unavailable
from fleet.serving import listen, serving
from fleet.settings import Settings
from fleet.temporal import connect
from fleet.timings import Timings
from tests.stack import Process, free_ports

HASTY = Timings.model_validate({"batch_heartbeat": 2, "batch_call_back": 1})
WITHIN_S = 90.0

Act = Callable[[str, int], Awaitable[tuple[int, Any, dict[str, str]] | None]]
"""Given what a line asks, and how often it was asked before: status, answer, headers. None: the answer breaks off."""


async def obliging(text: str, before: int) -> tuple[int, Any, dict[str, str]]:
    return 200, {"object": "chat.completion", "choices": [{"message": {"content": f"re: {text}"}}]}, {}


class ScriptedGateway:
    """Answers as ``act`` says, to those that the control plane sends."""

    def __init__(self, tickets: Any) -> None:
        self._tickets = tickets
        self.act: Act = obliging
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        """Whole answers that were sent."""
        self.now = 0
        self.most_at_once = 0
        self.keys: set[str] = set()
        self.revoked: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        visitor = visitor_of(headers["authorization"].removeprefix("Bearer "), self._tickets)
        if visitor is None or visitor[0] in self.revoked:
            await _send(send, 401, {"error": {"code": "invalid_api_key", "message": "no"}}, {})
            return
        assert visitor[1] == BATCH_PRIORITY
        assert headers["holdfast-priority"] == "low"
        self.keys.add(visitor[0])
        await self._answer(json.loads(body)["messages"][0]["content"], send)

    async def _answer(self, text: str, send: Any) -> None:
        before = self.asked[text]
        self.asked[text] += 1
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            said = await self.act(text, before)
        finally:
            self.now -= 1
        if said is None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
            await send({"type": "http.response.body", "body": b'{"choices": [', "more_body": True})
            raise ConnectionAbortedError("as a gateway that dies in the middle of an answer")
        await _send(send, *said)
        self.answered[text] += 1


class BatchStack:
    """``client(key_id)`` is OpenAI's own client, as the owner of that key."""

    def __init__(self, folder: Path, temporal: str) -> None:
        front, gateway = free_ports(2)
        self.settings = Settings(
            home=folder / "home",
            temporal_address=temporal,
            gateway_url=f"http://127.0.0.1:{gateway}",
            port=front,
        )
        self.settings.home.mkdir(parents=True)
        upgrade(self.settings.effective_database_url)
        self.database = Database(self.settings.effective_database_url)
        authority = ensure(self.database, master_sealer_of(self.settings))
        self.gateway = ScriptedGateway(gateway_tickets([authority.tickets.public_key]))
        self.temporal_answers = True
        self._gateway_port = gateway
        self._gateway_stack = AsyncExitStack()
        env = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")} | {
            "HOLDFAST_HOME": str(self.settings.home),
            "HOLDFAST_TEMPORAL_ADDRESS": temporal,
            "HOLDFAST_GATEWAY_URL": self.settings.gateway_url,
        }
        argv = [sys.executable, "-m", "fleet.cli", "controller"]
        self.controller = Process("controller", argv, env, folder / "controller.log")

    async def start(self) -> None:
        self.workflows = WorkflowClient(await connect(self.settings), HASTY)
        self.starter = BatchStarter(self.database, self.workflows, HASTY)
        self._files = FilesAndBatches(
            self.database, self._through(self.starter.start), self._through(self.starter.cancel), Limits()
        )
        await self.open_gateway()
        self.controller.start()

    def _through(self, tell: Callable[[str], Awaitable[None]]) -> Callable[[str], Awaitable[None]]:
        async def told(batch_id: str) -> None:
            if not self.temporal_answers:
                raise Unavailable("Temporal does not answer")
            await tell(batch_id)

        return told

    async def open_gateway(self) -> None:
        listening = listen("127.0.0.1", self._gateway_port)
        await self._gateway_stack.enter_async_context(serving(self.gateway, listening, grace_s=1, lifespan="off"))

    async def close_gateway(self) -> None:
        await self._gateway_stack.aclose()

    @asynccontextmanager
    async def serving_files(self) -> AsyncIterator[None]:
        async def front(scope: Any, receive: Any, send: Any) -> None:
            headers = dict(scope["headers"])
            await self._files(scope, receive, send, headers[b"authorization"].decode().removeprefix("Bearer "))

        async with serving(front, listen("127.0.0.1", self.settings.port), lifespan="off"):
            yield

    def client(self, key_id: str = "key-a") -> AsyncOpenAI:
        return AsyncOpenAI(api_key=key_id, base_url=f"http://127.0.0.1:{self.settings.port}/v1", max_retries=0)

    async def ended(self, batch_id: str) -> Any:
        async def look() -> Any:
            batch = await self.client().batches.retrieve(batch_id)
            return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

        return await self.until(look, f"{batch_id} has ended")

    async def until(self, check: Callable[[], Awaitable[Any]], what: str) -> Any:
        last = None
        try:
            async with asyncio.timeout(WITHIN_S):
                while not (last := await check()):
                    await asyncio.sleep(0.05)
                return last
        except TimeoutError:
            raise AssertionError(f"{what}: not within {WITHIN_S} s; {last}\n{self.controller.log()}") from None

    async def stop(self) -> None:
        self.controller.kill()
        await self.close_gateway()
        self.database.close()


def request_line(n: int, **changes: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": f"question {n}"}]}
    return {"custom_id": f"c-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} | changes


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def moody(seed: int) -> Act:
    """Refuses, fails, breaks off and thinks; but each line gets its answer sooner or later."""
    dice = random.Random(seed)

    async def act(text: str, before: int) -> tuple[int, Any, dict[str, str]] | None:
        await asyncio.sleep(dice.uniform(0, 0.02))
        mood = dice.random()
        if mood < 0.05:
            return 429, {"error": {"code": "overloaded", "message": "later"}}, {"retry-after": "0.05"}
        if mood < 0.08:
            return 503, {"error": {"code": "no_replica", "message": "later"}}, {"retry-after": "0"}
        if mood < 0.12 and before < 2:
            return 500, {"error": {"type": "server_error", "message": "oh"}}, {}
        if mood < 0.15 and before < 2:
            return None
        return await obliging(text, before)

    return act


async def _send(send: Any, status: int, said: Any, headers: dict[str, str]) -> None:
    body = json.dumps(said, indent=1).encode()
    more = [(k.encode(), v.encode()) for k, v in headers.items()]
    start = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
