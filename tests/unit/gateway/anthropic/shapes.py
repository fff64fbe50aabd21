"""Answers as engines and Anthropic give them, and what the official clients' types say of ours."""

from pathlib import Path
from typing import Any

import orjson
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from api.gateway.conversion import Conversion

DATA = Path(__file__).parents[3] / "data" / "anthropic"
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]
_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def vllm_chunk(delta: dict[str, Any] | None = None, **more: Any) -> bytes:
    """``more``: of the choice; ``usage`` is of the chunk, and comes without a choice."""
    chunk: dict[str, Any] = {"id": "chatcmpl-9f2", "object": "chat.completion.chunk", "created": 1, "model": "inner"}
    if "usage" in more:
        return event(chunk | {"choices": [], "usage": more["usage"]})
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": None} | more
    return event(chunk | {"choices": [choice]})


def call_piece(index: int | None, arguments: str | None = None, name: str | None = None, id: str | None = None) -> Any:
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    piece = {"index": index, "id": id, "type": "function" if id else None, "function": function}
    return {"tool_calls": [{k: v for k, v in piece.items() if v is not None}]}


def event(document: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(document)


DONE = b"data: [DONE]\n\n"
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 16},
}

THINKING_AND_TOOLS = [
    vllm_chunk({"role": "assistant", "content": ""}),
    vllm_chunk({"reasoning": "Two "}),
    vllm_chunk({"reasoning": "cities."}),
    vllm_chunk({"content": "Let me "}),
    vllm_chunk({"content": "look: ☂"}),
    vllm_chunk(call_piece(0, "", "weather", "call_a")),
    vllm_chunk(call_piece(0, '{"city": "Pa')),
    vllm_chunk(call_piece(0, 'ris"}')),
    vllm_chunk(call_piece(1, "", "weather", "call_b")),
    vllm_chunk(call_piece(1, '{"city": "Rome"}')),
    vllm_chunk(finish_reason="tool_calls", stop_reason=None),
    vllm_chunk(usage=USAGE),
    DONE,
]


def said(name: str, document: dict[str, Any]) -> bytes:
    """An event as Anthropic sends it."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name} | document))


def block_events(index: int, block: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    return [
        said("content_block_start", {"index": index, "content_block": block}),
        *(said("content_block_delta", {"index": index, "delta": delta}) for delta in deltas),
        said("content_block_stop", {"index": index}),
    ]


MESSAGE = {"id": "msg_01", "type": "message", "role": "assistant", "model": "claude", "content": []}
CLAUDE = [
    said(
        "message_start",
        {"message": MESSAGE | {"stop_reason": None, "usage": {"input_tokens": 9, "cache_read_input_tokens": 4}}},
    ),
    said("ping", {}),
    *block_events(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "thinking_delta", "thinking": "m."},
        {"type": "signature_delta", "signature": "c2ln"},
    ),
    *block_events(
        1,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "Looking "},
        {"type": "text_delta", "text": "it up ☂"},
    ),
    *block_events(
        2,
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
        {"type": "input_json_delta", "partial_json": ""},
        {"type": "input_json_delta", "partial_json": '{"city": '},
        {"type": "input_json_delta", "partial_json": '"Paris"}'},
    ),
    *block_events(3, {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}}),
    said("message_delta", {"delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 30}}),
    said("message_stop", {}),
]


def streamed(conversion: Conversion, pieces: list[bytes], document: dict[str, Any]) -> bytes:
    """What the client gets of an engine's stream."""
    conversion.request(document | {"stream": True})
    answer = conversion.answer()
    assert answer.head(200, EVENTS)[0] == 200
    return b"".join([answer.feed(piece) for piece in pieces]) + answer.end()


def whole(conversion: Conversion, body: bytes, document: dict[str, Any], *, status: int = 200) -> Any:
    conversion.request(document)
    answer = conversion.answer()
    answer.head(status, [*JSON, (b"content-length", b"%d" % len(body))])
    half = len(body) // 2
    assert answer.feed(body[:half]) + answer.feed(body[half:]) == b""
    return orjson.loads(answer.end())


def message_events(stream: bytes) -> list[dict[str, Any]]:
    """Every event but pings and comments, after the official client's types have accepted it."""
    found = []
    for part in stream.split(b"\n\n")[:-1]:
        if part.startswith(b":"):
            continue
        name, data = part.split(b"\n")
        document = orjson.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + document["type"].encode()
        if document["type"] not in ("ping", "error"):
            _EVENT.validate_python(document)
        if document["type"] != "ping":
            found.append(document)
    return found


def built(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client makes of the events; fails when their order is not Anthropic's."""
    assert [events[0]["type"], events[-2]["type"], events[-1]["type"]] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    message = dict(events[0]["message"], content=[])
    open_index = None
    for found in events[1:-2]:
        if found["type"] == "content_block_start":
            assert open_index is None
            assert found["index"] == len(message["content"])
            open_index = found["index"]
            message["content"].append(dict(found["content_block"], pieces=[]))
        elif found["type"] == "content_block_stop":
            assert found["index"] == open_index
            open_index = None
        else:
            assert found["index"] == open_index
            message["content"][open_index]["pieces"].append(found["delta"])
    message["content"] = [_joined(block) for block in message["content"]]
    message |= events[-2]["delta"] | {"usage": events[-2]["usage"]}
    Message.model_validate(message)
    return message


def _joined(block: dict[str, Any]) -> dict[str, Any]:
    pieces = block.pop("pieces")
    if block["type"] == "tool_use":
        return block | {"input": orjson.loads("".join(piece["partial_json"] for piece in pieces) or "{}")}
    name = block["type"]
    return block | {name: "".join(piece[name] for piece in pieces)}


def chunks(stream: bytes) -> list[dict[str, Any]]:
    """Every chunk, after the official client's types have accepted it; comments are left out."""
    parts = [part for part in stream.split(b"\n\n")[:-1] if not part.startswith(b":")]
    assert parts.pop() == b"data: [DONE]"
    found = [orjson.loads(part.removeprefix(b"data: ")) for part in parts]
    for chunk in found:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    return found


def completion(document: Any) -> Any:
    ChatCompletion.model_validate(document)
    return document
