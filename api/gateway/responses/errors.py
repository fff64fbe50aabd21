"""Errors of engines, each of which has a shape of its own, in OpenAI's shape and in the words of this API."""

from typing import Any

import orjson

from api.gateway.anthropic.errors import said_in
from api.gateway.conversion import Document
from api.gateway.refusals import error_body

_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_FAILED = 500


def to_openai(status: int, body: bytes) -> bytes:
    """The body of an engine's error, as the client gets it."""
    error = error_of(body, status)
    return error_body(error["message"], kind=error["type"], param=error["param"], code=error["code"])


def error_of(body: bytes, status: int = _FAILED) -> Document:
    """``message``, ``type``, ``param``, ``code`` and ``status`` of an error of any shape. What it says of its status
    goes before the one that it came with."""
    said = _said(body)
    code = said.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    return {
        "message": said_in(status, body),
        "type": _kind(said.get("type"), status),
        "param": _param(said.get("param")),
        "code": code if isinstance(code, str) else None,
        "status": status,
    }


def failure_code(error: Document) -> str:
    """What a failed response calls it: the API has no other words."""
    if error["status"] == 429 or error["type"] == "rate_limit_error" or error["code"] == "rate_limit_exceeded":
        return "rate_limit_exceeded"
    return "invalid_prompt" if error["type"] == "invalid_request_error" else "server_error"


def _said(body: bytes) -> Document:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    said = document.get("error", document) if isinstance(document, dict) else document
    return said if isinstance(said, dict) else {}


def _kind(said: Any, status: int) -> str:
    if isinstance(said, str) and said.islower():
        return said
    return _KINDS.get(status, "invalid_request_error" if status < _FAILED else "api_error")


def _param(said: Any) -> str | None:
    if not isinstance(said, str):
        return None
    head = said.split("[", 1)[0].split(".", 1)[0]
    return _NAMES.get(head, said)
