"""An answer whose beginning was in the request: Anthropic answers with what follows, llama.cpp with all of it."""

from typing import Any

from api.gateway.anthropic.messages import is_continued
from api.gateway.conversion import Document


def beginning(messages: list[Document]) -> str:
    """The text that the answer is to go on from; mostly none."""
    return messages[-1]["content"] if is_continued(messages) else ""


def repeats_the_beginning(answer: Document) -> bool:
    """Only llama.cpp does; its fingerprint is its build: ``b6710-74b8fc17``."""
    build: Any = answer.get("system_fingerprint")
    return isinstance(build, str) and build[:1] == "b" and build[1:].partition("-")[0].isdigit()


class Beginning:
    """Takes a repeated beginning off the pieces of an answer."""

    __slots__ = ("_left",)

    def __init__(self, text: str) -> None:
        self._left = text

    def without(self, piece: str) -> str:
        """What of the piece is new."""
        if not self._left:
            return piece
        if self._left.startswith(piece):
            self._left = self._left[len(piece) :]
            return ""
        left, self._left = self._left, ""
        return piece.removeprefix(left)
