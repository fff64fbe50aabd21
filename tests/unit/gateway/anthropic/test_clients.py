"""The official clients read what is made for them."""

from typing import Any

import anthropic
import openai
import orjson
import pytest

from api.gateway.anthropic import ChatToMessages, CountTokensToChat, MessagesToChat
from api.gateway.conversion import Conversion
from tests.unit.gateway.anthropic.server import Script, serving
from tests.unit.gateway.anthropic.shapes import (
    CLAUDE,
    DATA,
    MESSAGE,
    THINKING_AND_TOOLS,
    USAGE,
    event,
    said,
    vllm_chunk,
)

HELLO: Any = [{"role": "user", "content": "Hi"}]
TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}


def by_path(path: str) -> Conversion:
    return CountTokensToChat() if path == "/v1/messages/count_tokens" else MessagesToChat()


def to_claude(path: str) -> Conversion:
    assert path == "/v1/chat/completions"
    return ChatToMessages()


def completion(message: dict[str, Any], finish: str = "stop") -> list[bytes]:
    choices = [{"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}]
    return [orjson.dumps({"id": "chatcmpl-7", "model": "inner", "choices": choices, "usage": USAGE})]


def claude(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=0)


def chat(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0)


async def test_anthropic_client_asks_and_goes_on_after_a_tool() -> None:
    script = Script(completion({"content": "Looking", "reasoning_content": "Hm", "tool_calls": [CALL]}, "tool_calls"))
    async with serving(script, by_path) as url, claude(url) as client:
        first = await client.messages.create(model="m", max_tokens=9, messages=HELLO, tools=[TOOL], system="s")
        assert [block.type for block in first.content] == ["thinking", "text", "tool_use"]
        assert (first.stop_reason, first.usage.input_tokens, first.usage.cache_read_input_tokens) == ("tool_use", 4, 16)
        result = {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}
        turns: Any = [*HELLO, first.to_param(), {"role": "user", "content": [result]}]
        script.pieces = completion({"content": "Sunny."})
        second = await client.messages.create(model="m", max_tokens=9, messages=turns, tools=[TOOL])
    assert [block.type for block in second.content] == ["text"]
    assert script.asked[1]["messages"][1:] == [
        {
            "role": "assistant",
            "content": "Looking",
            "reasoning_content": "Hm",
            "reasoning": "Hm",
            "tool_calls": [CALL],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]


async def test_anthropic_client_streams() -> None:
    script = Script(THINKING_AND_TOOLS, events=True)
    async with (
        serving(script, by_path) as url,
        claude(url) as client,
        client.messages.stream(model="m", max_tokens=9, messages=HELLO, tools=[TOOL]) as stream,
    ):
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert texts == ["Let me ", "look: ☂"]
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    uses: Any = message.content[2:]
    assert [use.input for use in uses] == [{"city": "Paris"}, {"city": "Rome"}]
    assert (message.stop_reason, message.usage.output_tokens, message.usage.input_tokens) == ("tool_use", 7, 4)


async def test_anthropic_client_streams_from_a_recorded_llama_cpp() -> None:
    data = (DATA / "llama_cpp_stream.sse").read_bytes()
    script = Script([data[n : n + 100] for n in range(0, len(data), 100)], events=True)
    async with (
        serving(script, by_path) as url,
        claude(url) as client,
        client.messages.stream(model="m", max_tokens=12, messages=HELLO) as stream,
    ):
        assert await stream.get_final_text() == "Hello, Bob! Welcome to my world. I'm here"


async def test_anthropic_client_gets_structured_output() -> None:
    script = Script(completion({"content": '{"a": "b"}'}))
    form: Any = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    async with serving(script, by_path) as url, claude(url) as client:
        await client.messages.create(model="m", max_tokens=9, messages=HELLO, output_config=form)
    assert script.asked[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}


async def test_anthropic_client_counts_tokens() -> None:
    script = Script(completion({"content": "x"}, "length"))
    async with serving(script, by_path) as url, claude(url) as client:
        count = await client.messages.count_tokens(model="m", messages=HELLO, tools=[TOOL])
    assert count.input_tokens == 20
    assert script.asked[0]["max_tokens"] == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (403, anthropic.PermissionDeniedError),
        (404, anthropic.NotFoundError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (503, anthropic.InternalServerError),
    ],
)
async def test_anthropic_client_raises_the_right_error(status: int, error: type[anthropic.APIStatusError]) -> None:
    script = Script([b'{"error":{"message":"because","code":1}}'], status=status)
    async with serving(script, by_path) as url, claude(url) as client:
        with pytest.raises(error, match="because") as raised:
            await client.messages.create(model="m", max_tokens=9, messages=HELLO)
    assert raised.value.status_code == status


async def test_anthropic_client_is_told_what_cannot_be_said() -> None:
    script = Script()
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    async with serving(script, by_path) as url, claude(url) as client:
        with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\]\.type"):
            await client.messages.create(model="m", max_tokens=9, messages=HELLO, tools=[search])
    assert script.asked == []


async def test_anthropic_client_raises_an_error_in_the_middle_of_a_stream() -> None:
    broken = event({"error": {"message": "no memory", "type": "InternalServerError", "code": 500}})
    script = Script([vllm_chunk({"content": "x"}), broken], events=True)
    async with serving(script, by_path) as url, claude(url) as client:
        with pytest.raises(anthropic.APIStatusError, match="no memory"):
            async with client.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
                await stream.until_done()


async def test_openai_client_asks_claude_and_goes_on_after_a_tool() -> None:
    thought = {"type": "thinking", "thinking": "Hm", "signature": "sig"}
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
    answer = MESSAGE | {"content": [thought, use], "stop_reason": "tool_use", "usage": {"input_tokens": 3}}
    script = Script([orjson.dumps(answer)])
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": TOOL["input_schema"]}}]
    async with serving(script, to_claude) as url, chat(url) as client:
        first = await client.chat.completions.create(model="m", messages=HELLO, tools=tools)
        message = first.choices[0].message
        assert message.tool_calls is not None
        turns: Any = [
            *HELLO,
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"},
        ]
        await client.chat.completions.create(model="m", messages=turns, tools=tools)
    assert script.asked[1]["messages"][1:] == [
        {"role": "assistant", "content": [thought, use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}]},
    ]


async def test_openai_client_streams_from_claude() -> None:
    script = Script(CLAUDE, events=True)
    async with serving(script, to_claude) as url, chat(url) as client:
        options: Any = {"include_usage": True}
        async with client.chat.completions.stream(model="m", messages=HELLO, stream_options=options) as stream:
            final = await stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "Looking it up ☂"
    assert message.tool_calls is not None
    assert [call.function.arguments for call in message.tool_calls] == ['{"city": "Paris"}', "{}"]
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.usage is not None
    assert final.usage.prompt_tokens == 13


async def test_openai_client_raises_the_right_errors_of_claude() -> None:
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    script = Script([orjson.dumps(overloaded)], status=529)
    async with serving(script, to_claude) as url, chat(url) as client:
        with pytest.raises(openai.InternalServerError, match="Overloaded") as raised:
            await client.chat.completions.create(model="m", messages=HELLO)
        assert raised.value.status_code == 503
        script.status, script.events = 200, True
        script.pieces = [*CLAUDE[:3], said("error", {"error": overloaded["error"]})]
        with pytest.raises(openai.APIError, match="Overloaded"):
            async for _ in await client.chat.completions.create(model="m", messages=HELLO, stream=True):
                pass
