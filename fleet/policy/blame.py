"""Whose fault is an engine's error? Engines answer 500 to what a client should be told with 400. Pure."""

import re
from enum import Enum

import orjson

_CLIENTS_WORDS = re.compile(
    r"is not supported|does not support|not supported by|unsupported (?:param|content|type|input)"
    r"|failed to parse (?:tools|tool|messages|grammar|input|json|schema|content)"
    r"|expected '|missing (?:tool|required|field|')"
    r"|\binvalid (?:param|type|value|grammar|message|role|json|request|input)"
    r"|must be (?:an?|one of|of type|provided|set|greater|less|positive|between)|unknown (?:role|type|field|param)",
    re.IGNORECASE,
)
"""Messages about the request, of llama.cpp and its kind. A message about the engine itself has none of them."""
_LOOKED_AT = 4096


def clients_fault(status: int, body: bytes) -> str | None:
    """The engine's message when its 5xx speaks of the request; None when it speaks of the engine.

    501 always does: the client asked for something that this engine was not started for.
    """
    message = _message(body)
    if message is None:
        return None
    if status == 501 or (status == 500 and _CLIENTS_WORDS.search(message[:_LOOKED_AT])):
        return message
    return None


class Blame(Enum):
    """What a request has that this model cannot take, and another might."""

    CONTEXT = "context"
    POLICY = "policy"


_TOO_LONG = re.compile(
    r"context.{0,20}(?:length|window|size)|maximum context|exceeds? the (?:available )?context"
    r"|too (?:many|long).{0,20}(?:tokens|prompt)|prompt is too long"
    r"|(?:input|prompt).{0,30}(?:longer|exceed).{0,40}(?:maximum|limit|context|model)",
    re.IGNORECASE,
)
_AGAINST_POLICY = re.compile(
    r"content.?(?:policy|filter|management)|safety (?:system|policy)|moderation", re.IGNORECASE
)
_LONG_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"})
_POLICY_CODES = frozenset({"content_filter", "content_policy_violation", "content_policy"})


def meaning(body: bytes) -> tuple[Blame, str] | None:
    """Whether a 4xx speaks of the length of the request or of what it is about, with its message."""
    message = _message(body)
    if message is None:
        return None
    error = orjson.loads(body)["error"]
    fields = (error.get("code"), error.get("type")) if isinstance(error, dict) else ()
    said = {field for field in fields if isinstance(field, str)}
    if said & _LONG_CODES or _TOO_LONG.search(message[:_LOOKED_AT]):
        return Blame.CONTEXT, message
    if said & _POLICY_CODES or _AGAINST_POLICY.search(message[:_LOOKED_AT]):
        return Blame.POLICY, message
    return None


def _message(body: bytes) -> str | None:
    try:
        error = orjson.loads(body)["error"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else None
