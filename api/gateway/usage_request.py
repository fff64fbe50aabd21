"""What is added to a request so that the engine says what it uses, also to a client that leaves before the end."""

from collections.abc import Mapping
from typing import Any

import orjson

Fields = dict[str, Any]

_CHAT = frozenset({"chat.completions", "completions"})
_CONTINUOUS = frozenset({"vllm", "sglang", "tensorrt_llm"})
"""They can say it with every event. Others get no field that is not OpenAI's: some refuse what they do not know."""


def injections(engine: str, operation: str, document: Mapping[str, Any]) -> Fields | None:
    """Fields to put in; None: there are none, as the client asked for the same, or the answer says it anyway.

    ``engine``: of the deployment, or the ``kind`` of the provider. ``operation``, ``document``: as the engine is asked.
    """
    if document.get("stream") is not True:
        return None
    if engine == "llama_cpp" and (operation in _CHAT or operation == "responses"):
        return None if document.get("timings_per_token") is True else {"timings_per_token": True}
    if operation not in _CHAT:
        return None
    wanted = ("include_usage", "continuous_usage_stats") if engine in _CONTINUOUS else ("include_usage",)
    given = document.get("stream_options")
    asked = given if isinstance(given, dict) else {}
    missing = {name: True for name in wanted if asked.get(name) is not True}
    return {"stream_options": missing} if missing else None


def inject(body: bytes, document: Mapping[str, Any], fields: Fields) -> bytes:
    """``body``, which says ``document``, with ``fields`` in it. Only where the client gave one of them, it is encoded
    anew; objects are merged."""
    if fields.keys().isdisjoint(document):
        begin = body.index(b"{") + 1
        return b"%b%b,%b" % (body[:begin], orjson.dumps(fields)[1:-1], body[begin:])
    merged = dict(document)
    for name, value in fields.items():
        given = document.get(name)
        merged[name] = {**given, **value} if isinstance(given, dict) and isinstance(value, dict) else value
    return orjson.dumps(merged)


def inject_stream_options(body: bytes, document: Mapping[str, Any]) -> bytes:
    """Ask for OpenAI's usage event at the end of a streamed chat or completion, unless the client did."""
    fields = injections("openai", "chat.completions", document)
    return body if fields is None else inject(body, document, fields)
