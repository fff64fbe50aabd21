"""Server-sent events, as far as passing them on needs to know them."""

from api.gateway.refusals import error_body

_LONGEST_HELD = 256 << 10
"""Bytes of one unfinished event that are held back; a longer one is passed on in pieces."""
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class EventStream:
    """Lets whole events through and holds back an unfinished one.

    Nothing is delayed that a client could use, and a stream that breaks in the middle of an event can still
    be ended with a readable error.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may be passed on now; may be empty."""
        if self._held:
            data = self._held + data
            self._held = b""
        if data.endswith(_ENDS):
            return data
        end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in _ENDS)
        if end == 0 and len(data) > _LONGEST_HELD:
            return data
        self._held = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What is held when the stream has come to its proper end."""
        held, self._held = self._held, b""
        return held


def error_event(message: str, code: str) -> bytes:
    return b"data: %b\n\n" % error_body(message, kind="api_error", param=None, code=code)
