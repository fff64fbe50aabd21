"""Public names over a real web server: targets, aliases, fallbacks, providers, and every protocol's own paths."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlmodel import select

from api.gateway.app import Gateway
from api.gateway.quick import quick_http
from api.gateway.standalone import standalone
from api.gateway.usage_log import UsageLog
from fleet.db.session import Database
from fleet.db.usage import UsageRow
from tests.unit.gateway.conftest import FAST
from tests.unit.gateway.engines import Exchange, RawEngine, echo, raw_engine, silent, until, unused_port
from tests.unit.gateway.test_known_routes import MASTER, Names
from tests.unit.gateway.world import KEY

AUTH = {"Authorization": f"Bearer {KEY}"}
SAID = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}


@pytest.fixture
def names(gateway_database: Database) -> Names:
    names = Names(gateway_database)
    names.add_key(KEY)
    return names


@pytest.fixture
async def served(names: Names, tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Gateway]]:
    """(a client of it, the gateway)."""
    usage = UsageLog(names.database, tmp_path / "spool")
    gateway = Gateway(names.database, options=FAST, open_sealed=MASTER.open, usage=usage)
    config = uvicorn.Config(
        standalone(gateway),
        http=quick_http(gateway),
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve(sockets=[listening]))
    await until(lambda: running.started)
    base = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=base, headers=AUTH, timeout=20) as client:
        yield client, gateway
    running.should_exit = True
    await task


Served = tuple[httpx.AsyncClient, Gateway]


async def chat(client: httpx.AsyncClient, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    return await client.post("/v1/chat/completions", json=body)


def answering(status: str = "200 OK", body: Any = None) -> Callable[[Exchange], Awaitable[None]]:
    async def reply(exchange: Exchange) -> None:
        await exchange.answer(json.dumps(SAID if body is None else body).encode(), status=status)

    return reply


def asked(engine: RawEngine) -> dict[str, Any]:
    """The last body that it got."""
    return dict(json.loads(engine.bodies[-1]))


def head(engine: RawEngine) -> str:
    return engine.requests[-1].decode().lower()


async def test_an_alias_leads_to_its_route_and_the_engine_hears_its_own_name(names: Names, served: Served) -> None:
    client, gateway = served
    async with raw_engine(echo) as engine:
        names.serve("smol", engine.url)
        names.add_route("gpt-4o", {"deployment": "smol"}, aliases=["best"])
        await gateway.refresh()
        for name in ("gpt-4o", "best", "smol"):
            for _ in range(2):  # the second time over the fast path
                assert (await chat(client, name, odd={"kept": 1})).status_code == 200
                assert asked(engine)["model"] == "smol"
                assert asked(engine)["odd"] == {"kept": 1}
        listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
        assert listed == ["best", "gpt-4o", "smol"]


async def test_weights_share_requests_out_among_targets(names: Names, served: Served) -> None:
    client, gateway = served
    async with raw_engine(echo) as one, raw_engine(echo) as other:
        names.serve("a", one.url)
        names.add_deployment("b")
        names.add_endpoint("b", other.url, instance="i-9")
        names.add_route("r", {"deployment": "a", "weight": 3}, {"deployment": "b", "weight": 1})
        await gateway.refresh()
        for _ in range(20):
            assert (await chat(client, "r")).status_code == 200
        assert (len(one.requests), len(other.requests)) == (15, 5)


async def test_a_target_that_cannot_be_reached_passes_its_requests_on(names: Names, served: Served) -> None:
    client, gateway = served
    async with raw_engine(echo) as engine:
        names.serve("a", f"http://127.0.0.1:{await unused_port()}")
        names.add_deployment("b")
        names.add_endpoint("b", engine.url, instance="i-9")
        names.add_route("r", {"deployment": "a"}, {"deployment": "b"})
        await gateway.refresh()
        assert Counter([(await chat(client, "r")).status_code for _ in range(10)]) == {200: 10}


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [
        ("context_window", "400 Bad Request", {"code": "context_length_exceeded", "message": "too long"}),
        ("context_window", "400 Bad Request", {"message": "the request exceeds the available context size"}),
        ("content_policy", "400 Bad Request", {"code": "content_filter", "message": "no"}),
        ("general", "500 Internal Server Error", {"message": "CUDA error"}),
        ("general", "503 Loading", {"message": "loading"}),
        ("general", "429 Slow", {"message": "slow down"}),
    ],
)
async def test_a_fallback_answers_what_its_kind_is_about(
    names: Names, served: Served, kind: str, status: str, error: dict[str, str]
) -> None:
    client, gateway = served
    async with raw_engine(answering(status, {"error": error})) as failing, raw_engine(echo) as well:
        names.serve("a", failing.url)
        names.add_deployment("b")
        names.add_endpoint("b", well.url, instance="i-9")
        names.add_route("with", {"deployment": "a"}, fallbacks={kind: ["b"]})
        names.add_route("without", {"deployment": "a"})
        await gateway.refresh()
        for _ in range(2):
            answer = await chat(client, "with")
            assert answer.status_code == 200
            assert answer.json()["model"] == "b"
        assert (await chat(client, "without")).status_code == int(status[:3])


async def test_fallbacks_in_a_circle_end_with_the_first_error(names: Names, served: Served) -> None:
    client, gateway = served
    dead = f"http://127.0.0.1:{await unused_port()}"
    names.serve("a", dead)
    names.add_deployment("b")
    names.add_endpoint("b", dead, instance="i-9")
    names.add_route("one", {"deployment": "a"}, fallbacks={"general": ["two"]})
    names.add_route("two", {"deployment": "b"}, fallbacks={"general": ["one"]})
    await gateway.refresh()
    answer = await chat(client, "one")
    assert answer.status_code == 503
    assert "'one'" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]


async def test_a_provider_gets_its_key_its_model_and_its_path(names: Names, served: Served) -> None:
    client, gateway = served
    async with raw_engine(answering()) as engine:
        names.add_provider("them", MASTER.seal("secret"), base_url=f"{engine.url}/base/v1", headers={"x-org": "us"})
        names.add_route("gpt", {"provider": "them", "model": "gpt-9"})
        await gateway.refresh()
        for _ in range(2):
            assert (await chat(client, "gpt")).json() == SAID
            assert head(engine).startswith("post /base/v1/chat/completions http/1.1\r\n")
            assert "authorization: bearer secret\r\n" in head(engine)
            assert "x-org: us\r\n" in head(engine)
            assert KEY not in head(engine)
            assert asked(engine)["model"] == "gpt-9"


async def test_an_anthropic_provider_is_asked_in_its_own_words(names: Names, served: Served) -> None:
    client, gateway = served
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": "Paris"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 1},
    }
    async with raw_engine(answering(body=message)) as engine:
        names.add_provider("them", MASTER.seal("secret"), base_url=f"{engine.url}/v1", kind="anthropic")
        names.add_route("claude", {"provider": "them"})
        await gateway.refresh()
        for _ in range(2):
            answer = await chat(client, "claude")
            assert answer.json()["choices"][0]["message"]["content"] == "Paris"
            assert answer.json()["usage"]["total_tokens"] == 6
            assert head(engine).startswith("post /v1/messages ")
            assert "x-api-key: secret\r\n" in head(engine)
            assert asked(engine)["max_tokens"] > 0


async def test_messages_are_converted_once_an_engine_has_said_that_it_does_not_know_them(
    names: Names, served: Served
) -> None:
    client, gateway = served

    async def reply(exchange: Exchange) -> None:
        known = b" /v1/chat/completions " in exchange.head
        await exchange.answer(json.dumps(SAID).encode(), status="200 OK" if known else "404 Not Found")

    async with raw_engine(reply) as engine:
        names.serve("m", engine.url)
        await gateway.refresh()
        body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "capital?"}]}
        for _ in range(3):
            answer = await client.post("/v1/messages", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["content"] == [{"type": "text", "text": "Paris"}]
            assert answer.json()["stop_reason"] == "end_turn"
        paths = [request.split()[1] for request in engine.requests]
        assert paths == [b"/v1/messages"] + [b"/v1/chat/completions"] * 3
        count = await client.post("/v1/messages/count_tokens", json=body)
        assert count.json() == {"input_tokens": 7}


async def test_messages_pass_through_where_the_engine_speaks_them(names: Names, served: Served) -> None:
    client, gateway = served
    async with raw_engine(echo) as engine:
        names.serve("m", engine.url)
        await gateway.refresh()
        body = {"model": "m", "max_tokens": 9, "messages": [], "thinking": {"type": "enabled"}}
        answer = await client.post("/v1/messages", json=body, headers={"x-api-key": KEY, "Authorization": ""})
        assert answer.json() == body


async def test_errors_have_the_shape_of_their_protocol(served: Served) -> None:
    client, _ = served
    anthropic = (await client.post("/v1/messages", json={"model": "nobody"})).json()
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "not_found_error")
    cohere = (await client.post("/v2/rerank", json={"model": "nobody"})).json()
    assert set(cohere) == {"message"}
    openai = (await client.post("/v1/embeddings", json={"model": "nobody"})).json()
    assert openai["error"]["code"] == "model_not_found"


async def test_coheres_documents_may_be_objects(names: Names, served: Served) -> None:
    client, gateway = served
    ranked = {"results": [{"index": 1, "relevance_score": 0.9}], "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    async with raw_engine(answering(body=ranked)) as engine:
        names.serve("m", engine.url)
        await gateway.refresh()
        body = {"model": "m", "query": "q", "documents": ["a", {"text": "b", "id": 2}], "return_documents": True}
        answer = (await client.post("/v2/rerank", json=body)).json()
        assert answer["results"] == [{"index": 1, "relevance_score": 0.9, "document": {"text": "b", "id": 2}}]
        assert asked(engine)["documents"] == ["a", "b"]
        bad = await client.post("/v2/rerank", json={**body, "documents": [1]})
        assert (bad.status_code, "documents" in bad.json()["message"]) == (400, True)


async def test_a_form_goes_on_as_it_is_but_for_the_name_of_its_model(names: Names, served: Served) -> None:
    client, gateway = served
    async with raw_engine(answering(body={"text": "hello"})) as engine:
        names.serve("ears", engine.url)
        names.add_route("whisper-1", {"deployment": "ears"})
        await gateway.refresh()
        sound = bytes(range(256)) * 4000
        answer = await client.post(
            "/v1/audio/transcriptions",
            data={"model": "whisper-1", "language": "en"},
            files={"file": ("a.wav", sound, "audio/wav")},
        )
        assert answer.json() == {"text": "hello"}
        body = engine.bodies[-1]
        assert sound in body
        assert b'name="model"\r\n\r\nears\r\n' in body
        assert b"whisper-1" not in body
        assert "content-type: multipart/form-data; boundary=" in head(engine)
        without = await client.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"x", "audio/wav")})
        assert without.json()["error"]["param"] == "model"
        plain = await client.post("/v1/audio/transcriptions", json={"model": "whisper-1"})
        assert plain.status_code == 400


async def test_the_generic_proxy_passes_method_path_query_and_body(names: Names, served: Served) -> None:
    client, gateway = served
    async with raw_engine(echo) as engine:
        names.serve("m", engine.url)
        names.add_route("a/b", {"deployment": "m"})
        await gateway.refresh()
        answer = await client.post("/model/a%2Fb/v1/pool?x=1", content=b"raw", headers={"content-type": "text/x"})
        assert answer.content == b"raw"
        assert head(engine).startswith("post /v1/pool?x=1 http/1.1\r\n")
        assert "content-type: text/x\r\n" in head(engine)
        await client.get("/model/m/v1/things")
        assert head(engine).startswith("get /v1/things http/1.1\r\n")
        assert (await client.get("/model/nobody/x")).status_code == 404
        assert (await client.get("/model/m/v1/../../etc")).status_code == 404
        seen = len(engine.requests)
        assert (await client.post("/model/m/shutdown")).status_code == 404
        assert (await client.post("/model/m/v1/load_lora_adapter")).status_code == 403
        assert len(engine.requests) == seen


async def test_headers_of_a_route_are_set_and_forwarded(names: Names, served: Served) -> None:
    client, gateway = served
    async with raw_engine(echo) as engine:
        names.serve("m", engine.url)
        names.add_route("r", {"deployment": "m"}, headers={"set": {"x-tier": "gold"}, "forward": ["x-user"]})
        await gateway.refresh()
        body = {"model": "r", "messages": []}
        await client.post("/v1/chat/completions", json=body, headers={"x-user": "u", "x-other": "o"})
        assert "x-tier: gold\r\n" in head(engine)
        assert "x-user: u\r\n" in head(engine)
        assert "x-other" not in head(engine)


async def test_timeouts_of_a_route_hold_for_it_alone(names: Names, served: Served) -> None:
    client, gateway = served

    async def slow(exchange: Exchange) -> None:
        if b"stream" in exchange.body:
            await exchange.start_events()
            await exchange.chunk(b"data: {}\n\n")
        await silent(exchange)

    async with raw_engine(slow) as engine:
        names.serve("m", engine.url)
        names.add_route("first", {"deployment": "m"}, timeouts={"first_byte_s": 0.1})
        names.add_route("between", {"deployment": "m"}, timeouts={"between_bytes_s": 0.1})
        names.add_route("total", {"deployment": "m"}, timeouts={"total_s": 0.2})
        await gateway.refresh()
        assert (await chat(client, "first")).status_code == 504
        assert (await chat(client, "total")).status_code == 504
        for name in ("between", "total"):
            async with client.stream(
                "POST", "/v1/chat/completions", json={"model": name, "messages": [], "stream": True}
            ) as answer:
                with pytest.raises(httpx.RemoteProtocolError):
                    [line async for line in answer.aiter_lines()]


async def test_adapters_are_asked_by_their_names(names: Names, served: Served) -> None:
    client, gateway = served
    async with raw_engine(echo) as engine:
        names.serve("smol", engine.url)
        names.set_deployment("smol", "pirate", "poet", engine="llama_cpp")
        await gateway.refresh()
        assert (await chat(client, "poet")).status_code == 200
        assert asked(engine)["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
        await chat(client, "smol")
        assert asked(engine)["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
        names.set_deployment("smol", "pirate", engine="vllm")
        await gateway.refresh()
        await chat(client, "pirate")
        assert asked(engine)["model"] == "pirate"
        assert "lora" not in asked(engine)


async def test_usage_is_kept_once_per_request_and_asked_for_unseen(names: Names, served: Served) -> None:
    client, gateway = served
    events = (
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\n',
        b"data: [DONE]\n\n",
    )

    async def stream(exchange: Exchange) -> None:
        await exchange.start_events()
        for event in events:
            await exchange.chunk(event)
        await exchange.end_chunks()

    given: list[str] = []
    async with raw_engine(stream) as engine:
        names.serve("m", engine.url)
        names.set_deployment("m", engine="custom")
        await gateway.refresh()
        for _ in range(2):
            answer = await chat(client, "m", stream=True)
            given.append(answer.headers["x-request-id"])
            assert answer.content == events[0] + events[1] + events[3]
            assert asked(engine)["stream_options"] == {"include_usage": True}
        wanted = await chat(client, "m", stream=True, stream_options={"include_usage": True})
        assert wanted.content == b"".join(events)
    assert gateway.usage is not None
    await gateway.usage.flush()
    rows = names.database.read(lambda s: s.exec(select(UsageRow)).all())
    assert [(r.route, r.prompt_tokens, r.completion_tokens, r.status) for r in rows] == [("m", 3, 1, 200)] * 3
    assert len({r.request_id for r in rows}) == 3
    assert set(given) < {r.request_id for r in rows}, "what a client is told is what usage is kept under"
