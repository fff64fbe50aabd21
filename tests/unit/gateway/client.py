"""A client that calls an ASGI application directly."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
App = Callable[
    [dict[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class Answer:
    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.complete = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a refusal; fails unless it has exactly OpenAI's shape."""
        assert self.headers["content-type"] == "application/json"
        document = self.json
        assert set(document) == {"error"}
        error: dict[str, Any] = document["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["message"]
        assert isinstance(error["type"], str)
        return error


class Call:
    """A request in progress. ``leave`` is what a client does that closes its connection."""

    def __init__(
        self,
        app: App,
        method: str,
        path: str,
        parts: Iterable[bytes],
        headers: list[tuple[bytes, bytes]],
        *,
        hold_after: int | None = None,
    ) -> None:
        """``hold_after``: do not take more messages than that until ``reading`` is set."""
        self.answer = Answer()
        self.reading = asyncio.Event()
        self._hold_after = hold_after
        self._sent = 0
        self._left = asyncio.Event()
        self._parts = iter(parts)
        self._next: bytes | None = next(self._parts, b"")
        self.received = 0
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode("utf-8", "replace"),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def result(self, *, within: float = 10.0) -> Answer:
        async with asyncio.timeout(within):
            await self.task
        return self.answer

    def leave(self) -> None:
        self._left.set()

    async def _receive(self) -> Message:
        if self._next is None or self._left.is_set():
            await self._left.wait()
            return {"type": "http.disconnect"}
        part, self._next = self._next, next(self._parts, None)
        self.received += len(part)
        await asyncio.sleep(0)
        return {"type": "http.request", "body": part, "more_body": self._next is not None}

    async def _send(self, message: Message) -> None:
        if self._hold_after is not None and self._sent >= self._hold_after:
            await self.reading.wait()
        self._sent += 1
        answer = self.answer
        if message["type"] == "http.response.start":
            assert answer.status == 0
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        assert answer.status
        assert not answer.complete
        if message.get("body"):
            answer.chunks.append(bytes(message["body"]))
        answer.complete = not message.get("more_body", False)


class Client:
    def __init__(self, app: App, key: str | None) -> None:
        self._app = app
        self._key = key

    def call(
        self,
        path: str,
        body: object = None,
        *,
        method: str = "POST",
        headers: Iterable[tuple[str, str]] = (),
        parts: Iterable[bytes] | None = None,
        hold_after: int | None = None,
    ) -> Call:
        """``body``: bytes as they are, anything else as JSON; ``parts`` instead of it: several messages."""
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
        if self._key is not None:
            lines.append((b"authorization", f"Bearer {self._key}".encode()))
        if parts is None and not any(name == b"content-length" for name, _ in lines):
            lines.append((b"content-length", str(len(content)).encode()))
        sent = [content] if parts is None else parts
        return Call(self._app, method, path, sent, lines, hold_after=hold_after)

    async def post(self, path: str, body: object = None, **options: Any) -> Answer:
        return await self.call(path, body, **options).result()

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call(path, method="GET", **options).result()

    async def chat(self, model: str = "m", **fields: Any) -> Answer:
        return await self.post("/v1/chat/completions", {"model": model, "messages": [], **fields})

    def start_chat(self, model: str = "m", *, hold_after: int | None = None, **fields: Any) -> Call:
        body = {"model": model, "messages": [], **fields}
        return self.call("/v1/chat/completions", body, hold_after=hold_after)
