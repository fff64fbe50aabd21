"""What an engine that speaks chat completions is asked."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.gateway.refusals import Refusal
from api.gateway.responses import ResponsesToChat, prepare
from tests.unit.gateway.responses.shapes import Nothing, prepared

FUNCTION = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}
OTHER = {"type": "function", "name": "now", "description": "The time", "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}", "id": "fc_1"}
CALLED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
TOLD = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def data_url(text: bytes, kind: str = "text/plain") -> str:
    return f"data:{kind};base64,{base64.b64encode(text).decode()}"


async def asked(**document: Any) -> dict[str, Any]:
    ready = await prepared(document)
    return ResponsesToChat(ready).request(ready.document)


@pytest.mark.parametrize(
    ("given_input", "messages"),
    [
        ("Hi", [{"role": "user", "content": "Hi"}]),
        ([{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Hi"}]),
        ([user({"type": "input_text", "text": "Hi"})], [{"role": "user", "content": "Hi"}]),
        (
            [user({"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"})],
            [user({"type": "text", "text": "a"}, {"type": "text", "text": "b"})],
        ),
        (
            [user({"type": "input_image", "image_url": "https://x/y.png", "detail": "low"})],
            [user({"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}})],
        ),
        (
            [user({"type": "input_image", "image_url": "https://x/y.png", "detail": "original"})],
            [user({"type": "image_url", "image_url": {"url": "https://x/y.png"}})],
        ),
        (
            [user({"type": "input_file", "filename": "a.txt", "file_data": data_url("für".encode())})],
            [{"role": "user", "content": "a.txt:\nfür"}],
        ),
        (
            [user({"type": "input_file", "file_data": base64.b64encode(b"raw").decode()})],
            [{"role": "user", "content": "raw"}],
        ),
        (
            [user({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}})],
            [user({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}})],
        ),
        (
            [{"role": "developer", "content": "A"}, {"role": "system", "content": "B"}, user()],
            [{"role": "system", "content": "A\n\nB"}, user()],
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "B"}],
            [{"role": "user", "content": "a"}, {"role": "system", "content": "B"}],
        ),
        (
            [
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "no"}],
                }
            ],
            [{"role": "assistant", "content": "ano"}],
        ),
        (
            [THOUGHT, {"role": "assistant", "content": "Let me see"}, CALL, CALL | {"call_id": "c2"}, RESULT],
            [
                {
                    "role": "assistant",
                    "content": "Let me see",
                    "reasoning_content": "Hm",
                    "tool_calls": [CALLED, CALLED | {"id": "c2"}],
                },
                TOLD,
            ],
        ),
        (
            [CALL, RESULT, THOUGHT, CALL, RESULT],
            [
                {"role": "assistant", "content": None, "tool_calls": [CALLED]},
                TOLD,
                {"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [CALLED]},
                TOLD,
            ],
        ),
        (
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
        ),
        (
            [THOUGHT | {"content": None, "summary": [{"type": "summary_text", "text": "S"}]}, CALL],
            [{"role": "assistant", "content": None, "reasoning_content": "S", "tool_calls": [CALLED]}],
        ),
        (
            [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}, user()],
            [user()],
        ),
        (
            [RESULT | {"output": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
            [TOLD | {"content": "a\nb"}],
        ),
        (
            [RESULT | {"output": [{"type": "input_image", "image_url": "https://x/y.png"}]}],
            [TOLD | {"content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}],
        ),
    ],
)
async def test_items_become_messages(given_input: Any, messages: list[dict[str, Any]]) -> None:
    assert (await asked(input=given_input))["messages"] == messages


async def test_instructions_and_what_the_system_says_first_are_one_message() -> None:
    chat = await asked(instructions="Be brief.", input=[{"role": "developer", "content": "B"}, user()])
    assert chat["messages"] == [{"role": "system", "content": "Be brief.\n\nB"}, user()]


SCHEMA = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
OTHER_TOOL = {"type": "function", "function": {"name": "now", "description": "The time", "strict": True}}


@pytest.mark.parametrize(
    ("document", "chat"),
    [
        (
            {"max_output_tokens": 9, "temperature": 0.5, "top_p": 0.9},
            {"max_completion_tokens": 9, "temperature": 0.5, "top_p": 0.9},
        ),
        ({"temperature": None, "user": "u", "seed": 7, "min_p": 0.1}, {"user": "u", "seed": 7, "min_p": 0.1}),
        ({"metadata": {"a": "b"}, "store": True, "truncation": "auto", "include": ["x"], "n": 3}, {}),
        (
            {"stream": True, "stream_options": {"include_obfuscation": False}},
            {"stream": True, "stream_options": {"include_usage": True}},
        ),
        ({"stream": False}, {"stream": False}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"text": {"verbosity": "low", "format": {"type": "text"}}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": SCHEMA}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True, "top_logprobs": 0}),
        (
            {"tools": [FUNCTION, OTHER], "tool_choice": "required"},
            {"tools": [TOOL, OTHER_TOOL], "tool_choice": "required"},
        ),
        ({"tools": [FUNCTION], "parallel_tool_calls": False}, {"tools": [TOOL], "parallel_tool_calls": False}),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "weather"}},
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        (
            {
                "tools": [FUNCTION, OTHER],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "now"}],
                },
            },
            {"tools": [OTHER_TOOL], "tool_choice": "required"},
        ),
    ],
)
async def test_what_is_asked_for_beside_the_conversation(document: dict[str, Any], chat: dict[str, Any]) -> None:
    found = await asked(**document)
    assert found.pop("messages")
    assert found == {"model": "m"} | chat


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"role": "king", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [user({"type": "input_text"})]}, "input[0].content[0].text"),
        ({"input": [user({"text": "a"})]}, "input[0].content[0].type"),
        ({"input": [user({"type": "hologram"})]}, "input[0].content[0].type"),
        ({"input": [user({"type": "input_image", "file_id": "f"})]}, "input[0].content[0].file_id"),
        ({"input": [user({"type": "input_image"})]}, "input[0].content[0].image_url"),
        ({"input": [user({"type": "input_file", "file_id": "f"})]}, "input[0].content[0].file_id"),
        ({"input": [user({"type": "input_file", "file_url": "f"})]}, "input[0].content[0].file_url"),
        ({"input": [user({"type": "input_file"})]}, "input[0].content[0].file_data"),
        ({"input": [user({"type": "input_file", "file_data": "%%"})]}, "input[0].content[0].file_data"),
        (
            {"input": [user({"type": "input_file", "file_data": data_url(b"\xff\xfe")})]},
            "input[0].content[0].file_data",
        ),
        ({"input": [{"role": "system", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [user(), {"type": "web_search_call"}]}, "input[1].type"),
        ({"input": [{"type": "item_reference", "id": "msg_5"}]}, "input[0].id"),
        ({"input": [CALL | {"name": None}]}, "input[0].name"),
        ({"input": [RESULT | {"output": None}]}, "input[0].output"),
        ({"input": [RESULT | {"call_id": 5}]}, "input[0].call_id"),
        ({"input": [THOUGHT | {"content": [5]}]}, "input[0].content[0]"),
        ({"instructions": []}, "instructions"),
        ({"background": True}, "background"),
        ({"background": 1}, "background"),
        ({"store": "yes"}, "store"),
        ({"stream": "yes"}, "stream"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"truncation": "sometimes"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": []}, "metadata"),
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"top_logprobs": "3"}, "top_logprobs"),
        ({"include": "x"}, "include"),
        ({"text": "json"}, "text"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "s"}}}, "text.format.schema"),
        ({"text": {"verbosity": 1}}, "text.verbosity"),
        ({"reasoning": {"effort": 1}}, "reasoning.effort"),
        ({"tools": {}}, "tools"),
        ({"tools": [FUNCTION, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type"),
        ({"tools": [{"name": "x"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [5]}}, "tool_choice.tools[0]"),
    ],
)
async def test_what_cannot_be_said_is_refused_by_name(document: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        await asked(**document)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert refused.value.message.startswith(f"'{param}' ")
    assert refused.value.message.endswith((".", "data:text/plain;base64,..."))


async def test_nesting_that_could_not_be_written_again_is_refused() -> None:
    deep: Any = "x"
    for _ in range(260):
        deep = [deep]
    with pytest.raises(Refusal, match="deeply"):
        await asked(metadata={"a": deep})


FIELDS = """
    input instructions tools tool_choice text reasoning include metadata top_logprobs stream store truncation type role
    parallel_tool_calls content id call_id name arguments output summary format mode effort
"""
WORDS = """
    message user assistant system function function_call function_call_output reasoning input_text output_text text
    input_image input_file auto required json_schema allowed_tools item_reference msg_1 data:,x
"""
field = st.sampled_from(FIELDS.split())
word = st.sampled_from(WORDS.split())
value = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | word | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(field, inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(field, value, max_size=6))
async def test_any_request_is_said_or_refused(document: dict[str, Any]) -> None:
    messages, refusal = await outcome({"model": "m"} | document)
    if refusal is None:
        assert messages
    else:
        assert refusal.status == 400
        assert refusal.param


async def outcome(document: dict[str, Any]) -> tuple[Any, Refusal | None]:
    try:
        ready = await prepare(document, "k", Nothing())
        return ResponsesToChat(ready).request(ready.document)["messages"], None
    except Refusal as refusal:
        return None, refusal
