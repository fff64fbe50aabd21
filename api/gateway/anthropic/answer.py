"""A chat completion as a message of Anthropic's."""

from collections.abc import Collection
from typing import Any
from uuid import uuid4

import orjson

from api.gateway.anthropic.begun import Beginning, repeats_the_beginning
from api.gateway.anthropic.errors import anthropic_error
from api.gateway.anthropic.tools import arguments_of
from api.gateway.conversion import Document

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def message_answer(body: bytes, model: str, stops: Collection[str], begun: str = "") -> bytes:
    """``model``: by which the client asked. ``stops``: the sequences that it named. ``begun``: see ``beginning``."""
    try:
        completion = orjson.loads(body)
        choice = completion["choices"][0]
        message = choice["message"]
        content = _content(message, begun if repeats_the_beginning(completion) else "")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return anthropic_error(502, "The engine's answer is not a chat completion.")
    reason, sequence = stop_of(choice, stops, called=bool(message.get("tool_calls")))
    return orjson.dumps(
        {
            "id": message_id(completion.get("id")),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": content,
            "stop_reason": "refusal" if message.get("refusal") else reason,
            "stop_sequence": sequence,
            "usage": usage_of(completion.get("usage")),
        }
    )


def message_id(completion: Any) -> str:
    """Says the engine's own id, by which its log knows the request."""
    text = completion if isinstance(completion, str) and completion else uuid4().hex
    return "msg_" + text.removeprefix("chatcmpl-")


def call_id(call: Document) -> str:
    return call.get("id") or f"toolu_{uuid4().hex[:24]}"


def stop_of(choice: Document, stops: Collection[str], *, called: bool) -> tuple[str, str | None]:
    """``stop_reason`` and ``stop_sequence``. vLLM says what matched as stop_reason, SGLang as matched_stop."""
    reason = choice.get("finish_reason")
    matched = choice.get("stop_reason") or choice.get("matched_stop")
    if reason == "stop" and isinstance(matched, str) and matched in stops:
        return "stop_sequence", matched
    if called and reason in (None, "stop"):
        return "tool_use", None
    return _REASONS.get(str(reason), "end_turn"), None


def usage_of(usage: Any) -> Document:
    """Tokens; what was read from the cache is not counted among ``input_tokens``."""
    if not isinstance(usage, dict):
        return {"input_tokens": 0, "output_tokens": 0}
    prompt = count_in(usage, "prompt_tokens")
    cached = min(_detail(usage, "prompt_tokens_details", "cached_tokens"), prompt)
    found: Document = {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": count_in(usage, "completion_tokens"),
    }
    thought = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    if thought:
        found["output_tokens_details"] = {"thinking_tokens": thought}
    return found


def count_in(usage: Document, name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0


def _detail(usage: Document, group: str, name: str) -> int:
    details = usage.get(group)
    return count_in(details, name) if isinstance(details, dict) else 0


def _content(message: Document, begun: str) -> list[Document]:
    content: list[Document] = []
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought:
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    text = message.get("content") or message.get("refusal")
    if text and (new := Beginning(begun).without(text)):
        content.append({"type": "text", "text": new})
    for call in message.get("tool_calls") or ():
        function = call["function"]
        found = {"type": "tool_use", "id": call_id(call), "name": function["name"]}
        content.append(found | {"input": arguments_of(function.get("arguments"))})
    return content
