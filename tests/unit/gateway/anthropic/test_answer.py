"""Engines' answers, as clients of Anthropic's Messages API get them."""

from typing import Any

import orjson
import pytest
from anthropic.types import ErrorResponse, Message

from api.gateway.anthropic import CountTokensToChat, MessagesToChat, anthropic_error, anthropic_error_event
from tests.unit.gateway.anthropic.shapes import (
    DATA,
    DONE,
    EVENTS,
    JSON,
    THINKING_AND_TOOLS,
    USAGE,
    built,
    call_piece,
    event,
    message_events,
    streamed,
    vllm_chunk,
    whole,
)

ASK: dict[str, Any] = {
    "model": "public",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hi"}],
    "stop_sequences": ["END"],
}


def answered(message: dict[str, Any], **choice: Any) -> dict[str, Any]:
    """Of an engine that answers whole."""
    choices = [{"index": 0, "message": {"role": "assistant"} | message, "finish_reason": "stop"} | choice]
    completion = {"id": "chatcmpl-7", "object": "chat.completion", "model": "inner", "choices": choices}
    found: dict[str, Any] = whole(MessagesToChat(), orjson.dumps(completion | {"usage": USAGE}), ASK)
    Message.model_validate(found)
    return found


def of_stream(*pieces: bytes) -> dict[str, Any]:
    return built(message_events(streamed(MessagesToChat(), list(pieces), ASK)))


def test_whole_answer() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    found = answered(
        {"reasoning_content": "Hmm", "content": "Looking", "tool_calls": [call]}, finish_reason="tool_calls"
    )
    assert found == {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "public",
        "content": [
            {"type": "thinking", "thinking": "Hmm", "signature": ""},
            {"type": "text", "text": "Looking"},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 4,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 16,
            "output_tokens": 7,
        },
    }


STOPS = [
    ({"finish_reason": "stop"}, "end_turn", None),
    ({"finish_reason": "length"}, "max_tokens", None),
    ({"finish_reason": "content_filter"}, "refusal", None),
    ({"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence", "END"),
    ({"finish_reason": "stop", "matched_stop": "END"}, "stop_sequence", "END"),
    ({"finish_reason": "stop", "stop_reason": 128009}, "end_turn", None),
    ({"finish_reason": "stop", "matched_stop": "<|im_end|>"}, "end_turn", None),
    ({"finish_reason": "abort"}, "end_turn", None),
]


@pytest.mark.parametrize(("choice", "reason", "sequence"), STOPS)
def test_why_it_stopped(choice: Any, reason: str, sequence: str | None) -> None:
    found = answered({"content": "x"}, **choice)
    assert (found["stop_reason"], found["stop_sequence"]) == (reason, sequence)
    found = of_stream(vllm_chunk({"content": "x"}), vllm_chunk(**choice), DONE)
    assert (found["stop_reason"], found["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        (None, {}),
        ({"a": 1}, {"a": 1}),
        ('{"a": ', {"INVALID_JSON": '{"a": '}),
        ("[1]", {"INVALID_JSON": "[1]"}),
    ],
)
def test_arguments_are_never_lost(arguments: Any, given: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    found = answered({"content": None, "tool_calls": [call]})
    assert found["content"] == [{"type": "tool_use", "id": "c", "name": "f", "input": given}]
    assert found["stop_reason"] == "tool_use"


def test_streamed_answer() -> None:
    found = of_stream(*THINKING_AND_TOOLS)
    assert found["content"] == [
        {"type": "thinking", "thinking": "Two cities.", "signature": ""},
        {"type": "text", "text": "Let me look: ☂"},
        {"type": "tool_use", "id": "call_a", "name": "weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "call_b", "name": "weather", "input": {"city": "Rome"}},
    ]
    assert (found["id"], found["model"], found["stop_reason"]) == ("msg_9f2", "public", "tool_use")
    assert found["usage"]["input_tokens"] == 4
    assert found["usage"]["cache_read_input_tokens"] == 16
    assert found["usage"]["output_tokens"] == 7


def test_pieces_are_passed_on_as_they_come() -> None:
    conversion = MessagesToChat()
    conversion.request(ASK | {"stream": True})
    answer = conversion.answer()
    answer.head(200, EVENTS)
    parts = [b"message_start", b"Two ", b"cities.", b"Let me ", b"look", b"call_a", b"Pa", b"ris", b"call_b", b"Rome"]
    for piece, part in zip(THINKING_AND_TOOLS, parts, strict=False):
        assert part in answer.feed(piece)


def test_input_tokens_stand_at_the_beginning_where_the_engine_says_them() -> None:
    first = orjson.loads(vllm_chunk({"content": "x"})[6:]) | {"usage": USAGE | {"completion_tokens": 0}}
    start = message_events(streamed(MessagesToChat(), [event(first), DONE], ASK))[0]
    assert start["message"]["usage"]["input_tokens"] == 4


@pytest.mark.parametrize(
    "pieces",
    [
        # All heads first, then the arguments in turns.
        [(0, "", "f", "a"), (1, "", "g", "b"), (0, '{"x":'), (1, '{"y":'), (0, "1}"), (1, "2}")],
        # Without a number; a new id begins a new call.
        [(None, '{"x":', "f", "a"), (None, "1}"), (None, '{"y":2}', "g", "b")],
        # All with the same number.
        [(0, '{"x":1}', "f", "a"), (0, '{"y":2}', "g", "b")],
        # The id in every piece.
        [(0, '{"x":', "f", "a"), (0, "1}", None, "a"), (1, '{"y":', "g", "b"), (1, "2}", None, "b")],
        # White space after the end.
        [(0, '{"x":1}', "f", "a"), (0, " "), (1, '{"y":2}\n', "g", "b")],
        # Two in one chunk are fed one by one here, but the second begins before the first is whole.
        [(0, '{"x"', "f", "a"), (1, '{"y":2}', "g", "b"), (0, ":1}")],
    ],
)
def test_calls_in_pieces_and_in_turns(pieces: list[Any]) -> None:
    found = of_stream(*(vllm_chunk(call_piece(*piece)) for piece in pieces), DONE)
    assert found["content"] == [
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {"y": 2}},
    ]
    assert found["stop_reason"] == "tool_use"


def test_text_in_the_middle_of_arguments_comes_after_them() -> None:
    found = of_stream(
        vllm_chunk(call_piece(0, '{"x":', "f", "a")),
        vllm_chunk({"content": "Done."}),
        vllm_chunk(call_piece(0, "1}")),
        DONE,
    )
    assert [block["type"] for block in found["content"]] == ["tool_use", "text"]
    assert found["content"][0]["input"] == {"x": 1}
    assert found["content"][1]["text"] == "Done."


def test_text_after_a_whole_call_is_not_held_back() -> None:
    pieces = [vllm_chunk(call_piece(0, '{"x":1}', "f", "a")), vllm_chunk({"content": "and"})]
    conversion = MessagesToChat()
    conversion.request(ASK)
    answer = conversion.answer()
    answer.head(200, EVENTS)
    answer.feed(pieces[0])
    assert b'"text_delta","text":"and"' in answer.feed(pieces[1])


@pytest.mark.parametrize("pieces", [[vllm_chunk({"content": "x"})], [vllm_chunk({"content": "x"})[:-2]]])
def test_stream_that_just_ends(pieces: list[bytes]) -> None:
    found = of_stream(*pieces)
    assert (found["stop_reason"], found["content"]) == ("end_turn", [{"type": "text", "text": "x"}])


def test_stream_without_anything_is_an_empty_message() -> None:
    assert of_stream()["content"] == []


@pytest.mark.parametrize(
    ("document", "kind", "message"),
    [
        ({"error": {"message": "no memory", "type": "InternalServerError", "code": 500}}, "api_error", "no memory"),
        (
            {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400},
            "invalid_request_error",
            "too long",
        ),
        ({"error": {"message": "full", "code": 503}}, "overloaded_error", "full"),
        ({"error": {"message": "slow down", "type": "rate_limit_error"}}, "rate_limit_error", "slow down"),
        ({"error": "broken"}, "api_error", "broken"),
    ],
)
def test_error_in_the_middle_ends_the_stream(document: Any, kind: str, message: str) -> None:
    stream = streamed(MessagesToChat(), [vllm_chunk({"content": "x"}), event(document), DONE], ASK)
    last = message_events(stream)[-1]
    ErrorResponse.model_validate(last)
    assert last == {"type": "error", "error": {"type": kind, "message": message}}


@pytest.mark.parametrize("junk", [b"data: {oops\n\n", b'data: {"choices": [5]}\n\n', b'data: {"choices": null}\n\n'])
def test_event_that_makes_no_sense_is_an_error(junk: bytes) -> None:
    assert message_events(streamed(MessagesToChat(), [vllm_chunk({"content": "x"}), junk], ASK))[-1]["type"] == "error"


def test_comments_pass_through() -> None:
    assert streamed(MessagesToChat(), [b": waiting\n\n"], ASK).startswith(b": waiting\n\n")


def test_recorded_stream_of_llama_cpp() -> None:
    found = of_stream((DATA / "llama_cpp_stream.sse").read_bytes())
    assert found["content"] == [{"type": "text", "text": "Hello, Bob! Welcome to my world. I'm here"}]
    assert found["stop_reason"] == "max_tokens"
    assert found["usage"]["output_tokens"] == 12
    assert found["usage"]["input_tokens"] + found["usage"]["cache_read_input_tokens"] == 35


def test_recorded_stream_of_llama_cpp_that_met_a_stop_sequence() -> None:
    found = of_stream((DATA / "llama_cpp_stop.sse").read_bytes())
    assert found["content"] == [{"type": "text", "text": "Hello, "}]
    assert (found["stop_reason"], found["usage"]["cache_read_input_tokens"]) == ("end_turn", 24)


BEGUN = ASK | {"messages": [*ASK["messages"], {"role": "assistant", "content": "Hello, B"}]}


def test_begun_answer_is_not_repeated() -> None:
    body = (DATA / "llama_cpp_begun.json").read_bytes()
    found = whole(MessagesToChat(), body, BEGUN)
    assert found["content"] == [{"type": "text", "text": "OB! How can I assist you today?"}]


@pytest.mark.parametrize(("build", "text"), [("b6710-74b8fc17", "ob!"), ("vllm-0.26", "Hello, Bob!"), (None, None)])
def test_begun_answer_is_not_repeated_in_a_stream(build: str | None, text: str | None) -> None:
    pieces = [
        event(orjson.loads(vllm_chunk({"content": piece})[6:]) | {"system_fingerprint": build})
        for piece in ("Hel", "lo, ", "Bob!")
    ]
    found = built(message_events(streamed(MessagesToChat(), [*pieces, DONE], BEGUN)))
    assert found["content"] == [{"type": "text", "text": text or "Hello, Bob!"}]


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, b'{"error":{"message":"bad","type":"BadRequestError","code":400}}', "invalid_request_error", "bad"),
        (400, b'{"object":"error","message":"bad","type":"x","code":400}', "invalid_request_error", "bad"),
        (422, b'{"detail":[{"loc":["body"],"msg":"missing"}]}', "invalid_request_error", "missing"),
        (401, b'{"error":{"message":"key"}}', "authentication_error", "key"),
        (402, b'{"error":{"message":"pay"}}', "billing_error", "pay"),
        (403, b'{"detail":"no"}', "permission_error", "no"),
        (404, b'{"error":"no model"}', "not_found_error", "no model"),
        (429, b'{"message":"slow"}', "rate_limit_error", "slow"),
        (500, b'{"error":{"code":500,"message":"image input is not supported"}}', "api_error", "image input is not "),
        (502, b"<html>Bad Gateway</html>", "api_error", "<html>Bad Gateway</html>"),
        (503, b'{"error":{"message":"Loading model","type":"unavailable_error"}}', "overloaded_error", "Loading"),
        (504, b"", "timeout_error", "answered 504"),
    ],
)
def test_error_of_any_engine(status: int, body: bytes, kind: str, message: str) -> None:
    found = whole(MessagesToChat(), body, ASK, status=status)
    ErrorResponse.model_validate(found)
    assert found["error"]["type"] == kind
    assert message in found["error"]["message"]
    assert whole(CountTokensToChat(), body, ASK, status=status) == found


def test_gateways_own_refusals() -> None:
    assert orjson.loads(anthropic_error(413, "too large")) == {
        "type": "error",
        "error": {"type": "request_too_large", "message": "too large"},
    }
    assert message_events(anthropic_error_event(529, "full")) == [
        {"type": "error", "error": {"type": "overloaded_error", "message": "full"}}
    ]


def test_head_says_what_the_body_is() -> None:
    def heads(status: int, headers: Any) -> Any:
        conversion = MessagesToChat()
        conversion.request(ASK)
        return conversion.answer().head(status, headers)

    own = (b"retry-after", b"3")
    assert heads(200, [*EVENTS, own]) == (200, [own, (b"content-type", b"text/event-stream; charset=utf-8")])
    assert heads(200, [*JSON, (b"content-length", b"9"), own]) == (200, [own, *JSON])
    assert heads(503, [*EVENTS, own]) == (503, [own, *JSON])


def test_tokens_are_counted_by_the_engine() -> None:
    assert whole(CountTokensToChat(), orjson.dumps({"choices": [], "usage": USAGE}), ASK) == {"input_tokens": 20}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices": []}', b'{"choices":[{"message":null}]}', b"\xff"])
def test_answer_that_is_none_is_an_error(body: bytes) -> None:
    assert whole(MessagesToChat(), body, ASK)["type"] == "error"
    assert whole(CountTokensToChat(), body, ASK)["type"] == "error"
