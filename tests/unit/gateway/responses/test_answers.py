"""What clients get of an engine's answer: whole, as events, and of its errors."""

from typing import Any

import orjson
import pytest

from api.gateway.conversion import Document
from api.gateway.events import error_event
from api.gateway.responses import Prepared, ResponsesToChat
from tests.unit.gateway.responses.shapes import (
    DONE,
    EVENTS,
    JSON,
    USAGE,
    call_piece,
    checked,
    chunk,
    completion,
    event,
    final,
    prepared,
    said,
    streamed,
    whole,
)

SUMMARY: Document = {"reasoning": {"summary": "auto"}}
FUNCTION = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}}
TOKEN = {"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": [98]}]}


async def answered(body: bytes, document: Document | None = None, status: int = 200) -> Any:
    return whole(ResponsesToChat(await prepared(document)).answer(), body, status)


async def events_of(*pieces: bytes, **document: Any) -> list[dict[str, Any]]:
    return streamed(ResponsesToChat(await prepared(document, stream=True)).answer(), list(pieces))


@pytest.mark.parametrize(
    ("message", "output"),
    [
        ({"content": "Hello"}, [("message", "Hello")]),
        ({"content": None}, [("message", "")]),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, [("message", "ab")]),
        ({"content": "Hi", "reasoning_content": "Hm"}, [("thought", "Hm"), ("message", "Hi")]),
        ({"content": "Hi", "reasoning": "Hm"}, [("thought", "Hm"), ("message", "Hi")]),
        ({"content": None, "refusal": "No."}, [("message", "No.")]),
        ({"content": "", "tool_calls": [CALL]}, [("call", "weather", '{"a":1}')]),
        (
            {"content": "Look", "tool_calls": [CALL, CALL | {"id": "call_2"}]},
            [("message", "Look"), ("call", "weather", '{"a":1}'), ("call", "weather", '{"a":1}')],
        ),
    ],
)
async def test_whole_answers(message: dict[str, Any], output: list[Any]) -> None:
    response = checked(await answered(completion(message)))
    assert said(response) == output
    assert (response["status"], response["error"], response["incomplete_details"]) == ("completed", None, None)
    assert len({item["id"] for item in response["output"]}) == len(output)


async def test_a_response_says_what_was_asked_and_used() -> None:
    asked = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "max_output_tokens": 9,
        "tools": [FUNCTION],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "truncation": "auto",
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "store": False,
    }
    response = checked(await answered(completion({"content": "Hi"}), asked))
    applied = {"truncation": "disabled", "reasoning": {"effort": "low", "summary": None}}
    assert {name: response[name] for name in asked} == asked | applied
    assert response["model"] == "m"
    assert response["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 27,
    }


async def test_calls_keep_the_id_that_the_engine_gave_them() -> None:
    response = await answered(completion({"content": None, "tool_calls": [CALL]}))
    [call] = response["output"]
    assert call["call_id"] == "call_1"
    assert call["id"].startswith("fc_")
    assert call["status"] == "completed"


@pytest.mark.parametrize(
    ("finish", "status", "details", "last"),
    [
        ("stop", "completed", None, "completed"),
        ("tool_calls", "completed", None, "completed"),
        ("length", "incomplete", {"reason": "max_output_tokens"}, "incomplete"),
        ("content_filter", "incomplete", {"reason": "content_filter"}, "incomplete"),
        ("abort", "failed", None, "incomplete"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_why_an_answer_ended(stream: bool, finish: str, status: str, details: Any, last: str) -> None:
    if stream:
        pieces = (chunk({"reasoning": "Hm"}), chunk({"content": "Hi"}), chunk(finish_reason=finish), DONE)
        response = final(await events_of(*pieces))
    else:
        response = checked(await answered(completion({"content": "Hi", "reasoning": "Hm"}, finish)))
    assert (response["status"], response["incomplete_details"]) == (status, details)
    assert [item["status"] for item in response["output"]] == ["completed", last]


async def test_thoughts_are_told_as_a_summary_when_one_is_asked_for() -> None:
    response = checked(await answered(completion({"content": "Hi", "reasoning": "Hm"}), SUMMARY))
    assert response["output"][0]["summary"] == [{"type": "summary_text", "text": "Hm"}]
    assert "content" not in response["output"][0]
    events = await events_of(
        chunk({"reasoning": "H"}), chunk({"reasoning": "m"}), chunk(finish_reason="stop"), **SUMMARY
    )
    assert said(final(events)) == [("thought", "Hm")]
    assert [found["type"].removeprefix("response.") for found in events[2:-1]] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]


async def test_every_event_in_its_order() -> None:
    events = await events_of(
        chunk({"role": "assistant", "content": ""}),
        b": still there\n\n",
        chunk({"reasoning_content": "Hm"}),
        chunk({"content": "Let me "}),
        chunk({"content": "look: ☂"}),
        chunk(call_piece(0, "", "weather", "call_a")),
        chunk(call_piece(0, '{"city":')),
        chunk(call_piece(0, '"Rome"}')),
        chunk(finish_reason="tool_calls"),
        chunk(usage=USAGE),
        DONE,
    )
    assert [found["type"].removeprefix("response.") for found in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    response = final(events)
    assert said(response) == [("thought", "Hm"), ("message", "Let me look: ☂"), ("call", "weather", '{"city":"Rome"}')]
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["id"] == response["id"]


async def test_signs_of_life_are_passed_on() -> None:
    answer = ResponsesToChat(await prepared(stream=True)).answer()
    answer.head(200, EVENTS)
    assert answer.feed(b": waiting\n\n") == b": waiting\n\n"


@pytest.mark.parametrize(
    "deltas",
    [
        [call_piece(0, "{}", "a", "1"), call_piece(1, "{}", "b", "2")],
        [{"tool_calls": [*call_piece(0, "{}", "a", "1")["tool_calls"], *call_piece(1, "{}", "b", "2")["tool_calls"]]}],
        [call_piece(0, "{", "a", "1"), call_piece(1, "{", "b", "2"), call_piece(0, "}"), call_piece(1, "}")],
        [call_piece(0, "{}", "a", "1"), call_piece(0, "{}", "b", "2")],
        [call_piece(None, "{}", "a", "1"), call_piece(None, "{}", "b", "2")],
    ],
)
async def test_several_calls_however_they_are_told(deltas: list[Any]) -> None:
    events = await events_of(*map(chunk, deltas), chunk(finish_reason="tool_calls"), DONE)
    assert said(final(events)) == [("call", "a", "{}"), ("call", "b", "{}")]


async def test_what_is_said_while_a_call_is_not_whole_comes_after_it() -> None:
    pieces = [
        call_piece(0, '{"a"', "f", "1"),
        {"content": "one "},
        call_piece(0, ":1}"),
        {"content": "two"},
        {"reasoning": "Hm"},
        call_piece(1, "", "g", "2"),
        {"content": "three"},
    ]
    events = await events_of(*map(chunk, pieces), chunk(finish_reason="stop"), DONE)
    assert said(final(events)) == [
        ("call", "f", '{"a":1}'),
        ("message", "one two"),
        ("thought", "Hm"),
        ("call", "g", ""),
        ("message", "three"),
    ]


async def test_a_call_that_is_closed_does_not_go_on() -> None:
    pieces = [call_piece(0, "{}", "f", "1"), {"content": "a"}, call_piece(0, " \n"), call_piece(1, "{}", "g", "2")]
    events = await events_of(*map(chunk, pieces), chunk(finish_reason="stop"), DONE)
    assert said(final(events)) == [("call", "f", "{}"), ("message", "a"), ("call", "g", "{}")]


async def test_an_engine_that_only_says_that_it_is_done_has_ended_well() -> None:
    response = final(await events_of(chunk({"content": "Hi"}), DONE))
    assert (response["status"], said(response)) == ("completed", [("message", "Hi")])


async def test_probabilities_of_tokens() -> None:
    probabilities = {"content": [TOKEN]}
    known = [TOKEN | {"bytes": [97]}]
    response = checked(await answered(completion({"content": "a"}, logprobs=probabilities)))
    assert response["output"][0]["content"][0]["logprobs"] == known
    events = await events_of(chunk({"content": "a"}, logprobs=probabilities), chunk(finish_reason="stop"), DONE)
    assert final(events)["output"][0]["content"][0]["logprobs"] == known
    assert [found["logprobs"] for found in events if "output_text" in found["type"]] == [known, known]


async def test_refusals_are_parts_of_their_own() -> None:
    events = await events_of(chunk({"content": "Well"}), chunk({"refusal": "No."}), chunk(finish_reason="stop"), DONE)
    [message] = final(events)["output"]
    assert [part["type"] for part in message["content"]] == ["output_text", "refusal"]


FLAT = {"object": "error", "message": "Too long", "type": "BadRequestError", "param": "max_tokens", "code": 400}


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, FLAT, ("Too long", "invalid_request_error", "max_output_tokens", None)),
        (400, {"error": FLAT}, ("Too long", "invalid_request_error", "max_output_tokens", None)),
        (
            400,
            {"error": {"message": "m", "type": "invalid_request_error", "param": "messages[0].content", "code": "x"}},
            ("m", "invalid_request_error", "input", "x"),
        ),
        (429, {"error": {"message": "Slow down"}}, ("Slow down", "rate_limit_error", None, None)),
        (500, {"detail": "Broken"}, ("Broken", "api_error", None, None)),
        (503, b"<html>", ("<html>", "api_error", None, None)),
        (500, b"", ("The engine answered 500 and said nothing.", "api_error", None, None)),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_come_in_openai_shape(stream: bool, status: int, body: Any, error: tuple[Any, ...]) -> None:
    sent = body if isinstance(body, bytes) else orjson.dumps(body)
    answer = ResponsesToChat(await prepared(stream=stream)).answer()
    found = whole(answer, sent, status)
    assert list(found) == ["error"]
    assert tuple(found["error"][name] for name in ("message", "type", "param", "code")) == error


@pytest.mark.parametrize(
    ("broken", "code", "message"),
    [
        (event({"error": {"message": "CUDA", "type": "InternalServerError", "code": 500}}), "server_error", "CUDA"),
        (event({"error": {"message": "Slow", "code": 429}}), "rate_limit_exceeded", "Slow"),
        (event({"error": {"message": "Bad", "type": "BadRequestError", "code": 400}}), "invalid_prompt", "Bad"),
        (event({"error": "Out of memory"}), "server_error", "Out of memory"),
        (event(FLAT), "invalid_prompt", "Too long"),
        (error_event("The engine broke off.", "engine_failed"), "server_error", "The engine broke off."),
    ],
)
async def test_an_error_in_the_middle_fails_the_response(broken: bytes, code: str, message: str) -> None:
    kept: list[Document] = []
    ready = await prepared(stream=True)
    answer = ResponsesToChat(ready, lambda _, response: kept.append(response)).answer()
    events = streamed(answer, [chunk({"content": "Hel"}), broken, chunk({"content": "lo"}), DONE])
    assert [found["type"] for found in events[-2:]] == ["response.failed", "error"]
    response = checked(events[-2]["response"])
    assert (response["status"], response["error"]) == ("failed", {"code": code, "message": message})
    assert said(response) == [("message", "Hel")]
    assert response["output"][0]["status"] == "incomplete"
    assert events[-1]["message"] == message
    assert [one["status"] for one in kept] == ["failed"]


@pytest.mark.parametrize("pieces", [[], [chunk({"content": "Hel"})]])
async def test_a_stream_that_ends_too_early_fails(pieces: list[bytes]) -> None:
    events = await events_of(*pieces)
    assert events[-2]["response"]["status"] == "failed"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"choices":[]}'])
async def test_an_answer_that_is_none_fails(body: bytes) -> None:
    response = checked(await answered(body))
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"


@pytest.mark.parametrize(
    "odd",
    [
        b"data: {broken\n\n",
        event([]),
        event({"choices": [None, {"index": 1, "delta": {"content": "other"}}, {"delta": "x"}]}),
        event({"choices": [{"index": 0, "delta": {"tool_calls": [None]}}], "usage": "?"}),
    ],
)
async def test_what_is_no_chunk_is_passed_over(odd: bytes) -> None:
    events = await events_of(chunk({"content": "a"}), odd, chunk({"content": "b"}, finish_reason="stop"), DONE)
    assert said(final(events)) == [("message", "ab")]


async def test_clients_get_what_they_asked_for_whatever_the_engine_sends() -> None:
    answer = ResponsesToChat(await prepared(stream=True)).answer()
    assert answer.head(200, JSON) == (200, EVENTS)
    body = completion({"content": "Hi", "reasoning": "Hm"})
    events = streamed(_Json(answer), [body])
    assert said(final(events)) == [("thought", "Hm"), ("message", "Hi")]
    answer = ResponsesToChat(await prepared()).answer()
    assert answer.head(200, [*EVENTS, (b"content-length", b"9")]) == (200, JSON)
    for piece in (chunk({"content": "Hi"}), b": still there\n\n", chunk(finish_reason="stop"), DONE):
        assert answer.feed(piece) == b""
    assert said(checked(orjson.loads(answer.end()))) == [("message", "Hi")]


class _Json:
    """An answer that has been begun."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.end = answer.end

    def head(self, status: int, headers: Any) -> Any:
        return status, headers

    def feed(self, data: bytes) -> bytes:
        fed: bytes = self._answer.feed(data)
        return fed


@pytest.mark.parametrize("store", [None, True, False])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_to_be_stored_is_kept_before_its_last_bytes(stream: bool, store: bool | None) -> None:
    kept: list[tuple[Prepared, str]] = []
    ready = await prepared(stream=stream, store=store)
    answer = ResponsesToChat(ready, lambda of, response: kept.append((of, response["status"]))).answer()
    answer.head(200, EVENTS)
    answer.feed(chunk({"content": "Hi"}, finish_reason="stop"))
    assert kept == []
    answer.feed(DONE)
    assert kept == ([(ready, "completed")] if store is not False else [])
    answer.end()
    assert len(kept) == (store is not False)
