"""What the gateway says to requests that it does not relay."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.gateway.app import Gateway
from api.gateway.options import Options
from tests.unit.gateway.client import Client
from tests.unit.gateway.conftest import GatewayFactory
from tests.unit.gateway.engines import RawEngine, echo, raw_engine
from tests.unit.gateway.world import CREATED, KEY, World, metric

POSTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]


@pytest.fixture
async def engine(world: World, gateway: Gateway) -> AsyncIterator[RawEngine]:
    """Serves the model ``m`` by answering with the body that it got."""
    async with raw_engine(echo) as running:
        world.serve("m", running.url)
        await gateway.refresh()
        yield running


async def test_models_are_listed_as_openai_does(world: World, gateway: Gateway, client: Client) -> None:
    world.add_deployment("b")
    world.add_deployment("a", phase="stopped", replicas=0)
    await gateway.refresh()
    expected = [
        {"id": name, "object": "model", "created": int(CREATED.timestamp()), "owned_by": "holdfast"}
        for name in ("a", "b")
    ]
    assert (await client.get("/v1/models")).json == {"object": "list", "data": expected}
    assert (await client.get("/v1/models/b")).json == expected[1]
    missing = await client.get("/v1/models/c")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", POSTS)
async def test_bodies_reach_the_engine_unchanged(engine: RawEngine, client: Client, path: str) -> None:
    body = b' {"x" : 1.50,  "model":"m" , "\\u00e9": [1e3] }\n'
    answer = await client.post(path, body)
    assert (answer.status, answer.body) == (200, body)
    assert engine.bodies == [body]
    assert engine.requests[0].startswith(f"POST {path} HTTP/1.1\r\n".encode())


async def test_a_body_in_many_parts_arrives_whole(engine: RawEngine, client: Client) -> None:
    body = json.dumps({"model": "m", "text": "x" * 300_000}).encode()
    parts = [body[i : i + 1000] for i in range(0, len(body), 1000)]
    answer = await client.post("/v1/completions", parts=parts)
    assert answer.body == body


async def test_only_listed_headers_pass_and_never_the_key(engine: RawEngine, client: Client) -> None:
    sent = [
        ("X-Request-Id", "r-1"),
        ("Traceparent", "00-1-2-3"),
        ("Cookie", "c=1"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("Host", "evil"),
        ("Tracestate", "a=1\r\nX-Injected: 1"),
    ]
    await client.post("/v1/chat/completions", {"model": "m"}, headers=sent)
    lines = engine.requests[0].decode().lower().split("\r\n")
    assert "x-request-id: r-1" in lines
    assert "traceparent: 00-1-2-3" in lines
    names = {line.partition(":")[0] for line in lines[1:] if line}
    assert names == {
        "host", "content-type", "content-length", "accept-encoding", "x-request-id", "traceparent",
    }  # fmt: skip
    assert f"host: {engine.url.removeprefix('http://')}" in lines


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/embeddings", 405, "POST"),
        ("POST", "/v1/models", 405, "GET"),
        ("DELETE", "/v1/models/m", 405, "GET"),
        ("POST", "/v1/nothing", 404, None),
        ("GET", "/v1", 404, None),
        ("GET", "/v1/../admin", 404, None),
        ("POST", "/v1/chat/completions/", 404, None),
    ],
)
async def test_other_urls_and_methods_are_named(
    client: Client, method: str, path: str, status: int, allow: str | None
) -> None:
    answer = await client.call(path, method=method).result()
    assert answer.status == status
    assert path in answer.error["message"]
    assert answer.headers.get("allow") == allow


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        (b"", "body", "JSON"),
        (b"hello", "body", "JSON"),
        (b"\xff\xfe", "body", "JSON"),
        (b'{"model": "m", "x": NaN}', "body", "JSON"),
        (b'{"model": "m", "x": "\\ud800"}', "body", "JSON"),
        (b"[" * 100_000, "body", "JSON"),
        (b'{"model":"m","x":' + b"[" * 100_000, "body", "JSON"),
        (b'{"model":"m","x":' + b"9" * 5000 + b"}", "body", "JSON"),
        (b"[]", "body", "object"),
        (b'"m"', "body", "object"),
        (b"null", "body", "object"),
        (b"{}", "model", "missing"),
        (b'{"model": null}', "model", "missing"),
        (b'{"model": 5}', "model", "string"),
        (b'{"model": ["m"]}', "model", "string"),
        (b'{"model": {"m": 1}}', "model", "string"),
    ],
)
async def test_a_bad_body_is_refused_naming_the_fault(
    engine: RawEngine, client: Client, body: bytes, param: str, part: str
) -> None:
    answer = await client.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.error["param"] == param
    assert part in answer.error["message"]
    assert engine.requests == []


async def test_an_unknown_model_is_not_found_and_makes_no_label(
    engine: RawEngine, client: Client, gateway: Gateway
) -> None:
    answer = await client.chat("nobody-" + "x" * 10_000)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert len(answer.body) < 1000
    assert b"nobody" not in gateway.metrics.render()
    assert metric(gateway, "holdfast_gateway_requests_total", model="", code="404") == 1


@pytest.mark.parametrize(("phase", "replicas", "remedy"), [("deploying", 2, "waiting"), ("stopped", 0, "start")])
async def test_a_model_without_a_ready_replica_says_why(
    world: World, gateway: Gateway, client: Client, phase: str, replicas: int, remedy: str
) -> None:
    world.add_deployment("m", phase=phase, replicas=replicas)
    await gateway.refresh()
    answer = await client.chat()
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert phase in answer.error["message"]
    assert remedy in answer.error["message"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic aGY=",
        f"Token {KEY}",
        "Bearer \xff\xfe",
        f"Bearer {KEY}x",
    ],
)
async def test_without_a_good_key_nothing_is_told(engine: RawEngine, gateway: Gateway, value: str | None) -> None:
    stranger = Client(gateway, None)
    headers = [] if value is None else [("Authorization", value)]
    for answer in (
        await stranger.get("/v1/models", headers=headers),
        await stranger.get("/v1/models/m", headers=headers),
        await stranger.post("/v1/chat/completions", {"model": "m"}, headers=headers),
        await stranger.post("/v1/chat/completions", b"not json", headers=headers),
    ):
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.error["code"] in ("missing_api_key", "invalid_api_key")
    assert engine.requests == []


async def test_keys_are_good_by_scope_and_time(engine: RawEngine, gateway: Gateway, world: World) -> None:
    world.add_key("admin", scope="admin")
    world.add_key("other", scope="telemetry")
    world.add_key("expired", expires_in=-1)
    world.add_key("lasting", expires_in=60)
    await gateway.refresh()
    statuses = {key: (await Client(gateway, key).chat()).status for key in ("admin", "other", "expired", "lasting")}
    assert statuses == {"admin": 200, "other": 403, "expired": 401, "lasting": 200}


async def test_the_key_word_bearer_may_have_any_case(engine: RawEngine, gateway: Gateway) -> None:
    answer = await Client(gateway, None).get("/v1/models", headers=[("Authorization", f"bearer  {KEY} ")])
    assert answer.status == 200


async def test_a_declared_length_over_the_limit_is_refused_unread(world: World, start_gateway: GatewayFactory) -> None:
    client = Client(await start_gateway(Options(body_limit=1000)), KEY)
    for length in ("1001", "9" * 5000):
        answer = await client.post("/v1/completions", b"", headers=[("Content-Length", length)])
        assert (answer.status, answer.error["param"]) == (413, "body")
        assert "1000 bytes" in answer.error["message"]


async def test_a_body_that_grows_over_the_limit_is_refused_at_once(world: World, start_gateway: GatewayFactory) -> None:
    client = Client(await start_gateway(Options(body_limit=1000)), KEY)

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 100

    call = client.call("/v1/completions", parts=endless())
    refused_after = None
    while not call.task.done():
        if refused_after is None and call.answer.status:
            refused_after = call.received
            call.leave()
        await asyncio.sleep(0)
    answer = await call.result()
    assert answer.status == 413
    assert answer.headers["connection"] == "close"
    assert refused_after is not None
    assert refused_after <= 1300


async def test_a_body_of_exactly_the_limit_passes(world: World, start_gateway: GatewayFactory) -> None:
    gateway = await start_gateway(Options(body_limit=1000))
    body = b'{"model":"m"}'.ljust(1000)
    async with raw_engine(echo) as engine:
        world.serve("m", engine.url)
        await gateway.refresh()
        client = Client(gateway, KEY)
        assert (await client.post("/v1/completions", body)).status == 200
        assert (await client.post("/v1/completions", body + b" ")).status == 413
        assert (await client.post("/v1/completions", parts=[body, b" "])).status == 413


@pytest.mark.parametrize("length", ["-1", "1.5", "abc", "", "0x10", "1,1"])
async def test_a_length_that_is_no_number_is_the_clients_fault(engine: RawEngine, client: Client, length: str) -> None:
    answer = await client.post("/v1/completions", {"model": "m"}, headers=[("Content-Length", length)])
    assert (answer.status, answer.error["param"]) == (400, "Content-Length")


async def test_two_different_lengths_are_refused(engine: RawEngine, client: Client) -> None:
    twice = [("Content-Length", "13"), ("Content-Length", "14")]
    answer = await client.post("/v1/completions", b'{"model":"m"}', headers=twice)
    assert answer.status == 400


async def test_a_websocket_is_closed(gateway: Gateway) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await gateway({"type": "websocket", "path": "/v1/realtime"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
_documents = st.one_of(
    _json,
    st.fixed_dictionaries({"model": st.just("m") | _json}, optional={"messages": _json, "stream": _json}),
)
_bodies = st.one_of(
    st.binary(max_size=300),
    _documents.map(lambda d: json.dumps(d).encode()),
    _documents.map(lambda d: json.dumps(d, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.integers(1, 3000).map(lambda n: b'{"model":' + b"[" * n),
    _documents.flatmap(lambda d: st.integers(0, 40).map(lambda n: json.dumps(d).encode()[:n])),
)
_headers = st.lists(
    st.tuples(
        st.sampled_from(["content-length", "authorization", "traceparent", "transfer-encoding", "content-type", "x-y"]),
        st.text(st.characters(max_codepoint=255), max_size=12) | st.integers(-5, 10**30).map(str),
    ),
    max_size=4,
)
_paths = st.sampled_from([*POSTS, "/v1/models", "/v1/models/m", "/v1"]) | st.text(max_size=20).map("/v1/".__add__)
_methods = st.sampled_from(["POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "BREW"])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=_methods, path=_paths, body=_bodies, headers=_headers, cut=st.integers(0, 50))
async def test_whatever_a_client_sends_it_is_never_our_fault(
    engine: RawEngine, client: Client, method: str, path: str, body: bytes, headers: list[Any], cut: int
) -> None:
    answer = await client.call(path, method=method, headers=headers, parts=[body[:cut], body[cut:]]).result()
    assert answer.complete
    assert 200 <= answer.status < 500
    if answer.status >= 400:
        assert answer.error["message"]
    elif method == "POST":
        assert orjson.loads(body)["model"] == "m"
