"""From the operation that a client asks for to one that its target speaks, and back."""

from typing import Any, Protocol

from api.gateway.filters import Filter

Document = dict[str, Any]
"""A JSON object."""


class Conversion(Protocol):
    """One request. Pure: no I/O, no clock but what the answer itself says."""

    path: str
    """That the target is asked, below its base: ``/v1/chat/completions``."""

    def request(self, document: Document) -> Document:
        """What the target is sent. Raises ``Refusal`` (400) naming a field that cannot be said there, and the remedy;
        a field that the other side merely ignores is left out."""
        ...

    def answer(self) -> Filter:
        """Turns the target's answer (JSON or events; success or error) into the client's. After ``request``."""
        ...
