"""The response object, and what of it is known before the answer."""

from typing import Any

from api.gateway.conversion import Document
from api.gateway.responses.prepared import Prepared

_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "temperature",
    "top_p",
    "user",
)


def begun(prepared: Prepared) -> Document:
    """The response in progress. What the request left to the engine is not known, and null."""
    asked = prepared.original
    reasoning = asked.get("reasoning") or {}
    return {
        "id": prepared.response_id,
        "object": "response",
        "created_at": prepared.created_at,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        **{name: asked.get(name) for name in _ECHOED},
        "metadata": asked.get("metadata") or {},
        "model": asked.get("model"),
        "output": [],
        "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
        "previous_response_id": prepared.previous_id,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "store": prepared.store,
        "text": {"format": {"type": "text"}, **(asked.get("text") or {})},
        "tool_choice": asked.get("tool_choice") or "auto",
        "tools": asked.get("tools") or [],
        "top_logprobs": asked.get("top_logprobs") or 0,
        "truncation": "disabled",
        "usage": None,
    }


def wants_summary(prepared: Prepared) -> bool:
    """What the model thinks is to be told as its summary."""
    reasoning = prepared.original.get("reasoning") or {}
    return bool(reasoning.get("summary") or reasoning.get("generate_summary"))


def usage_of(said: Any) -> Document | None:
    """Of what chat completions say."""
    if not isinstance(said, dict):
        return None
    read, written = _count(said, "prompt_tokens"), _count(said, "completion_tokens")
    of_read, of_written = _details(said, "prompt_tokens_details"), _details(said, "completion_tokens_details")
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": _count(of_read, "cached_tokens"), "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": _count(of_written, "reasoning_tokens")},
        "total_tokens": _count(said, "total_tokens") or read + written,
    }


def logprobs_of(choice: Document) -> list[Document]:
    """Each with its bytes, which some engines leave out."""
    said = choice.get("logprobs")
    tokens = said.get("content") if isinstance(said, dict) else None
    return [
        _token(token) | {"top_logprobs": [_token(other) for other in token.get("top_logprobs") or []]}
        for token in tokens or []
        if isinstance(token, dict)
    ]


def _token(said: Document) -> Document:
    text = str(said.get("token") or "")
    written = said.get("bytes")
    return {"token": text, "logprob": said.get("logprob") or 0.0, "bytes": written or list(text.encode())}


def _details(said: Document, name: str) -> Document:
    details = said.get(name)
    return details if isinstance(details, dict) else {}


def _count(said: Document, name: str) -> int:
    value = said.get(name)
    return value if isinstance(value, int) else 0
