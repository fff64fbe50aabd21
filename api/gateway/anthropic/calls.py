"""Tool calls that arrive in pieces, perhaps in turns, told one after the other."""

from collections.abc import Iterator

import orjson

from api.gateway.anthropic.answer import call_id
from api.gateway.conversion import Document


class Call:
    __slots__ = ("begun", "heard", "id", "name", "told")

    def __init__(self, id: str) -> None:
        self.id = id
        self.name = ""
        self.heard: list[str] = []
        """The pieces of the arguments so far."""
        self.told = 0
        """How many of them were passed on."""
        self.begun = False

    def is_whole(self) -> bool:
        """Nothing more can follow: the arguments are one JSON object."""
        if not self.name or not self._ends():
            return False
        try:
            orjson.loads("".join(self.heard))
        except orjson.JSONDecodeError:
            return False
        return True

    def _ends(self) -> bool:
        last = next((piece for piece in reversed(self.heard) if not piece.isspace()), "")
        return last.rstrip().endswith("}")


class Calls:
    """The first call is passed on as it comes. The next one waits until the one before is whole."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._by_index: dict[int, Call] = {}
        self._now = 0

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, piece: Document) -> None:
        """One entry of a chunk's ``tool_calls``."""
        function = piece.get("function") or {}
        call = self._of(piece, function)
        if not call.name:
            call.name = function.get("name") or ""
        arguments = function.get("arguments")
        if arguments:
            call.heard.append(arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode())

    def next(self) -> Iterator[tuple[Call, str]]:
        """What can be passed on now: a call, and the arguments that are new."""
        while self._now < len(self._calls):
            call = self._calls[self._now]
            if not call.name:
                return
            if not call.begun or call.told < len(call.heard):
                yield self._told(call)
            if self._now + 1 == len(self._calls) or not call.is_whole():
                return
            self._now += 1

    def rest(self) -> Iterator[tuple[Call, str]]:
        """At the end: all that has waited. A call without a name is none."""
        for call in self._calls[self._now :]:
            if call.name and (not call.begun or call.told < len(call.heard)):
                yield self._told(call)
        self._now = len(self._calls)

    def all_told(self) -> bool:
        """No argument is missing; something else may follow."""
        return all(call.is_whole() for call in self._calls[self._now :])

    def _told(self, call: Call) -> tuple[Call, str]:
        new = "".join(call.heard[call.told :])
        call.told = len(call.heard)
        return call, new

    def _of(self, piece: Document, function: Document) -> Call:
        index = piece.get("index")
        id = piece.get("id")
        call = self._at(index)
        # Some engines number all calls alike, or none: a new id with a name begins a new call.
        if call is None or (id and function.get("name") and call.name and id != call.id):
            call = Call(call_id(piece))
            self._calls.append(call)
            self._by_index[index if isinstance(index, int) else -1] = call
        return call

    def _at(self, index: int | None) -> Call | None:
        if isinstance(index, int):
            return self._by_index.get(index)
        return self._calls[-1] if self._calls else None
