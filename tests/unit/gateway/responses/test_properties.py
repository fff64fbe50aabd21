"""What holds for every answer, and for every way to cut a stream."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.gateway.responses import Collect, ResponsesToChat
from tests.unit.gateway.responses.shapes import (
    DONE,
    EVENTS,
    call_piece,
    checked,
    chunk,
    completion,
    final,
    prepared,
    said,
    streamed,
    told,
    whole,
)

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
texts = st.lists(text, max_size=4)
calls = st.lists(st.tuples(st.sampled_from(["f", "g"]), st.sampled_from(["{}", '{"a":"ü"}', ""])), max_size=3)
ends = st.sampled_from([b"\n\n", b"\r\n\r\n"])
cuts = st.lists(st.integers(1, 60), min_size=1, max_size=30)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    found, start = [], 0
    while start < len(data):
        size = sizes[len(found) % len(sizes)]
        found.append(data[start : start + size])
        start += size
    return found


def stream_of(thoughts: list[str], words: list[str], called: list[tuple[str, str]]) -> list[bytes]:
    found = [chunk({"reasoning": thought}) for thought in thoughts] + [chunk({"content": word}) for word in words]
    for i, (name, arguments) in enumerate(called):
        half = len(arguments) // 2
        found += [chunk(call_piece(i, arguments[:half], name, f"c{i}")), chunk(call_piece(i, arguments[half:]))]
    return [*found, chunk(finish_reason="stop"), DONE]


@given(texts, texts, calls, cuts, ends)
async def test_a_stream_cut_anywhere_says_what_the_whole_answer_says(
    thoughts: list[str], words: list[str], called: list[tuple[str, str]], sizes: list[int], end: bytes
) -> None:
    data = b"".join(stream_of(thoughts, words, called)).replace(b"\n\n", end)
    ready = await prepared(stream=True)
    response = final(streamed(ResponsesToChat(ready).answer(), pieces(data, sizes)))
    message: dict[str, Any] = {"content": "".join(words), "reasoning": "".join(thoughts)}
    functions = [{"name": name, "arguments": arguments} for name, arguments in called]
    message["tool_calls"] = [{"id": f"c{i}", "type": "function", "function": f} for i, f in enumerate(functions)]
    at_once = checked(whole(ResponsesToChat(await prepared()).answer(), completion(message)))
    assert said(response) == said(at_once)


delta = st.one_of(
    st.builds(lambda t: {"content": t}, text),
    st.builds(lambda t: {"reasoning": t}, text),
    st.builds(lambda t: {"refusal": t}, text),
    st.builds(
        call_piece, st.integers(0, 2), st.sampled_from(["", "{", "}", '"a":', "1"]), st.none() | st.just("f"), st.none()
    ),
)


@given(st.lists(delta, max_size=20), st.sampled_from(["stop", "length", "tool_calls"]))
async def test_events_of_any_answer_are_in_order_and_tell_all_of_it(deltas: list[dict[str, Any]], finish: str) -> None:
    ready = await prepared(stream=True)
    response = final(
        streamed(ResponsesToChat(ready).answer(), [*map(chunk, deltas), chunk(finish_reason=finish), DONE])
    )
    heard = "".join(d.get("content", "") for d in deltas)
    messages = [item for item in response["output"] if item["type"] == "message"]
    parts = [part for item in messages for part in item["content"] if part["type"] == "output_text"]
    assert "".join(part["text"] for part in parts) == heard
    thoughts = [part["text"] for item in response["output"] if item["type"] == "reasoning" for part in item["content"]]
    assert "".join(thoughts) == "".join(d.get("reasoning", "") for d in deltas)


@given(cuts, ends)
async def test_what_an_engine_says_itself_is_collected_however_it_is_cut(sizes: list[int], end: bytes) -> None:
    inner = ResponsesToChat(await prepared(stream=True)).answer()
    inner.head(200, EVENTS)
    called = [("f", '{"a": "b c"}'), ("g", "{}")]
    native = b"".join(inner.feed(piece) for piece in stream_of(["Hm \u2028"], ["a\nb"], called))
    kept: list[Any] = []
    collect = Collect(await prepared(stream=True), lambda _, response: kept.append(response))
    collect.head(200, EVENTS)
    given_pieces = pieces(native.replace(b"\n\n", end), sizes)
    passed = b"".join(map(collect.feed, given_pieces)) + collect.end()
    assert told(passed.replace(b"\r\n\r\n", b"\n\n")) == told(native)
    assert kept == [told(native)[-1]["response"]]
