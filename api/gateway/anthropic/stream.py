"""The chunks of a chat completion as the events of a message."""

from collections.abc import Collection
from typing import Any

import orjson

from api.gateway.anthropic.answer import message_id, stop_of, usage_of
from api.gateway.anthropic.begun import Beginning, repeats_the_beginning
from api.gateway.anthropic.calls import Call, Calls
from api.gateway.anthropic.errors import event_to_anthropic
from api.gateway.anthropic.sse import Events
from api.gateway.conversion import Document

_TEXT, _THINKING, _TOOL = "text", "thinking", "tool_use"
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b}}\n\n'
_PIECES = {
    _TEXT: b'"text_delta","text":%b',
    _THINKING: b'"thinking_delta","thinking":%b',
    _TOOL: b'"input_json_delta","partial_json":%b',
}
_BEGUN: dict[str, Document] = {
    _TEXT: {"type": "text", "text": ""},
    _THINKING: {"type": "thinking", "thinking": "", "signature": ""},
}
_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_END = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class MessageStream:
    """One block is open at a time; the message ends with ``[DONE]``, for the usage comes after the last text."""

    def __init__(self, model: str, stops: Collection[str], begun: str = "") -> None:
        self._model = model
        self._stops = stops
        self._begun = Beginning(begun) if begun else None
        self._events = Events()
        self._index = -1
        self._open: str | None = None
        self._calls = Calls()
        self._late: list[tuple[str, str]] = []
        """What else came in the middle of a tool's arguments, by its kind."""
        self._choice: Document = {}
        """With the reason why it ended."""
        self._refused = False
        self._usage: Any = None
        self._started = False
        self._over = False

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        for payload in self._events.feed(data):
            self._take(payload, out)
        return b"".join(out)

    def end(self) -> bytes:
        out: list[bytes] = []
        for payload in self._events.rest():
            self._take(payload, out)
        self._finish(out)
        return b"".join(out)

    def _take(self, payload: bytes, out: list[bytes]) -> None:
        if self._over:
            pass
        elif payload == b"[DONE]":
            self._finish(out)
        elif payload.startswith(b":"):
            out.append(payload + b"\n\n")
        else:
            self._take_document(payload, out)

    def _take_document(self, payload: bytes, out: list[bytes]) -> None:
        try:
            chunk = orjson.loads(payload)
            if "choices" in chunk:
                self._take_chunk(chunk, out)
                return
        except (orjson.JSONDecodeError, TypeError, AttributeError, LookupError):
            chunk = {"error": {"message": "The engine sent an event that is not a chunk of a chat completion."}}
        if isinstance(chunk, dict) and ("error" in chunk or chunk.get("object") == "error"):
            self._over = True
            out.append(event_to_anthropic(chunk))

    def _take_chunk(self, chunk: Document, out: list[bytes]) -> None:
        usage = chunk.get("usage")
        if usage:
            self._usage = usage
        if not self._started:
            self._start(chunk, out)
        for choice in chunk["choices"]:
            delta = choice.get("delta")
            if delta:
                self._take_delta(delta, out)
            if choice.get("finish_reason"):
                self._choice = choice

    def _take_delta(self, delta: Document, out: list[bytes]) -> None:
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought:
            self._say(_THINKING, thought, out)
        text = delta.get("content")
        if text and self._begun is not None:
            text = self._begun.without(text)
        if text:
            self._say(_TEXT, text, out)
        if delta.get("tool_calls"):
            self._take_calls(delta["tool_calls"], out)
        if delta.get("refusal"):
            self._refused = True
            self._say(_TEXT, delta["refusal"], out)

    def _say(self, kind: str, piece: str, out: list[bytes]) -> None:
        if self._open != kind:
            if self._open == _TOOL and not self._calls.all_told():
                self._late.append((kind, piece))
                return
            self._say_what_is_late(out)
        if self._open != kind:
            self._begin(kind, _BEGUN[kind], out)
        out.append(_DELTA % (self._index, _PIECES[kind] % orjson.dumps(piece)))

    def _say_what_is_late(self, out: list[bytes]) -> None:
        late, self._late = self._late, []
        for kind, piece in late:
            self._say(kind, piece, out)

    def _take_calls(self, pieces: list[Document], out: list[bytes]) -> None:
        for piece in pieces:
            self._calls.add(piece)
        for call, arguments in self._calls.next():
            self._tell(call, arguments, out)

    def _tell(self, call: Call, arguments: str, out: list[bytes]) -> None:
        if not call.begun:
            call.begun = True
            self._begin(_TOOL, {"type": _TOOL, "id": call.id, "name": call.name, "input": {}}, out)
        if arguments:
            out.append(_DELTA % (self._index, _PIECES[_TOOL] % orjson.dumps(arguments)))

    def _begin(self, kind: str, block: Document, out: list[bytes]) -> None:
        self._close(out)
        self._index += 1
        self._open = kind
        event = {"type": "content_block_start", "index": self._index, "content_block": block}
        out.append(b"event: content_block_start\ndata: %b\n\n" % orjson.dumps(event))

    def _close(self, out: list[bytes]) -> None:
        if self._open is not None:
            out.append(_STOP % self._index)
            self._open = None

    def _start(self, chunk: Document, out: list[bytes]) -> None:
        self._started = True
        if not repeats_the_beginning(chunk):
            self._begun = None
        message: Document = {
            "id": message_id(chunk.get("id")),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(self._usage),
        }
        start = orjson.dumps({"type": "message_start", "message": message})
        out.append(b"event: message_start\ndata: %b\n\n%b" % (start, _PING))

    def _finish(self, out: list[bytes]) -> None:
        if self._over:
            return
        self._over = True
        if not self._started:
            self._start({}, out)
        for call, arguments in self._calls.rest():
            self._tell(call, arguments, out)
        self._say_what_is_late(out)
        self._close(out)
        reason, sequence = stop_of(self._choice, self._stops, called=bool(self._calls))
        delta = {"stop_reason": "refusal" if self._refused else reason, "stop_sequence": sequence}
        event = {"type": "message_delta", "delta": delta, "usage": usage_of(self._usage)}
        out.append(b"event: message_delta\ndata: %b\n\n%b" % (orjson.dumps(event), _END))
