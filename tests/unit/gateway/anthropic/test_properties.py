"""What holds for every conversation, and for every way to cut a stream."""

from collections import deque
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.gateway.anthropic import ChatToMessages, MessagesToChat
from api.gateway.anthropic.sse import Events
from api.gateway.conversion import Conversion
from tests.unit.gateway.anthropic.shapes import (
    CLAUDE,
    DATA,
    EVENTS,
    THINKING_AND_TOOLS,
    built,
    call_piece,
    chunks,
    event,
    message_events,
    vllm_chunk,
)

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
word = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
text_part = st.builds(lambda t: {"type": "text", "text": t}, text)
image = st.sampled_from(["data:image/png;base64,AAAA", "data:image/webp;base64,BB==", "https://x.example/y.png?z=1,2"])
image_part = st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, image)
objects = st.dictionaries(
    word, st.recursive(st.integers(-5, 5) | text | st.none() | st.booleans(), st.lists), max_size=3
)
call = st.builds(
    lambda id, name, given: {
        "id": id,
        "type": "function",
        "function": {"name": name, "arguments": orjson.dumps(given).decode()},
    },
    word,
    word,
    objects,
)
user = st.builds(
    lambda parts: {"role": "user", "content": parts}, st.lists(text_part | image_part, min_size=1, max_size=4)
)


@st.composite
def exchange(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A question, an answer that may call tools, their results."""
    calls = draw(st.lists(call, max_size=3, unique_by=lambda c: c["id"]))
    answer: dict[str, Any] = {"role": "assistant", "content": draw(text if not calls else st.none() | text)}
    if calls:
        answer["tool_calls"] = calls
    results = [{"role": "tool", "tool_call_id": c["id"], "content": draw(text)} for c in calls]
    return [draw(user), answer, *results]


tool = st.builds(
    lambda name, about, shape: {
        "type": "function",
        "function": {"name": name, "description": about, "parameters": {"type": "object", "properties": shape}},
    },
    word,
    text,
    st.dictionaries(word, st.just({"type": "string"}), max_size=2),
)


@given(
    st.lists(exchange(), max_size=3),
    user,
    st.lists(tool, max_size=2),
    st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "x"}}]),
    st.none() | text,
)
def test_chat_comes_back_as_it_was(exchanges: Any, last: Any, tools: Any, choice: Any, system: str | None) -> None:
    sent: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [m for found in exchanges for m in found]}
    sent["messages"].append(last)
    if system:
        sent["messages"].insert(0, {"role": "system", "content": system})
    if tools:
        sent |= {"tools": tools, "tool_choice": choice, "parallel_tool_calls": True}
    back = MessagesToChat().request(ChatToMessages().request(sent))
    assert plain(back) == plain(sent)


def plain(document: dict[str, Any]) -> dict[str, Any]:
    """Consecutive messages of the user are one; a single text needs no list; arguments are what they say."""
    merged: list[dict[str, Any]] = []
    for message in orjson.loads(orjson.dumps(document["messages"])):
        if message["role"] == "user" and isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        for found in message.get("tool_calls", []):
            found["function"]["arguments"] = orjson.loads(found["function"]["arguments"])
        if merged and message["role"] == "user" == merged[-1]["role"]:
            merged[-1]["content"] += message["content"]
        else:
            merged.append(message)
    return document | {"messages": merged}


STREAMS = {
    "tools": b"".join(THINKING_AND_TOOLS),
    "llama_cpp": (DATA / "llama_cpp_stream.sse").read_bytes(),
    "comment": b": hi\n\n" + b"".join(THINKING_AND_TOOLS),
}


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


def converted(conversion: Conversion, pieces: list[bytes]) -> bytes:
    conversion.request({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})
    answer = conversion.answer()
    answer.head(200, EVENTS)
    return b"".join([answer.feed(piece) for piece in pieces]) + answer.end()


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@given(places=st.lists(st.integers(0, 10_000), max_size=8))
@example(places=list(range(10_000)))
def test_stream_may_be_cut_anywhere(name: str, newline: bytes, places: list[int]) -> None:
    data = STREAMS[name]
    ended = data.replace(b"\n", newline)
    assert converted(MessagesToChat(), cut(ended, places)) == converted(MessagesToChat(), [data])


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@given(places=st.lists(st.integers(0, 10_000), max_size=8))
def test_anthropics_stream_may_be_cut_anywhere(newline: bytes, places: list[int]) -> None:
    data = b"".join(CLAUDE)
    expected = converted(ChatToMessages(clock=lambda: 1.0), [data])
    assert converted(ChatToMessages(clock=lambda: 1.0), cut(data.replace(b"\n", newline), places)) == expected


@given(
    st.lists(
        st.one_of(
            st.builds(lambda t: {"content": t}, st.text(max_size=5)),
            st.builds(lambda t: {"reasoning_content": t}, st.text(max_size=5)),
            st.builds(
                lambda index, piece: {"tool_calls": [{"index": index, "function": {"name": "f", "arguments": piece}}]},
                st.integers(0, 3),
                st.sampled_from(["", "{", "}", '{"a":1}', " ", '"']),
            ),
            st.none(),
            st.just({"content": None, "tool_calls": None}),
        ),
        max_size=12,
    ),
    st.sampled_from(["stop", "length", "tool_calls", None]),
)
def test_whatever_an_engine_streams_the_order_is_anthropics(deltas: list[Any], reason: str | None) -> None:
    pieces = [vllm_chunk(delta) for delta in deltas if delta is not None]
    events = message_events(converted(MessagesToChat(), [*pieces, vllm_chunk(finish_reason=reason)]))
    told = {"text": "", "thinking": ""}
    for found in events:
        for name in told:
            told[name] += found.get("delta", {}).get(name, "")
    assert told["text"] == "".join(delta.get("content") or "" for delta in deltas if delta)
    assert told["thinking"] == "".join(delta.get("reasoning_content", "") for delta in deltas if delta)
    kinds = [found["type"] for found in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop")


@given(st.lists(objects, min_size=1, max_size=3), st.data())
def test_calls_in_any_turns_are_told_whole(given_objects: list[Any], data: st.DataObject) -> None:
    """Each call's pieces keep their order; between them may come those of others, and text."""
    waiting = {n: deque(call_deltas(n, given, data)) for n, given in enumerate(given_objects)}
    deltas = []
    while any(waiting.values()):
        begun = [n for n in waiting if len(waiting[n])]
        deltas.append(waiting[data.draw(st.sampled_from(begun))].popleft())
        deltas += data.draw(st.lists(st.just({"content": "."}) | st.just({"reasoning": "?"}), max_size=1))
    message = built(message_events(converted(MessagesToChat(), [vllm_chunk(delta) for delta in deltas])))
    calls = {block["id"]: block["input"] for block in message["content"] if block["type"] == "tool_use"}
    assert calls == {f"call_{n}": given for n, given in enumerate(given_objects)}
    texts = [block["text"] for block in message["content"] if block["type"] == "text"]
    assert "".join(texts).count(".") == sum("content" in delta for delta in deltas)


def call_deltas(index: int, given_object: Any, data: st.DataObject) -> list[dict[str, Any]]:
    arguments = orjson.dumps(given_object).decode()
    places = sorted(data.draw(st.lists(st.integers(0, len(arguments)), max_size=3)))
    pieces = [arguments[start:end] for start, end in pairwise([0, *places, len(arguments)])]
    return [call_piece(index, "", "f", f"call_{index}"), *(call_piece(index, piece) for piece in pieces)]


names = [
    *("choices", "delta", "content", "tool_calls", "function", "arguments", "name", "id", "index", "finish_reason"),
    *("usage", "prompt_tokens", "input_tokens", "error", "type", "message", "content_block", "text", "stop_reason"),
]
kinds = st.sampled_from(
    ["message_start", "message_delta", "content_block_start", "content_block_delta", "text", "error"]
)
leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | kinds
documents = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(names), inner))


@given(documents)
@example([])
@example({"choices": [{"finish_reason": []}], "usage": {"prompt_tokens": "x"}})
@example({"type": "message_delta", "delta": {"stop_reason": []}, "usage": {"input_tokens": "x"}})
def test_nothing_that_is_sent_breaks_a_stream(document: Any) -> None:
    for conversion in (MessagesToChat(), ChatToMessages()):
        assert converted(conversion, [event(document)]).endswith(b"\n\n")


def test_there_and_back() -> None:
    """A message of Anthropic's, through chat chunks, is a message again."""
    as_chat = converted(ChatToMessages(), CLAUDE)
    assert chunks(as_chat)
    message = built(message_events(converted(MessagesToChat(), [as_chat])))
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert message["content"][2]["input"] == {"city": "Paris"}
    assert message["stop_reason"] == "tool_use"


def test_data_over_several_lines_is_one_event() -> None:
    events = Events()
    assert events.feed(b'event: x\ndata: {"a":\ndata: 1}\nid: 3\n\n: c\n\ndata:') == [b'{"a":\n 1}', b": c"]
    assert events.rest() == []
