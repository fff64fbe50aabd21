"""``/v1/responses`` for engines that speak chat completions."""

from api.gateway.anthropic.sse import Events
from api.gateway.conversion import Document
from api.gateway.filters import Filter, Headers
from api.gateway.responses.asked import chat_fields
from api.gateway.responses.building import Building, Keep
from api.gateway.responses.errors import to_openai
from api.gateway.responses.fields import refuse
from api.gateway.responses.messages import messages
from api.gateway.responses.prepared import Prepared

_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
_NOT_PASSED_ON = frozenset({b"content-length", b"content-type"})
_DONE = b"[DONE]"


class ResponsesToChat:
    """One request. ``keep`` gets the response at its end, before its last bytes come out, if it is to be stored."""

    path = "/v1/chat/completions"

    def __init__(self, prepared: Prepared, keep: Keep | None = None) -> None:
        self._prepared = prepared
        self._keep = keep

    def request(self, document: Document) -> Document:
        """``document``: ``prepared.document``, perhaps with another model."""
        given = document["input"]
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        said = messages(document.get("instructions"), items, self._prepared.history)
        if not said:
            refuse("input", "must not be empty: say something to the model.")
        return {**chat_fields(document), "messages": said}

    def answer(self) -> Filter:
        return ChatAnswer(self._prepared, self._keep)


class ChatAnswer:
    """Takes events or JSON, whichever comes, and gives whichever the client asked for."""

    def __init__(self, prepared: Prepared, keep: Keep | None) -> None:
        self._prepared = prepared
        self._building = Building(prepared, keep)
        self._events: Events | None = None
        self._error = 0
        self._parts: list[bytes] = []

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        kept = [header for header in headers if header[0] not in _NOT_PASSED_ON]
        if status >= 400:
            self._error = status
            return status, [*kept, _JSON]
        if any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers):
            self._events = Events()
        return status, [*kept, _EVENTS if self._prepared.stream else _JSON]

    def feed(self, data: bytes) -> bytes:
        if self._events is None:
            self._parts.append(data)
            return b""
        return b"".join([self._event(payload) for payload in self._events.feed(data)])

    def end(self) -> bytes:
        if self._error:
            return to_openai(self._error, b"".join(self._parts))
        if self._events is not None:
            told = b"".join([self._event(payload) for payload in self._events.rest()])
        else:
            told = self._building.chunk(b"".join(self._parts))
        told += self._building.finish(done=False)
        return told if self._prepared.stream else self._building.body()

    def _event(self, payload: bytes) -> bytes:
        if payload.startswith(b":"):
            return payload + b"\n\n" if self._prepared.stream else b""
        if payload == _DONE:
            return self._building.finish(done=True)
        return self._building.chunk(payload)
