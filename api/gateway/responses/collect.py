"""Answers of engines that speak ``/v1/responses`` themselves: passed on, and looked at for what is to be stored."""

from typing import Any

import orjson

from api.gateway.conversion import Document
from api.gateway.filters import Headers
from api.gateway.responses.building import Keep
from api.gateway.responses.prepared import Prepared

_WITH_RESPONSE = (
    b"response.created",
    b"response.in_progress",
    b"response.completed",
    b"response.incomplete",
    b"response.failed",
)
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_LARGEST = 16 << 20
"""Bytes of a body that is held back to be looked at."""


class Collect:
    """The filter of one answer. ``keep`` gets the response before its last bytes come out, if it is to be stored.

    The engine was given the whole conversation and told to store nothing; the client reads what it asked for. But for
    that nothing is changed, and events without a response in them pass as they are.
    """

    def __init__(self, prepared: Prepared, keep: Keep | None = None) -> None:
        self._prepared = prepared
        self._keep = keep
        self._events = False
        self._passes = False
        self._held: list[bytes] = []
        self._size = 0

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        self._passes = status >= 400
        self._events = any(n == b"content-type" and v.startswith(b"text/event-stream") for n, v in headers)
        if self._passes:
            return status, headers
        return status, [header for header in headers if header[0] != b"content-length"]

    def feed(self, data: bytes) -> bytes:
        if self._passes:
            return data
        if not self._events:
            return self._hold(data)
        if self._held or not data.endswith(_ENDS):
            data = self._whole_events(data)
        if not any(name in data for name in _WITH_RESPONSE):
            return data
        return b"".join([self._event(event) for event in _split(data)])

    def end(self) -> bytes:
        if self._passes:
            return b""
        if self._events:
            rest = b"".join(self._held)
            return b"".join([self._event(event) for event in _split(rest)]) if rest else b""
        body = b"".join(self._held)
        document = _read(body)
        if document is None or document.get("object") != "response":
            return body
        return orjson.dumps(self._final(document))

    def _hold(self, data: bytes) -> bytes:
        self._held.append(data)
        self._size += len(data)
        if self._size <= _LARGEST:
            return b""
        self._passes = True
        body = b"".join(self._held)
        self._held.clear()
        return body

    def _whole_events(self, data: bytes) -> bytes:
        """A long event may come in pieces."""
        passed = self._hold(data)
        if passed or not b"".join(self._held[-4:]).endswith(_ENDS):
            return passed
        data = b"".join(self._held)
        self._held.clear()
        self._size = 0
        return data

    def _event(self, event: bytes) -> bytes:
        head, colon, payload = event.partition(b"data:")
        document = _read(payload) if colon else None
        response = document.get("response") if document is not None else None
        if document is None or not isinstance(response, dict):
            return event
        last = document.get("type") in _LAST
        document["response"] = self._final(response) if last else self._said(response)
        return b"%bdata: %b\n\n" % (head, orjson.dumps(document))

    def _final(self, response: Document) -> Document:
        response = self._said(response)
        if self._keep is not None and self._prepared.store and isinstance(response.get("id"), str):
            self._keep(self._prepared, response)
        return response

    def _said(self, response: Document) -> Document:
        return response | {"store": self._prepared.store, "previous_response_id": self._prepared.previous_id}


def _split(data: bytes) -> list[bytes]:
    """Whole events, each with its empty line."""
    mark = b"\r\n\r\n" if b"\r\n\r\n" in data else b"\n\n"
    return [event + mark for event in data.split(mark) if event]


def _read(payload: bytes) -> Document | None:
    try:
        document: Any = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None
