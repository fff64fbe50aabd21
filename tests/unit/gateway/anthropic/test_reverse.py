"""OpenAI's chat completions, asked of Anthropic."""

from typing import Any

import orjson
import pytest
from anthropic.types import MessageParam
from pydantic import TypeAdapter

from api.gateway.anthropic import ChatToMessages
from api.gateway.refusals import Refusal
from tests.unit.gateway.anthropic.shapes import (
    CLAUDE,
    EVENTS,
    MESSAGE,
    block_events,
    chunks,
    completion,
    said,
    streamed,
    whole,
)

ASK: dict[str, Any] = {"model": "public", "messages": [{"role": "user", "content": "Hi"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
FUNCTION = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": SCHEMA}}
_MESSAGES: TypeAdapter[Any] = TypeAdapter(list[MessageParam])


def asked(**fields: Any) -> dict[str, Any]:
    found = ChatToMessages().request(ASK | fields)
    _MESSAGES.validate_python(found["messages"])
    return found


def conversation(*messages: dict[str, Any]) -> dict[str, Any]:
    return asked(messages=list(messages))


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ({}, {"max_tokens": 8192}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["A", "B"]}, {"stop_sequences": ["A", "B"]}),
        ({"temperature": 1.7, "top_p": 0.5}, {"temperature": 1, "top_p": 0.5}),
        ({"temperature": 0.2}, {"temperature": 0.2}),
        ({"user": "u", "metadata": {"k": "v"}}, {"metadata": {"user_id": "u"}}),
        ({"safety_identifier": "s"}, {"metadata": {"user_id": "s"}}),
        ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        ({"response_format": {"type": "text"}}, {"output_config": None}),
        (
            {
                "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
                "reasoning_effort": "high",
            },
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "high"}},
        ),
        (
            {"tools": [FUNCTION], "tool_choice": "required"},
            {
                "tools": [{"name": "weather", "description": "Of a city", "input_schema": SCHEMA}],
                "tool_choice": {"type": "any"},
            },
        ),
        ({"tools": [FUNCTION], "tool_choice": "auto"}, {"tool_choice": {"type": "auto"}}),
        ({"tools": [FUNCTION], "tool_choice": "none", "parallel_tool_calls": False}, {"tool_choice": {"type": "none"}}),
        (
            {"tools": [FUNCTION], "parallel_tool_calls": False},
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"tool_choice": {"type": "tool", "name": "weather"}},
        ),
        ({"n": 1, "seed": 3, "frequency_penalty": 1, "stream_options": {}, "store": True}, {"max_tokens": 8192}),
        ({"cache_control": {"type": "ephemeral"}}, {"cache_control": {"type": "ephemeral"}}),
    ],
)
def test_field_is_said_in_anthropics_words(sent: Any, found: Any) -> None:
    document = asked(**sent)
    assert {name: document.get(name) for name in found} == found
    assert not {"n", "seed", "frequency_penalty", "stream_options", "store", "stop", "user"} & set(document)


def test_instructions_and_consecutive_messages() -> None:
    found = conversation(
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": "d  \n"},
    )
    assert found["system"] == "Be kind.\n\nBe brief."
    assert found["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
    ]


def test_calls_results_and_kept_thoughts() -> None:
    thought = {"type": "thinking", "thinking": "Hmm", "signature": "sig"}
    found = conversation(
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Hmm",
            "thinking_blocks": [thought],
            "tool_calls": [
                {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{oops"}},
            ],
        },
        {"role": "tool", "tool_call_id": "functions.f:0", "content": "one"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": "b"},
    )["messages"]
    assert found[1]["content"] == [
        thought,
        {"type": "tool_use", "id": "functions_f_0", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "call_2", "name": "g", "input": {"INVALID_JSON": "{oops"}},
    ]
    assert found[2]["content"] == [
        {"type": "tool_result", "tool_use_id": "functions_f_0", "content": "one"},
        {"type": "tool_result", "tool_use_id": "call_2", "content": [{"type": "text", "text": "two"}]},
        {"type": "text", "text": "b"},
    ]


def test_images_and_files() -> None:
    found = conversation(
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB"}},
            ],
        }
    )
    assert found["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"},
            "title": "a.pdf",
        },
    ]


def part(**content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [content]}]}


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "system", "content": "only"}]}, "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (part(type="input_audio", input_audio={}), "messages[0].content[0].type"),
        (part(type="image_url", image_url={"url": "data:image/png,AAAA"}), "messages[0].content[0].image_url.url"),
        (part(type="file", file={"file_id": "f"}), "messages[0].content[0].file.file_data"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(sent: Any, field: str) -> None:
    with pytest.raises(Refusal) as refused:
        asked(**sent)
    error = orjson.loads(refused.value.body)["error"]
    assert (refused.value.status, error["param"]) == (400, field)
    assert f"'{field}'" in error["message"]


def test_whole_answer() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hmm", "signature": "sig"},
        {"type": "text", "text": "Look"},
        {"type": "text", "text": "ing"},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
    ]
    usage = {
        "input_tokens": 5,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 10,
        "output_tokens": 8,
        "output_tokens_details": {"thinking_tokens": 2},
    }
    body = orjson.dumps(MESSAGE | {"content": blocks, "stop_reason": "tool_use", "usage": usage})
    found = completion(whole(ChatToMessages(clock=lambda: 12.7), body, ASK))
    assert (found["id"], found["model"], found["created"]) == ("chatcmpl-01", "public", 12)
    choice = found["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Looking"
    assert choice["message"]["reasoning_content"] == "Hmm"
    assert choice["message"]["thinking_blocks"] == blocks[:1]
    assert choice["message"]["tool_calls"] == [
        {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    ]
    assert found["usage"] == {
        "prompt_tokens": 18,
        "completion_tokens": 8,
        "total_tokens": 26,
        "prompt_tokens_details": {"cached_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_why_it_stopped(reason: str, finish: str) -> None:
    body = orjson.dumps(MESSAGE | {"stop_reason": reason, "usage": {}})
    assert completion(whole(ChatToMessages(), body, ASK))["choices"][0]["finish_reason"] == finish
    end = [said("message_delta", {"delta": {"stop_reason": reason}, "usage": {}}), said("message_stop", {})]
    assert chunks(streamed(ChatToMessages(), [CLAUDE[0], *end], ASK))[-1]["choices"][0]["finish_reason"] == finish


def test_streamed_answer() -> None:
    found = chunks(streamed(ChatToMessages(), CLAUDE, ASK | {"stream_options": {"include_usage": True}}))
    deltas = [choice["delta"] for chunk in found for choice in chunk["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hmm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Looking it up ☂"
    (kept,) = [delta["thinking_blocks"] for delta in deltas if "thinking_blocks" in delta]
    assert kept == [{"type": "thinking", "thinking": "Hmm.", "signature": "c2ln"}]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    arguments = ["".join(c["function"]["arguments"] for c in calls if c["index"] == n) for n in (0, 1)]
    assert [orjson.loads(text) for text in arguments] == [{"city": "Paris"}, {}]
    assert [(c["id"], c["function"]["name"]) for c in calls if "id" in c] == [
        ("toolu_1", "weather"),
        ("toolu_2", "now"),
    ]
    assert found[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert found[-1]["choices"] == []
    assert found[-1]["usage"] == {
        "prompt_tokens": 13,
        "completion_tokens": 30,
        "total_tokens": 43,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert {(chunk["id"], chunk["model"]) for chunk in found} == {("chatcmpl-01", "public")}


def test_usage_is_sent_to_those_who_asked() -> None:
    assert all(chunk["choices"] for chunk in chunks(streamed(ChatToMessages(), CLAUDE, ASK)))


def test_redacted_thoughts_are_kept() -> None:
    sealed = {"type": "redacted_thinking", "data": "xyz"}
    found = chunks(streamed(ChatToMessages(), [CLAUDE[0], *block_events(0, sealed), CLAUDE[-1]], ASK))
    assert [c["choices"][0]["delta"].get("thinking_blocks") for c in found][1] == [sealed]


def test_ping_keeps_the_client_waiting() -> None:
    assert b": waiting\n\n" in streamed(ChatToMessages(), CLAUDE, ASK)


def test_stream_that_just_ends() -> None:
    found = chunks(streamed(ChatToMessages(), CLAUDE[:-4], ASK))
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks(streamed(ChatToMessages(), [], ASK))[-1]["choices"][0]["finish_reason"] == "stop"


def test_error_in_the_middle_ends_the_stream() -> None:
    error = said("error", {"error": {"type": "overloaded_error", "message": "Overloaded"}})
    stream = streamed(ChatToMessages(), [*CLAUDE[:4], error, *CLAUDE[4:]], ASK)
    last = stream.split(b"\n\n")[-2]
    assert orjson.loads(last.removeprefix(b"data: ")) == {
        "error": {"message": "Overloaded", "type": "overloaded_error", "param": None, "code": "overloaded_error"}
    }


def test_unknown_events_and_blocks_are_passed_over() -> None:
    new = [said("something_new", {"x": 1}), *block_events(0, {"type": "server_tool_use", "id": "s"}, {"type": "news"})]
    found = chunks(streamed(ChatToMessages(), [CLAUDE[0], *new, *block_events(1, {"type": "text", "text": "a"})], ASK))
    assert [c["choices"][0]["delta"].get("content") for c in found] == ["", "a", None]


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (429, {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}, "rate_limit_error", 429),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "full"}}, "overloaded_error", 503),
        (500, {"oops": 1}, "api_error", 500),
    ],
)
def test_error(status: int, body: Any, kind: str, told: int) -> None:
    conversion = ChatToMessages()
    conversion.request(ASK)
    answer = conversion.answer()
    assert answer.head(status, EVENTS)[0] == told
    answer.feed(orjson.dumps(body))
    assert orjson.loads(answer.end())["error"]["type"] == kind


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"content": [{}]}', b'{"content": null}'])
def test_answer_that_is_none_is_an_error(body: bytes) -> None:
    assert "error" in whole(ChatToMessages(), body, ASK)
