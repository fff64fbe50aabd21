"""The events of a message as the chunks of a chat completion."""

from collections.abc import Callable
from typing import Any

import orjson

from api.gateway.anthropic.errors import event_to_openai
from api.gateway.anthropic.reverse_answer import Seen, completion_id, finish_reason, usage_of
from api.gateway.anthropic.sse import Events
from api.gateway.conversion import Document

_TAIL = b',"logprobs":null,"finish_reason":null}]}\n\n'
_DONE = b"data: [DONE]\n\n"
_WAITING = b": waiting\n\n"
_FUNCTION = b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}'


class ChatStream:
    """``with_usage``: the client asked for the chunk with the usage."""

    def __init__(self, seen: Seen, *, with_usage: bool) -> None:
        self._seen = seen
        self._with_usage = with_usage
        self._events = Events()
        self._head = b""
        self._id = ""
        self._calls = -1
        self._silent = False
        """The open tool use has no arguments yet."""
        self._thought: Document | None = None
        """The open block of thinking, to be sent whole at its end: only so can it be sent back."""
        self._thinking: list[str] = []
        self._reason: Any = None
        self._usage: Document = {}
        self._over = False
        self._take_of: dict[str, Callable[[Document], bytes]] = {
            "content_block_delta": self._delta,
            "content_block_start": self._block,
            "content_block_stop": self._block_end,
            "message_start": self._message,
            "message_delta": self._message_delta,
            "message_stop": self._message_stop,
            "ping": lambda event: _WAITING,
            "error": self._error,
        }

    def feed(self, data: bytes) -> bytes:
        return b"".join([self._take(payload) for payload in self._events.feed(data)])

    def end(self) -> bytes:
        rest = b"".join([self._take(payload) for payload in self._events.rest()])
        return rest + self._message_stop({})

    def _take(self, payload: bytes) -> bytes:
        if self._over:
            return b""
        if payload.startswith(b":"):
            return payload + b"\n\n"
        try:
            event = orjson.loads(payload)
            take = self._take_of.get(event["type"])
            return take(event) if take is not None else b""
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            return self._error({"error": {"message": "The provider sent an event that cannot be read."}})

    def _delta(self, event: Document) -> bytes:
        delta = event["delta"]
        match delta["type"]:
            case "text_delta":
                return self._chunk(b'{"content":%b}' % orjson.dumps(delta["text"]))
            case "input_json_delta" if delta["partial_json"]:
                self._silent = False
                return self._chunk(_FUNCTION % (self._calls, orjson.dumps(delta["partial_json"])))
            case "thinking_delta":
                self._thinking.append(delta["thinking"])
                return self._chunk(b'{"reasoning_content":%b}' % orjson.dumps(delta["thinking"]))
            case "signature_delta" if self._thought is not None:
                self._thought["signature"] = delta["signature"]
        return b""

    def _block(self, event: Document) -> bytes:
        block = event["content_block"]
        match block["type"]:
            case "text" if block.get("text"):
                return self._chunk(b'{"content":%b}' % orjson.dumps(block["text"]))
            case "tool_use":
                return self._call(block)
            case "thinking" | "redacted_thinking":
                self._thought = dict(block)
        return b""

    def _call(self, block: Document) -> bytes:
        self._calls += 1
        given = block.get("input")
        self._silent = not given
        function = {"name": block["name"], "arguments": orjson.dumps(given).decode() if given else ""}
        call = {"index": self._calls, "id": block["id"], "type": "function", "function": function}
        return self._chunk(orjson.dumps({"tool_calls": [call]}))

    def _block_end(self, event: Document) -> bytes:
        if self._silent:
            self._silent = False
            return self._chunk(_FUNCTION % (self._calls, b'"{}"'))
        if self._thought is None:
            return b""
        thought, self._thought = self._thought, None
        if self._thinking:
            thought["thinking"] = thought.get("thinking", "") + "".join(self._thinking)
            self._thinking.clear()
        return self._chunk(orjson.dumps({"thinking_blocks": [thought]}))

    def _message(self, event: Document) -> bytes:
        message = event["message"]
        self._usage = dict(message.get("usage") or {})
        self._begin(message.get("id"))
        return self._chunk(b'{"role":"assistant","content":""}')

    def _message_delta(self, event: Document) -> bytes:
        self._reason = event["delta"].get("stop_reason") or self._reason
        self._usage |= {name: value for name, value in (event.get("usage") or {}).items() if value is not None}
        return b""

    def _message_stop(self, event: Document) -> bytes:
        if self._over:
            return b""
        self._over = True
        first = b"" if self._head else self._message({"message": {}})
        reason = finish_reason(self._reason or ("tool_use" if self._calls >= 0 else None))
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}
        last = self._whole_chunk([choice], {})
        usage = self._whole_chunk([], {"usage": usage_of(self._usage)}) if self._with_usage else b""
        return first + last + usage + _DONE

    def _error(self, event: Document) -> bytes:
        self._over = True
        return event_to_openai(event)

    def _begin(self, id: Any) -> None:
        self._id = completion_id(id)
        start = orjson.dumps(self._common())[:-1]
        self._head = b'data: %b,"choices":[{"index":0,"delta":' % start

    def _chunk(self, delta: bytes) -> bytes:
        if not self._head:
            self._begin(None)
        return b"%b%b%b" % (self._head, delta, _TAIL)

    def _whole_chunk(self, choices: list[Document], more: Document) -> bytes:
        return b"data: %b\n\n" % orjson.dumps(self._common() | {"choices": choices} | more)

    def _common(self) -> Document:
        seen = self._seen
        return {"id": self._id, "object": "chat.completion.chunk", "created": seen.created, "model": seen.model}
