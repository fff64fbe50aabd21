"""Whose fault is an engine's error? Engines answer 500 to what a client should be told with 400. Pure."""

import re

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


def _message(body: bytes) -> str | None:
    try:
        error = orjson.loads(body)["error"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else None
