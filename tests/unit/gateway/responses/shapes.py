"""Answers as engines give them, and what the official client's types say of ours."""

from typing import Any

import orjson
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from api.gateway.events import EventStream
from api.gateway.filters import Filter
from api.gateway.responses import Prepared, prepare

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]
DONE = b"data: [DONE]\n\n"
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_LAST = ("response.completed", "response.incomplete", "response.failed")


class Nothing:
    """No response is stored."""

    async def load_chain(self, key_id: str, response_id: str) -> list[dict[str, Any]]:
        raise AssertionError("nothing goes on from an earlier response here")

    async def find_items(self, key_id: str, response_id: str) -> dict[str, dict[str, Any]]:
        return {}


async def prepared(document: dict[str, Any] | None = None, **more: Any) -> Prepared:
    return await prepare({"model": "m", "input": "Hi"} | (document or {}) | more, "key-1", Nothing())


def chunk(delta: dict[str, Any] | None = None, **more: Any) -> bytes:
    """``more``: of the choice; ``usage`` is of the chunk, and comes without a choice."""
    document: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "inner"}
    if "usage" in more:
        return event(document | {"choices": [], "usage": more["usage"]})
    return event(document | {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": None} | more]})


def call_piece(index: int | None, arguments: str | None = None, name: str | None = None, id: str | None = None) -> Any:
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    piece = {"index": index, "id": id, "type": "function" if id else None, "function": function}
    return {"tool_calls": [{k: v for k, v in piece.items() if v is not None}]}


def event(document: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(document)


def completion(message: dict[str, Any], finish: str = "stop", **choice: Any) -> bytes:
    choices = [{"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish} | choice]
    return orjson.dumps({"id": "chatcmpl-1", "object": "chat.completion", "choices": choices, "usage": USAGE})


def streamed(answer: Filter, pieces: list[bytes]) -> list[dict[str, Any]]:
    """The events that the client gets of an engine's stream, cut as it is."""
    answer.head(200, EVENTS)
    cutter = EventStream()
    data = b"".join([answer.feed(whole) for piece in pieces if (whole := cutter.feed(piece))])
    if rest := cutter.rest():
        data += answer.feed(rest)
    return told(data + answer.end())


def whole(answer: Filter, body: bytes, status: int = 200) -> Any:
    answer.head(status, [*JSON, (b"content-length", b"%d" % len(body))])
    half = len(body) // 2
    assert answer.feed(body[:half]) + answer.feed(body[half:]) == b""
    return orjson.loads(answer.end())


def told(stream: bytes) -> list[dict[str, Any]]:
    """Every event but comments, after the official client's types and the order of events have been checked."""
    found = []
    for part in stream.split(b"\n\n")[:-1]:
        if part.startswith(b":"):
            continue
        name, data = part.split(b"\n")
        document = orjson.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + document["type"].encode()
        _EVENT.validate_python(document)
        found.append(document)
    assert [document["sequence_number"] for document in found] == list(range(len(found)))
    assert [document["type"] for document in found[:2]] == ["response.created", "response.in_progress"]
    assert [document["type"] in _LAST for document in found].count(True) == 1
    return found


def final(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response at the end; fails unless the events before have told all of it."""
    [response] = [document["response"] for document in events if document["type"] in _LAST]
    checked(response)
    if response["status"] != "failed":
        assert told_items(events) == response["output"]
    return response  # type: ignore[no-any-return]


def told_items(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as a client puts them together that reads deltas; fails where these and the ``done`` events differ."""
    texts: dict[tuple[Any, ...], str] = {}
    items: list[dict[str, Any]] = []
    open_item: str | None = None
    for found in events:
        kind = found["type"]
        if kind == "response.output_item.added":
            assert open_item is None
            open_item = found["item"]["id"]
            assert found["output_index"] == len(items)
        elif kind.endswith(".delta"):
            assert found["item_id"] == open_item
            texts[_place(found)] = texts.get(_place(found), "") + found["delta"]
        elif kind.endswith("_text.done") or kind in ("response.refusal.done", "response.function_call_arguments.done"):
            said = found.get("text", found.get("refusal", found.get("arguments")))
            assert said == texts.pop(_place(found), "")
        elif kind == "response.output_item.done":
            assert found["item"]["id"] == open_item
            open_item = None
            items.append(found["item"])
    assert open_item is None
    assert texts == {}
    return items


def _place(found: dict[str, Any]) -> tuple[Any, ...]:
    return found["output_index"], found.get("content_index"), found.get("summary_index")


def checked(response: dict[str, Any]) -> dict[str, Any]:
    Response.model_validate(response)
    return response


def said(response: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Its output, in short."""
    return [_short(item) for item in response["output"]]


def _short(item: dict[str, Any]) -> tuple[Any, ...]:
    if item["type"] == "function_call":
        return "call", item["name"], item["arguments"]
    if item["type"] == "reasoning":
        return "thought", *(part["text"] for part in item.get("content", []) + item["summary"])
    return "message", *(part.get("text", part.get("refusal")) for part in item["content"])
