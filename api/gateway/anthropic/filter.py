"""One converted answer: whole, streamed, or an error."""

from collections.abc import Callable
from typing import Protocol

from api.gateway.filters import Headers

_NOT_PASSED_ON = frozenset({b"content-length", b"content-type"})
_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


class Stream(Protocol):
    """Server-sent events of one protocol, fed in; those of the other, coming out."""

    def feed(self, data: bytes) -> bytes: ...

    def end(self) -> bytes: ...


class Whole:
    """A body that can only be converted once all of it is there."""

    def __init__(self, convert: Callable[[bytes], bytes]) -> None:
        self._convert = convert
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        self._parts.append(data)
        return b""

    def end(self) -> bytes:
        return self._convert(b"".join(self._parts))


class Converted:
    """The filter of an answer; which of the three it is, its head says."""

    def __init__(
        self,
        *,
        whole: Callable[[bytes], bytes],
        error: Callable[[int, bytes], bytes],
        stream: Callable[[], Stream] | None = None,
        status: Callable[[int], int] = int,
    ) -> None:
        self._whole = whole
        self._error = error
        self._stream = stream
        self._status = status
        self._body: Stream = Whole(whole)

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        kept = [header for header in headers if header[0] not in _NOT_PASSED_ON]
        if status >= 400:
            self._body = Whole(lambda body: self._error(status, body))
        elif self._stream is not None and _are_events(headers):
            self._body = self._stream()
            return status, [*kept, _EVENTS]
        return self._status(status), [*kept, _JSON]

    def feed(self, data: bytes) -> bytes:
        return self._body.feed(data)

    def end(self) -> bytes:
        return self._body.end()


def _are_events(headers: Headers) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
