"""How many tokens a prompt has, from the engine that would read it."""

import orjson

from api.gateway.anthropic.errors import anthropic_error
from api.gateway.anthropic.messages import Dialect
from api.gateway.anthropic.request import chat_request
from api.gateway.conversion import Document

_OF_THE_ANSWER = ("stream", "stream_options", "response_format", "stop", "parallel_tool_calls")


def count_request(document: Document, dialect: Dialect) -> Document:
    """The same prompt, to be answered with one token. Raises ``Wrong``."""
    chat = chat_request({**document, "max_tokens": 1, "stream": False}, dialect)
    for name in _OF_THE_ANSWER:
        chat.pop(name, None)
    # A forced call could not be told in one token; whether tools are in the prompt at all, only 'none' decides.
    if chat.get("tool_choice") != "none":
        chat.pop("tool_choice", None)
    return chat


def count_answer(body: bytes) -> bytes:
    try:
        tokens = orjson.loads(body)["usage"]["prompt_tokens"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        tokens = None
    if not isinstance(tokens, int):
        return anthropic_error(502, "The engine's answer does not say how many tokens the prompt has.")
    return orjson.dumps({"input_tokens": tokens})
