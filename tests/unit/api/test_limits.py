"""Bodies that are too large are refused before they are read."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.limits import BodyLimit
from fleet.serving import listen, serving

LIMIT = 1000


class Echo:
    """Answers with the length of what it got; remembers whether it was asked."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


class Conversation:
    """One request, as a server hands it on."""

    def __init__(self, chunks: list[bytes], *, declared: int | None = None, leaves: bool = False) -> None:
        self.echo = Echo()
        self.read = 0
        self.sent: list[dict[str, Any]] = []
        self._chunks = chunks
        self._leaves = leaves
        headers = [(b"content-length", str(declared).encode())] if declared is not None else []
        self._scope = {"type": "http", "headers": headers}

    async def hold(self) -> "Conversation":
        await BodyLimit(self.echo, LIMIT)(self._scope, self._receive, self._send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    async def _receive(self) -> dict[str, Any]:
        if self.read == len(self._chunks):
            return {"type": "http.disconnect"}
        chunk = self._chunks[self.read]
        self.read += 1
        more = self._leaves or self.read < len(self._chunks)
        return {"type": "http.request", "body": chunk, "more_body": more}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=400), min_size=1, max_size=6))
def test_body_within_the_limit_arrives_as_it_was_sent(chunks: list[bytes]) -> None:
    talk = asyncio.run(Conversation(chunks).hold())
    whole = b"".join(chunks)
    assert talk.status == (200 if len(whole) <= LIMIT else 413)
    assert talk.echo.bodies == ([whole] if len(whole) <= LIMIT else [])


async def test_declared_length_is_refused_without_reading() -> None:
    talk = await Conversation([b"x"], declared=LIMIT + 1).hold()
    assert (talk.status, talk.read, talk.echo.bodies) == (413, 0, [])
    assert (b"connection", b"close") in talk.sent[0]["headers"]


async def test_counting_stops_as_soon_as_it_is_too_much() -> None:
    talk = await Conversation([b"x" * 600] * 100).hold()
    assert (talk.status, talk.read, talk.echo.bodies) == (413, 2, [])


async def test_declared_length_that_is_too_small_does_not_help() -> None:
    talk = await Conversation([b"x" * 600] * 2, declared=1).hold()
    assert talk.status == 413


async def test_half_a_body_is_not_acted_upon() -> None:
    talk = await Conversation([b'{"replicas": 1'], leaves=True).hold()
    assert talk.echo.bodies == []


async def test_client_that_leaves_later_is_noticed() -> None:
    seen: list[str] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    talk = Conversation([b"x"])
    await BodyLimit(app, LIMIT)(talk._scope, talk._receive, talk._send)
    assert seen == ["http.request", "http.disconnect"]


async def test_other_kinds_of_connections_pass() -> None:
    kinds: list[str] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        kinds.append(scope["type"])

    await BodyLimit(app, LIMIT)({"type": "lifespan"}, None, None)
    assert kinds == ["lifespan"]


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_fifty_megabytes_are_refused_at_once(http: str, chunked: bool) -> None:
    body = b"x" * (50 << 20)

    async def pieces() -> Any:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    listening = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    began = time.monotonic()
    async with (
        serving(BodyLimit(Echo(), LIMIT), listening, lifespan="off", http=http),
        httpx.AsyncClient(trust_env=False, timeout=20) as client,
    ):
        try:
            answer = await client.post(url, content=pieces() if chunked else body)
        except (httpx.WriteError, httpx.ReadError):
            return  # the connection was closed before everything was sent
        assert answer.status_code == 413
        assert "1000 bytes" in answer.json()["detail"]
    assert time.monotonic() - began < 10
