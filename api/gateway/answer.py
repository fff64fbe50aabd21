"""An engine's answer on its way to the client: metered, and said as the client's protocol says it."""

from api.gateway.call import Call
from api.gateway.events import EventStream, error_event
from api.gateway.filters import Filter, Headers
from api.gateway.meter import Meter
from api.gateway.operation import Shape
from api.gateway.prepare import Prepared
from api.gateway.refusals import anthropic_error


class Answer:
    """Synchronous: ``head``, then ``feed`` for all that comes, then ``end`` if the answer came to its proper end."""

    __slots__ = ("_call", "_events", "_filter", "_kept", "meter", "whole")

    def __init__(self, call: Call, prepared: Prepared, meter: Meter) -> None:
        self._call = call
        self.meter = meter
        self._filter: Filter | None = prepared.conversion.answer() if prepared.conversion is not None else None
        self._events: EventStream | None = None
        self._kept: list[bytes] = []
        self.whole = False
        """It is short and its length not known yet: nothing is passed on before its end."""

    def head(self, status: int, headers: Headers, *, event_stream: bool) -> tuple[int, Headers]:
        if event_stream:
            self._events = EventStream()
        status, headers = self.meter.head(status, headers)
        if self._filter is not None:
            status, headers = self._filter.head(status, headers)
            self.whole = not event_stream
        return status, headers

    def feed(self, data: bytes) -> bytes:
        if self._events is not None:
            data = self._events.feed(data)
            if not data:
                return data
        data = self.meter.feed(data)
        if self._filter is not None:
            return self._filter.feed(data) if data else data
        return data

    def end(self) -> bytes:
        data = b""
        if self._events is not None and (rest := self._events.rest()):
            data = self.meter.feed(rest)
        data += self.meter.end()
        if self._filter is not None:
            return (self._filter.feed(data) if data else b"") + self._filter.end()
        return data

    def keep(self, data: bytes) -> None:
        """Of a ``whole`` answer, until its end."""
        self._kept.append(data)

    def kept(self) -> bytes:
        return b"".join(self._kept)

    def broken(self, message: str) -> bytes:
        """What a stream says that breaks off."""
        if self._events is None:
            return b""
        if self._call.operation.shape is Shape.ANTHROPIC:
            return b"event: error\ndata: %b\n\n" % anthropic_error(502, message)
        return error_event(message, "engine_failed")
