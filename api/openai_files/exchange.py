"""One request and its answer, over ASGI."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import orjson

from api.gateway.refusals import Refusal, shown

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LARGEST_JSON = 64 << 10
_LINGER_S = 5.0
"""So long a body that nobody wants is read and dropped, so that its sender gets to read why."""


class ClientGone(Exception):
    """It has closed the connection."""


class Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        self._unread = True

    def header(self, name: bytes) -> bytes:
        return next((value for key, value in self._scope["headers"] if key.lower() == name), b"")

    @property
    def length(self) -> int:
        """Bytes of its body, as the client says; 0 where it does not."""
        said = self.header(b"content-length")
        return int(said) if said.isdigit() else 0

    def query(self, name: str) -> str | None:
        found = self._query.get(name)
        return found[-1] if found else None

    def number(self, name: str, default: int, most: int) -> int:
        """Raises Refusal unless it is a number from 1 to ``most``."""
        said = self.query(name)
        if said is None:
            return default
        if not said.isdecimal() or not 1 <= int(said) <= most:
            raise invalid(f"'{name}' must be a number from 1 to {most}; it is '{shown(said)}'.", name)
        return int(said)

    def choice(self, name: str, default: str, of: tuple[str, ...]) -> str:
        said = self.query(name) or default
        if said not in of:
            raise invalid(f"'{name}' must be one of {', '.join(of)}; it is '{shown(said)}'.", name)
        return said

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ClientGone."""
        while self._unread:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self._unread = bool(message.get("more_body", False))
            yield message.get("body", b"")

    async def json(self) -> dict[str, Any]:
        """Raises Refusal and ClientGone."""
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > _LARGEST_JSON:
                raise Refusal(413, f"The request body is larger than {_LARGEST_JSON} bytes.", code="request_too_large")
        try:
            found = orjson.loads(body)
        except ValueError as error:
            raise invalid(f"The request body is not valid JSON: {shown(str(error))}.", "body") from None
        if not isinstance(found, dict):
            raise invalid("The request body must be a JSON object.", "body")
        return found

    async def answer(self, said: object, status: int = 200) -> None:
        await self._whole(status, orjson.dumps(said), ())

    async def refuse(self, refusal: Refusal) -> None:
        if not self._unread:
            await self._whole(refusal.status, refusal.body, refusal.headers)
            return
        # Closing with unread bytes resets the connection, and the sender would never see the answer.
        await self.begin(refusal.status, b"application/json", len(refusal.body), *refusal.headers, _CLOSE)
        await self.send(refusal.body)
        try:
            async with asyncio.timeout(_LINGER_S):
                async for _ in self.pieces():
                    pass
        except (TimeoutError, ClientGone):
            pass
        await self.end()

    async def begin(self, status: int, kind: bytes, length: int, *headers: tuple[bytes, bytes]) -> None:
        start = [(b"content-type", kind), (b"content-length", b"%d" % length), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": start})

    async def send(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _whole(self, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        await self.begin(status, b"application/json", len(body), *headers)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


_CLOSE = (b"connection", b"close")


def invalid(message: str, param: str | None, code: str = "invalid_value") -> Refusal:
    return Refusal(400, message, param=param, code=code)


def not_found(what: str, name: str) -> Refusal:
    return Refusal(404, f"No such {what}: '{shown(name)}'.", param="id", code="not_found")
