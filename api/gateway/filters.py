"""What an answer goes through on its way from the engine to the client."""

from typing import Protocol

Headers = list[tuple[bytes, bytes]]


class Filter(Protocol):
    """One answer. Synchronous and without I/O: the hot path calls it for every piece.

    Of server-sent events ``feed`` gets whole ones, one or several at a time; of other bodies any pieces.
    """

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        """Once, first. Names are in lower case; ``content-length`` must go when the length may change."""
        ...

    def feed(self, data: bytes) -> bytes:
        """What is to be passed on now; may be empty."""
        ...

    def end(self) -> bytes:
        """The answer came to its proper end; what is still to be passed on."""
        ...
