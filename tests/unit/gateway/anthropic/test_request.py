"""Requests to Anthropic's Messages API, as engines get them."""

import base64
from typing import Any

import orjson
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import TypeAdapter

from api.gateway.anthropic import CountTokensToChat, MessagesToChat
from api.gateway.refusals import Refusal

ASK: dict[str, Any] = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"name": "weather", "description": "Of a city", "input_schema": {"type": "object", "properties": {}}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
_MESSAGES: TypeAdapter[Any] = TypeAdapter(list[ChatCompletionMessageParam])


def chat(dialect: Any = "engine", **fields: Any) -> dict[str, Any]:
    return MessagesToChat(dialect).request(ASK | fields)


def messages(*turns: tuple[str, Any], **fields: Any) -> list[dict[str, Any]]:
    found = chat(messages=[{"role": role, "content": content} for role, content in turns], **fields)["messages"]
    _MESSAGES.validate_python(found)
    return found


def user(*blocks: Any) -> Any:
    """The content of a user's message of these blocks."""
    (only,) = messages(("user", list(blocks)))
    return only["content"]


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        ({}, {"max_tokens": 100}),
        ({"max_tokens": 0}, {"max_tokens": 1}),
        ({"stop_sequences": ["END", "\n"]}, {"stop": ["END", "\n"]}),
        ({"temperature": 0.3, "top_p": 0.9, "top_k": 40}, {"temperature": 0.3, "top_p": 0.9, "top_k": 40}),
        ({"metadata": {"user_id": "u-1"}}, {"user": "u-1"}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"seed": 7, "min_p": 0.1, "made_up": {"a": [1]}}, {"seed": 7, "min_p": 0.1, "made_up": {"a": [1]}}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "max"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        (
            {"thinking": {"type": "disabled"}},
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
        ),
        (
            {"thinking": {"type": "adaptive"}},
            {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}},
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            {
                "chat_template_kwargs": {"enable_thinking": True, "thinking": True, "thinking_budget": 2048},
                "thinking_budget_tokens": 2048,
                "reasoning_effort": "low",
            },
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 9000}, "output_config": {"effort": "medium"}},
            {"reasoning_effort": "medium", "thinking_budget_tokens": 9000},
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 9000}}, {"reasoning_effort": "high"}),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"thinking": True, "x": 1}},
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": True, "x": 1}},
        ),
    ],
)
def test_field_is_said_in_the_engines_words(sent: dict[str, Any], asked: dict[str, Any]) -> None:
    found = chat(**sent)
    assert {name: found.get(name) for name in asked} == asked


def test_nothing_of_anthropics_own_reaches_the_engine() -> None:
    sent = {
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": []},
        "metadata": {"user_id": "u"},
        "thinking": {"type": "disabled"},
        "stop_sequences": ["x"],
        "system": "s",
        "speed": "fast",
        "tools": [TOOL],
        "tool_choice": {"type": "any"},
    }
    assert set(chat(**sent)) == {
        *("model", "max_tokens", "messages", "user", "stop", "tools", "tool_choice"),
        *("parallel_tool_calls", "chat_template_kwargs"),
    }


def test_openais_own_api_gets_only_what_it_knows() -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "system", "content": "b"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"}, USE]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "ok"}]},
    ]
    found = chat("openai", messages=turns, top_k=5, tools=[TOOL], thinking={"type": "enabled", "budget_tokens": 5000})
    assert set(found) == {"model", "max_completion_tokens", "messages", "tools", "reasoning_effort"}
    assert [m["role"] for m in found["messages"]] == ["user", "system", "assistant", "tool"]
    assert set(found["messages"][2]) == {"role", "content", "tool_calls"}


@pytest.mark.parametrize(
    ("choice", "asked"),
    [
        ({"type": "auto"}, {"tool_choice": "auto", "parallel_tool_calls": True}),
        ({"type": "any"}, {"tool_choice": "required", "parallel_tool_calls": True}),
        ({"type": "none"}, {"tool_choice": "none", "parallel_tool_calls": True}),
        (
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": False},
        ),
        (None, {"tool_choice": None, "parallel_tool_calls": True}),
    ],
)
def test_choice_of_tools(choice: Any, asked: dict[str, Any]) -> None:
    found = chat(tools=[TOOL | {"cache_control": {"type": "ephemeral"}, "strict": True}], tool_choice=choice)
    assert {name: found.get(name) for name in asked} == asked
    function = {"name": "weather", "description": "Of a city", "parameters": TOOL["input_schema"], "strict": True}
    assert found["tools"] == [{"type": "function", "function": function}]


def test_choice_without_tools_is_left_out() -> None:
    assert "tool_choice" not in chat(tool_choice={"type": "auto"}, tools=[])


def test_instructions_stand_at_the_beginning_wherever_they_came() -> None:
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=abc"},
        {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be brief."},
    ]
    assert messages(("user", "a"), ("system", "Now in French."), ("user", "b"), system=system) == [
        {"role": "system", "content": "Be kind.\n\nBe brief.\n\nNow in French."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]


@pytest.mark.parametrize(
    ("block", "content"),
    [
        ({"type": "text", "text": "Hi"}, "Hi"),
        (IMAGE, [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]),
        (
            {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
            [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}],
        ),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Once"}}, "Once"),
        (
            {
                "type": "document",
                "title": "Tale",
                "source": {
                    "type": "base64",
                    "media_type": "text/plain",
                    "data": base64.b64encode("Öre".encode()).decode(),
                },
            },
            [{"type": "text", "text": "Tale"}, {"type": "text", "text": "Öre"}],
        ),
        (
            {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "In"}, IMAGE]}},
            [
                {"type": "text", "text": "In"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        ),
        (
            {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "text", "text": "found"}]},
            "T (S)\nfound",
        ),
    ],
)
def test_block_of_the_user(block: Any, content: Any) -> None:
    assert user(block) == content


def test_tool_calls_and_their_results() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such city", "is_error": True},
        {"type": "tool_result", "tool_use_id": "toolu_3", "content": [{"type": "text", "text": "map"}, IMAGE]},
        {"type": "tool_result", "tool_use_id": "toolu_4"},
        {"type": "text", "text": "So?"},
    ]
    uses = [{"type": "text", "text": "Looking"}, *(USE | {"id": f"toolu_{n}"} for n in range(1, 5))]
    found = messages(("user", "Where?"), ("assistant", uses), ("user", results))
    assert found[1]["content"] == "Looking"
    assert [call["id"] for call in found[1]["tool_calls"]] == ["toolu_1", "toolu_2", "toolu_3", "toolu_4"]
    assert orjson.loads(found[1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Rome"}
    assert [(m["tool_call_id"], m["content"]) for m in found[2:6]] == [
        ("toolu_1", "sunny"),
        ("toolu_2", "Error: no such city"),
        ("toolu_3", "map"),
        ("toolu_4", ""),
    ]
    assert found[6]["content"] == [
        {"type": "text", "text": "Images in the result of the tool call toolu_3:"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "So?"},
    ]


def test_thoughts_go_back_to_the_engine_that_had_them() -> None:
    sealed = {"type": "redacted_thinking", "data": "xyz"}
    turn = [{"type": "thinking", "thinking": "Hmm", "signature": ""}, sealed, USE]
    found = messages(("user", "a"), ("assistant", turn), ("user", "b"))[1]
    assert found["reasoning_content"] == found["reasoning"] == "Hmm"
    assert found["thinking_blocks"] == [sealed]
    assert found["content"] is None


def test_begun_answer_is_gone_on_with() -> None:
    found = chat(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "{"}])
    assert found["continue_final_message"] is True
    assert found["add_generation_prompt"] is False
    assert found["chat_template_kwargs"]["enable_thinking"] is False
    assert "continue_final_message" not in chat()


@pytest.mark.parametrize(
    ("sent", "field", "remedy"),
    [
        ({"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]}, "tools[1].type", "Leave it out"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema", "must be an object"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type", "'any'"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers", "Leave it out"),
        ({"max_tokens": "many"}, "max_tokens", "whole number"),
        ({"messages": "Hi"}, "messages", "list"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["Hi"]}, "messages[0]", "object"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role", "'user'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "list"),
        ({"system": [{"type": "image"}]}, "system[0].type", "text"),
        ({"thinking": {"type": "always"}}, "thinking.type", "'adaptive'"),
        ({"thinking": {"type": "enabled", "budget_tokens": "all"}}, "thinking.budget_tokens", "whole number"),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config.format", "json_schema"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(sent: dict[str, Any], field: str, remedy: str) -> None:
    assert_refused(sent, field, remedy)


@pytest.mark.parametrize(
    ("block", "field", "remedy"),
    [
        ({"type": "container_upload", "file_id": "f"}, "type", "Known are text"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source.type", "'base64' or 'url'"),
        ({"type": "image", "source": {"type": "url"}}, "source.url", "string"),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}},
            "source.media_type",
            "Send its text",
        ),
        ({"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}}, "source.type", "Send its text"),
        (
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "a"}, {"type": "video"}]},
            "content[1].type",
            "cannot read",
        ),
    ],
)
def test_block_that_engines_cannot_read_is_refused_by_name(block: Any, field: str, remedy: str) -> None:
    turn = {"role": "user", "content": [{"type": "text", "text": "a"}, block]}
    assert_refused({"messages": [*ASK["messages"], turn]}, f"messages[1].content[1].{field}", remedy)


def test_prompt_is_counted_as_it_would_be_sent() -> None:
    sent = ASK | {"system": "s", "tools": [TOOL], "tool_choice": {"type": "any"}, "stop_sequences": ["x"]}
    asked = CountTokensToChat().request({k: v for k, v in sent.items() if k != "max_tokens"} | {"stream": True})
    full = MessagesToChat().request(sent)
    assert asked == {"model": "m", "max_tokens": 1, "messages": full["messages"], "tools": full["tools"]}


def assert_refused(sent: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(Refusal) as refused:
        chat(**sent)
    error = orjson.loads(refused.value.body)["error"]
    assert refused.value.status == 400
    assert error["param"] == field
    assert f"'{field}'" in error["message"]
    assert remedy in error["message"]
