"""The web server's protocol, with a bound on what it keeps of a request before anybody has looked at it."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 << 10
"""Bytes; requests of ours have heads of one or two KiB."""


class BoundedHttp(HttpToolsProtocol):
    """For uvicorn's ``http``. A head (or what follows a body in chunks) that does not end is refused with a 400."""

    _retired = False
    _unread = 0
    """Bytes since the parser last came to the end of a head, or to a piece of a body."""

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > HEAD_LIMIT and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def retire(self) -> None:
        """The current answer is the last one on this connection; without one, that to the next request is."""
        self._retired = True
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def on_headers_complete(self) -> None:
        self._unread = 0
        before = self.cycle
        super().on_headers_complete()
        if self._retired and self.cycle is not before:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()
