"""A response made of a chat completion: of its chunks as they come, or of the whole one as of a single chunk."""

from collections.abc import Callable
from typing import Any

import orjson

from api.gateway.anthropic.calls import Call, Calls
from api.gateway.conversion import Document
from api.gateway.responses.errors import error_of, failure_code
from api.gateway.responses.ids import output_id
from api.gateway.responses.output import (
    COMPLETED,
    INCOMPLETE,
    OUTPUT_TEXT,
    REASONING,
    REFUSAL,
    SUMMARY,
    Called,
    Events,
    Kind,
    Spoken,
)
from api.gateway.responses.prepared import Prepared
from api.gateway.responses.response import begun, logprobs_of, usage_of, wants_summary

Keep = Callable[[Prepared, Document], None]
_WHY_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_FAILED = frozenset({"abort", "error"})
_BROKE_OFF = b'{"error":{"message":"The engine ended its answer before it was complete.","type":"api_error"}}'


class Building:
    """Feed it chunks, then ``finish``; or ``fail``. All return the events that are to be told."""

    def __init__(self, prepared: Prepared, keep: Keep | None) -> None:
        self._prepared = prepared
        self._keep = keep
        self._events = Events(told=prepared.stream)
        self.response = begun(prepared)
        self.ended = False
        self._summary = wants_summary(prepared)
        self._began = False
        self._items: list[Spoken | Called] = []
        self._open: Spoken | Called | None = None
        self._kind: Kind | None = None
        """Of the part that is being said."""
        self._calls = Calls()
        self._called: dict[int, Called] = {}
        self._held: list[tuple[Kind, str, list[Document]]] = []
        """Said while a call was not whole: an item that is closed must not go on."""
        self._finish_reason: str | None = None

    def chunk(self, payload: bytes) -> bytes:
        """A chunk, or a whole completion, as JSON. What is neither is passed over; an error fails the response."""
        try:
            document: Any = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return b""
        if self.ended or not isinstance(document, dict):
            return b""
        if document.get("error") or document.get("object") == "error":
            return self.fail(payload)
        told = self.begin()
        if (usage := document.get("usage")) is not None:
            self.response["usage"] = usage_of(usage) or self.response["usage"]
        for choice in document.get("choices") or ():
            if isinstance(choice, dict) and not choice.get("index"):
                told += self._choice(choice)
        return told

    def begin(self) -> bytes:
        if self._began:
            return b""
        self._began = True
        told = self._events.event("response.created", response=self.response)
        return told + self._events.event("response.in_progress", response=self.response)

    def finish(self, *, done: bool) -> bytes:
        """The engine has ended its answer. ``done``: it said so; without that and a reason, it broke off."""
        if self.ended:
            return b""
        if self._finish_reason in _FAILED or (self._finish_reason is None and not done):
            return self.fail(_BROKE_OFF)
        told = self.begin() + self._rest() + self._last_words()
        if why := _WHY_INCOMPLETE.get(self._finish_reason or ""):
            self.response["incomplete_details"] = {"reason": why}
        status = INCOMPLETE if why else COMPLETED
        if not self._items:
            told += self._say(OUTPUT_TEXT, "", [])
        told += self._close(status)
        return told + self._end(status, status)

    def fail(self, error: bytes) -> bytes:
        """``error``: JSON of any shape."""
        if self.ended:
            return b""
        what = error_of(error)
        self.response["error"] = {"code": failure_code(what), "message": what["message"]}
        told = self.begin()
        told += self._end("failed", INCOMPLETE)
        code = what["code"] or self.response["error"]["code"]
        return told + self._events.event("error", code=code, message=what["message"], param=what["param"])

    def body(self) -> bytes:
        """The response, for a client that wants no events."""
        return orjson.dumps(self.response)

    def _end(self, status: str, last: str) -> bytes:
        """``last``: status of the item that came last."""
        self.ended = True
        outputs = [item.value(COMPLETED) for item in self._items[:-1]]
        outputs += [item.value(last) for item in self._items[-1:]]
        self.response |= {"status": status, "output": outputs}
        if self._keep is not None and self._prepared.store:
            self._keep(self._prepared, self.response)
        return self._events.event(f"response.{status}", response=self.response)

    def _choice(self, choice: Document) -> bytes:
        delta = choice.get("delta") or choice.get("message")
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        if not isinstance(delta, dict):
            return b""
        told = b""
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            told += self._say(SUMMARY if self._summary else REASONING, _text(thought), [])
        logprobs = logprobs_of(choice) if choice.get("logprobs") else []
        if (text := delta.get("content")) or (logprobs and text is not None):
            told += self._say(OUTPUT_TEXT, _text(text), logprobs)
        if refusal := delta.get("refusal"):
            told += self._say(REFUSAL, _text(refusal), [])
        if pieces := delta.get("tool_calls"):
            told += self._pieces(pieces)
        return told

    def _pieces(self, pieces: list[Any]) -> bytes:
        for piece in pieces:
            if isinstance(piece, dict):
                self._calls.add(piece)
        told = b"".join([self._call(call, new) for call, new in self._calls.next()])
        return told + self._released() if self._held and self._calls.all_told() else told

    def _say(self, kind: Kind, text: str, logprobs: list[Document]) -> bytes:
        item, told = self._open, b""
        if isinstance(item, Called) and not self._calls.all_told():
            self._held.append((kind, text, logprobs))
            return b""
        if not isinstance(item, Spoken) or _reasons(self._kind) is not _reasons(kind):
            told = self._rest() if item is not None else b""
            prefix = "rs" if _reasons(kind) else "msg"
            index = len(self._items)
            item = Spoken(output_id(prefix, self._prepared.response_id, index), index, reasons=_reasons(kind))
            told += self._opened(item)
        self._kind = kind
        return told + item.say(self._events, kind, text, logprobs)

    def _last_words(self) -> bytes:
        self._calls = Calls()  # nothing more comes of them
        return self._released()

    def _released(self) -> bytes:
        held, self._held = self._held, []
        return b"".join([self._say(*said) for said in held])

    def _call(self, call: Call, arguments: str) -> bytes:
        called, told = self._called.get(id(call)), b""
        if called is None:
            index = len(self._items)
            called = Called(output_id("fc", self._prepared.response_id, index), index, call.id, call.name)
            self._called[id(call)] = called
            told = self._opened(called)
        return told + called.goes_on(self._events, arguments)

    def _rest(self) -> bytes:
        return b"".join([self._call(call, new) for call, new in self._calls.rest()])

    def _opened(self, item: Spoken | Called) -> bytes:
        told = self._close(COMPLETED)
        self._open = item
        self._items.append(item)
        return told + item.open(self._events)

    def _close(self, status: str) -> bytes:
        item, self._open = self._open, None
        return item.close(self._events, status) if item is not None else b""


def _reasons(kind: Kind | None) -> bool:
    return kind in (REASONING, SUMMARY)


def _text(said: Any) -> str:
    """Of a text, or of parts with texts."""
    if isinstance(said, str):
        return said
    parts = said if isinstance(said, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))
