"""The items of an answer while they grow, and the events that tell of it."""

from dataclasses import dataclass
from typing import Any

import orjson

from api.gateway.conversion import Document

COMPLETED, INCOMPLETE = "completed", "incomplete"
_CONTENT, _SUMMARY = "response.content_part", "response.reasoning_summary_part"


class Events:
    """Numbers and writes events; none of them if the client wants but the response."""

    __slots__ = ("_number", "_told")

    def __init__(self, *, told: bool) -> None:
        self._told = told
        self._number = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        if not self._told:
            return b""
        document = {"type": kind, **fields, "sequence_number": self._number}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(document))

    def delta(self, head: bytes, text: str) -> bytes:
        """``head``: of ``delta_head``. Most events are such: nothing but the text is written anew."""
        if not self._told:
            return b""
        self._number += 1
        return b'%b%b,"sequence_number":%d}\n\n' % (head, orjson.dumps(text), self._number - 1)


def delta_head(kind: str, **fields: Any) -> bytes:
    document = orjson.dumps({"type": kind, **fields})
    return b'event: %b\ndata: %b,"delta":' % (kind.encode(), document[:-1])


@dataclass(frozen=True, slots=True)
class Kind:
    """Of a part: what its events and fields are called."""

    type: str
    events: str
    """Before ``.delta`` and ``.done``."""
    part: str = _CONTENT
    """Before ``.added`` and ``.done``."""
    index: str = "content_index"
    text: str = "text"


OUTPUT_TEXT = Kind("output_text", "response.output_text")
REFUSAL = Kind("refusal", "response.refusal", text="refusal")
REASONING = Kind("reasoning_text", "response.reasoning_text")
SUMMARY = Kind("summary_text", "response.reasoning_summary_text", _SUMMARY, "summary_index")


class Part:
    __slots__ = ("_at", "_head", "_logprobs", "_texts", "kind")

    def __init__(self, kind: Kind, item_id: str, output_index: int, index: int) -> None:
        self.kind = kind
        self._texts: list[str] = []
        self._logprobs: list[Document] = []
        self._at: Document = {"item_id": item_id, "output_index": output_index, kind.index: index}
        extra: Document = {"logprobs": []} if kind is OUTPUT_TEXT else {}
        self._head = delta_head(f"{kind.events}.delta", **self._at, **extra)

    def value(self) -> Document:
        said: Document = {"type": self.kind.type, self.kind.text: "".join(self._texts)}
        if self.kind is OUTPUT_TEXT:
            said |= {"annotations": [], "logprobs": self._logprobs}
        return said

    def added(self, events: Events) -> bytes:
        return events.event(f"{self.kind.part}.added", **self._at, part=self.value())

    def delta(self, events: Events, text: str, logprobs: list[Document]) -> bytes:
        self._texts.append(text)
        if not logprobs:
            return events.delta(self._head, text)
        self._logprobs += logprobs
        return events.event(f"{self.kind.events}.delta", **self._at, delta=text, logprobs=logprobs)

    def done(self, events: Events) -> bytes:
        value = self.value()
        said = {self.kind.text: value[self.kind.text]}
        if self.kind is OUTPUT_TEXT:
            said["logprobs"] = self._logprobs
        return events.event(f"{self.kind.events}.done", **self._at, **said) + events.event(
            f"{self.kind.part}.done", **self._at, part=value
        )


class Spoken:
    """A message, or what the model thinks."""

    __slots__ = ("_id", "_index", "_parts", "_reasons")

    def __init__(self, item_id: str, index: int, *, reasons: bool) -> None:
        self._id = item_id
        self._index = index
        self._reasons = reasons
        self._parts: list[Part] = []

    @property
    def part(self) -> Part | None:
        return self._parts[-1] if self._parts else None

    def value(self, status: str) -> Document:
        if not self._reasons:
            content = [part.value() for part in self._parts]
            return {"id": self._id, "type": "message", "role": "assistant", "status": status, "content": content}
        summary = [part.value() for part in self._parts if part.kind is SUMMARY]
        thought: Document = {"id": self._id, "type": "reasoning", "status": status, "summary": summary}
        if content := [part.value() for part in self._parts if part.kind is REASONING]:
            thought["content"] = content
        return thought

    def open(self, events: Events) -> bytes:
        item = self.value("in_progress")
        return events.event("response.output_item.added", output_index=self._index, item=item)

    def say(self, events: Events, kind: Kind, text: str, logprobs: list[Document]) -> bytes:
        part, told = self.part, b""
        if part is None or part.kind is not kind:
            told = part.done(events) if part is not None else b""
            part = Part(kind, self._id, self._index, len(self._parts))
            self._parts.append(part)
            told += part.added(events)
        return told + part.delta(events, text, logprobs) if text or logprobs else told

    def close(self, events: Events, status: str) -> bytes:
        told = self._parts[-1].done(events) if self._parts else b""
        return told + events.event("response.output_item.done", output_index=self._index, item=self.value(status))


class Called:
    """A call of a function."""

    __slots__ = ("_arguments", "_call_id", "_head", "_id", "_index", "_name")

    def __init__(self, item_id: str, index: int, call_id: str, name: str) -> None:
        self._id = item_id
        self._index = index
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []
        self._head = delta_head("response.function_call_arguments.delta", item_id=item_id, output_index=index)

    def value(self, status: str) -> Document:
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }

    def open(self, events: Events) -> bytes:
        item = self.value("in_progress")
        return events.event("response.output_item.added", output_index=self._index, item=item)

    def goes_on(self, events: Events, arguments: str) -> bytes:
        if not arguments:
            return b""
        self._arguments.append(arguments)
        return events.delta(self._head, arguments)

    def close(self, events: Events, status: str) -> bytes:
        done = events.event(
            "response.function_call_arguments.done",
            item_id=self._id,
            output_index=self._index,
            name=self._name,
            arguments="".join(self._arguments),
        )
        return done + events.event("response.output_item.done", output_index=self._index, item=self.value(status))
