"""OpenAI's own client reads, streams, goes on, comes back, over engines that speak chat completions or responses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import orjson
import pytest
from pydantic import BaseModel

from api.gateway.responses import ResponsesToChat, StoredResponses
from fleet.db.session import Database
from tests.unit.gateway.responses.server import Engine, Script, serving
from tests.unit.gateway.responses.shapes import DONE, EVENTS, USAGE, call_piece, chunk, completion, event, prepared

WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


class Where(BaseModel):
    city: str


def parrot(asked: dict[str, Any]) -> list[bytes]:
    """Says how many messages it got, and the last one."""
    said = f"{len(asked['messages'])}: {asked['messages'][-1]['content']}"
    if not asked.get("stream"):
        return [completion({"content": said, "reasoning_content": "Hm"})]
    words = [chunk({"content": piece}) for piece in (said[:2], said[2:])]
    return [chunk({"reasoning_content": "Hm"}), *words, chunk(finish_reason="stop"), chunk(usage=USAGE), DONE]


def meteorologist(asked: dict[str, Any]) -> list[bytes]:
    """Asks for the weather, and then says it."""
    last = asked["messages"][-1]
    if last["role"] == "tool":
        return [chunk({"content": f"It is {last['content']}."}), chunk(finish_reason="stop"), DONE]
    pieces = [call_piece(0, "", "weather", "call_1"), call_piece(0, '{"city": "Ro'), call_piece(0, 'me"}')]
    return [*map(chunk, pieces), chunk(finish_reason="tool_calls"), chunk(usage=USAGE), DONE]


@asynccontextmanager
async def client_of(
    database: Database, script: Script, key: str = "key-1", **engine: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, Engine]]:
    made = Engine(script, **engine)
    async with (
        serving(StoredResponses(database), made) as url,
        openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0) as client,
    ):
        yield client, made


async def test_it_asks_and_reads(database: Database) -> None:
    async with client_of(database, parrot) as (client, engine):
        response = await client.responses.create(model="m", input="Hi", instructions="Be brief.")
        assert (response.output_text, response.status) == ("2: Hi", "completed")
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.usage is not None
        assert (response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens) == (20, 16)
    assert [message["role"] for message in engine.asked[0]["messages"]] == ["system", "user"]


async def test_it_streams(database: Database) -> None:
    async with client_of(database, parrot) as (client, _):
        async with client.responses.stream(model="m", input="Hi") as stream:
            deltas = [found.delta async for found in stream if found.type == "response.output_text.delta"]
            response = await stream.get_final_response()
        assert "".join(deltas) == response.output_text == "1: Hi"
        assert response.usage is not None
        raw = await client.responses.create(model="m", input="Hi", stream=True)
        kinds = [found.type async for found in raw]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


async def test_it_calls_tools_and_goes_on(database: Database) -> None:
    async with client_of(database, meteorologist) as (client, engine):
        async with client.responses.stream(model="m", input="Weather in Rome?", tools=[WEATHER]) as stream:
            pieces = [f.delta async for f in stream if f.type == "response.function_call_arguments.delta"]
            first = await stream.get_final_response()
        [call] = first.output
        assert call.type == "function_call"
        assert (call.name, call.arguments, call.call_id) == ("weather", '{"city": "Rome"}', "call_1")
        assert len(pieces) == 2
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        async with client.responses.stream(
            model="m", input=[result], previous_response_id=first.id, tools=[WEATHER]
        ) as stream:
            second = await stream.get_final_response()
        assert second.output_text == "It is sunny."
    assert [message["role"] for message in engine.asked[1]["messages"]] == ["user", "assistant", "tool"]
    assert engine.asked[1]["messages"][1]["tool_calls"][0]["id"] == "call_1"


async def test_it_sends_the_conversation_itself(database: Database) -> None:
    async with client_of(database, meteorologist) as (client, engine):
        items: list[Any] = [{"role": "user", "content": "Weather in Rome?"}]
        async with client.responses.stream(model="m", input=items, tools=[WEATHER], store=False) as stream:
            first = await stream.get_final_response()
        items += [item.to_dict() for item in first.output]
        items.append({"type": "function_call_output", "call_id": "call_1", "output": "sunny"})
        async with client.responses.stream(model="m", input=items, store=False) as stream:
            assert (await stream.get_final_response()).output_text == "It is sunny."
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
    assert [message["role"] for message in engine.asked[1]["messages"]] == ["user", "assistant", "tool"]


async def test_it_parses_what_has_a_schema(database: Database) -> None:
    def city(asked: dict[str, Any]) -> list[bytes]:
        assert asked["response_format"]["json_schema"]["schema"]["properties"]["city"]
        return [completion({"content": '{"city": "Rome"}'})]

    async with client_of(database, city) as (client, _):
        response = await client.responses.parse(model="m", input="Where?", text_format=Where)
        assert response.output_parsed == Where(city="Rome")


async def test_it_comes_back_over_three_turns(database: Database) -> None:
    async with client_of(database, parrot) as (client, engine):
        ids: list[str] = []
        for i, question in enumerate(("one", "two", "three")):
            previous = ids[-1] if ids else openai.omit
            response = await client.responses.create(model="m", input=question, previous_response_id=previous)
            assert response.output_text == f"{2 * i + 1}: {question}"
            assert response.previous_response_id == (ids[-1] if ids else None)
            ids.append(response.id)
        # What was thought goes back to the engine, too.
        assert engine.asked[2]["messages"][1] == {"role": "assistant", "content": "1: one", "reasoning_content": "Hm"}
        kept = await client.responses.retrieve(ids[2])
        assert kept.model_dump() == response.model_dump()
        page = client.responses.input_items.list(ids[2], limit=2, order="asc")
        items = [item async for item in page]
        assert [item.type for item in items] == ["message", "reasoning", "message"] * 2 + ["message"]
        await client.responses.delete(ids[2])
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(ids[2])
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="m", input="on", previous_response_id=ids[2])
        assert refused.value.code == "previous_response_not_found"
        with pytest.raises(openai.BadRequestError, match="background"):
            await client.responses.cancel(ids[1])
        with pytest.raises(openai.NotFoundError):
            await client.with_options(api_key="key-2").responses.retrieve(ids[1])


async def test_it_comes_back_after_everything_was_started_anew(database: Database) -> None:
    async with client_of(database, parrot) as (client, _):
        first = await client.responses.create(model="m", input="one")
    async with client_of(database, parrot) as (client, _):
        second = await client.responses.create(model="m", input="two", previous_response_id=first.id)
        assert second.output_text == "3: two"


async def test_it_reads_errors(database: Database) -> None:
    def broken(asked: dict[str, Any]) -> list[bytes]:
        return [chunk({"content": "Hel"}), event({"error": {"message": "CUDA", "code": 500}})]

    def refusing(asked: dict[str, Any]) -> list[bytes]:
        return [orjson.dumps({"object": "error", "message": "Too long", "type": "BadRequestError", "code": 400})]

    async with client_of(database, broken) as (client, _):
        found = [one async for one in await client.responses.create(model="m", input="Hi", stream=True)]
        assert [one.type for one in found[-2:]] == ["response.failed", "error"]
        failed: Any = found[-2]
        assert failed.response.error.message == "CUDA"
        assert (await client.responses.retrieve(failed.response.id)).status == "failed"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="m", input="Hi", tools=[{"type": "web_search"}])
        assert refused.value.param == "tools[0].type"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="m", input="Hi", background=True)
        assert refused.value.param == "background"
    async with client_of(database, refusing, status=400) as (client, _):
        with pytest.raises(openai.BadRequestError, match="Too long"):
            await client.responses.create(model="m", input="Hi", stream=True)


async def test_engines_that_speak_it_are_passed_through_and_remembered(database: Database) -> None:
    inner = ResponsesToChat(await prepared(stream=True, model="m")).answer()
    inner.head(200, EVENTS)
    pieces = [inner.feed(piece) for piece in parrot({"messages": [{"content": "Hi"}], "stream": True})]

    async with client_of(database, lambda _: pieces, native=True) as (client, engine):
        async with client.responses.stream(model="m", input="Hi") as stream:
            first = await stream.get_final_response()
        assert first.output_text == "1: Hi"
        assert first.store is True
        assert (await client.responses.retrieve(first.id)).output_text == "1: Hi"
        async with client.responses.stream(model="m", input="on", previous_response_id=first.id) as stream:
            assert (await stream.get_final_response()).previous_response_id == first.id
    assert engine.asked[1]["store"] is False
    assert "previous_response_id" not in engine.asked[1]
    assert [item["type"] for item in engine.asked[1]["input"]] == ["message", "reasoning", "message", "message"]
    # The same conversation on an engine that speaks chat completions.
    async with client_of(database, parrot) as (client, _):
        response = await client.responses.create(model="m", input="there", previous_response_id=first.id)
        assert response.output_text == "3: there"
