"""Errors in Anthropic's shape, and what an error of any shape says."""

from typing import Any

import orjson

from api.gateway.refusals import error_body

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STATUSES = {kind: status for status, kind in _TYPES.items() if status not in (408, 529)} | {"api_error": 500}
_NAMED = ("message", "detail", "error", "msg")
"""Where engines put what they have to say, outermost first: OpenAI, vLLM, SGLang, llama.cpp, FastAPI, TGI, Ollama."""
_LONGEST = 2000
"""Characters of an engine's message that are passed on."""


def error_type(status: int) -> str:
    """By Anthropic's table; other 4xx are the request's fault, other 5xx the server's."""
    return _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")


def anthropic_error(status: int, message: str) -> bytes:
    return _anthropic(error_type(status), message)


def anthropic_error_event(status: int, message: str) -> bytes:
    """What ends a stream that cannot go on."""
    return b"event: error\ndata: %b\n\n" % anthropic_error(status, message)


def to_anthropic(status: int, body: bytes) -> bytes:
    """An engine's answer of an error, in Anthropic's shape."""
    return anthropic_error(status, said_in(status, body))


def to_openai(status: int, body: bytes) -> bytes:
    """Anthropic's answer of an error, in OpenAI's shape."""
    kind = _kind_in(body) or error_type(status)
    return error_body(said_in(status, body), kind=kind, param=None, code=kind)


def openai_status(status: int) -> int:
    """529 is Anthropic's own number; OpenAI's clients know 503 for the same."""
    return 503 if status == 529 else status


def event_to_anthropic(document: dict[str, Any]) -> bytes:
    """An OpenAI error in the middle of a stream."""
    return anthropic_error_event(_status_of(document), _message_in(document) or "The engine failed.")


def event_to_openai(document: dict[str, Any]) -> bytes:
    """Anthropic's error in the middle of a stream."""
    error = document.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    kind = kind if isinstance(kind, str) else "api_error"
    message = _message_in(document) or "The provider failed."
    return b"data: %b\n\n" % error_body(message, kind=kind, param=None, code=kind)


def said_in(status: int, body: bytes) -> str:
    """The message in an error of any shape; the text itself where it is not JSON."""
    try:
        message = _message_in(orjson.loads(body))
    except orjson.JSONDecodeError:
        message = body[: 4 * _LONGEST].decode("utf-8", "replace").strip()[:_LONGEST]
    return message or f"The engine answered {status} and said nothing."


def _message_in(document: Any, depth: int = 0) -> str:
    if isinstance(document, str):
        return document[:_LONGEST]
    if isinstance(document, list) and document:
        return "; ".join(filter(None, (_message_in(item, depth + 1) for item in document[:5])))
    if isinstance(document, dict) and depth < 4:
        for name in _NAMED:
            if found := _message_in(document.get(name), depth + 1):
                return found
    return ""


def _status_of(document: dict[str, Any]) -> int:
    error = document.get("error")
    inner = error if isinstance(error, dict) else document
    for name in ("code", "status", "status_code"):
        code = inner.get(name)
        if isinstance(code, int) and 400 <= code < 600:
            return code
    return _STATUSES.get(str(inner.get("type")), 500)


def _kind_in(body: bytes) -> str | None:
    try:
        kind = orjson.loads(body)["error"]["type"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return kind if isinstance(kind, str) else None


def _anthropic(kind: str, message: str) -> bytes:
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})
