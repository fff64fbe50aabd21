"""A message of Anthropic's as a chat completion."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson

from api.gateway.anthropic.answer import count_in
from api.gateway.conversion import Document
from api.gateway.refusals import error_body

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the client sees of its answer that Anthropic's does not say."""

    model: str
    """By which it asked."""
    created: int
    """In seconds since 1970."""


def chat_answer(body: bytes, seen: Seen) -> bytes:
    try:
        message = orjson.loads(body)
        said = _said(message["content"])
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return error_body("The provider's answer is not a message.", kind="api_error", param=None, code="api_error")
    reason = finish_reason(message.get("stop_reason"))
    return orjson.dumps(
        {
            "id": completion_id(message.get("id")),
            "object": "chat.completion",
            "created": seen.created,
            "model": seen.model,
            "choices": [{"index": 0, "message": said, "logprobs": None, "finish_reason": reason}],
            "usage": usage_of(message.get("usage")),
        }
    )


def completion_id(message: Any) -> str:
    text = message if isinstance(message, str) and message else uuid4().hex
    return "chatcmpl-" + text.removeprefix("msg_")


def finish_reason(reason: Any) -> str:
    return _REASONS.get(str(reason), "stop")


def usage_of(usage: Any) -> Document:
    """Tokens; the prompt's are all that were read, from the cache or not."""
    if not isinstance(usage, dict):
        usage = {}
    cached = count_in(usage, "cache_read_input_tokens")
    prompt = count_in(usage, "input_tokens") + count_in(usage, "cache_creation_input_tokens") + cached
    completion = count_in(usage, "output_tokens")
    found: Document = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    details = usage.get("output_tokens_details")
    if isinstance(details, dict):
        found["completion_tokens_details"] = {"reasoning_tokens": count_in(details, "thinking_tokens")}
    return found


def _said(content: list[Document]) -> Document:
    texts = [block["text"] for block in content if block["type"] == "text"]
    said: Document = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": None}
    calls = [_call(block) for block in content if block["type"] == "tool_use"]
    if calls:
        said["tool_calls"] = calls
    thoughts = [block for block in content if block["type"] in ("thinking", "redacted_thinking")]
    if thoughts:
        said["reasoning_content"] = "".join(block.get("thinking", "") for block in thoughts)
        said["thinking_blocks"] = thoughts
    return said


def _call(block: Document) -> Document:
    function = {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}
    return {"id": block["id"], "type": "function", "function": function}
