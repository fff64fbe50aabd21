"""Providers: their keys are kept and never shown, and they are asked without harm."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.management.provider_check import ask
from fleet.access.sealing import MASK, master_sealer
from fleet.db import registry
from fleet.db.routes import ProviderRow
from fleet.routes import ProviderSpec
from tests.unit.api.world import World

PROVIDERS = "/api/v1/providers"
URL = "https://api.example.com/v1"
KEY = "sk-very-secret"


async def made(api: httpx.AsyncClient, name: str = "openai", **spec: Any) -> httpx.Response:
    answer = await api.post(PROVIDERS, json={"name": name, "spec": {"base_url": URL, **spec}})
    assert answer.status_code == 201, answer.text
    return answer


def row(world: World, name: str = "openai") -> ProviderRow:
    return world.database.read(lambda s: s.get_one(ProviderRow, name))


def key_of(world: World) -> str:
    return world.master.open(row(world).sealed_key)


async def test_a_provider_is_made_read_listed_changed_and_deleted(world: World, api: httpx.AsyncClient) -> None:
    before = world.database.read(registry.version)
    answer = await made(api, api_key=KEY, headers={"x-team": "a"})
    path = answer.headers["location"]
    assert (path, answer.headers["etag"]) == (f"{PROVIDERS}/openai", '"1"')
    assert answer.json()["spec"] == {
        "kind": "openai",
        "base_url": URL,
        "has_key": True,
        "headers": {"x-team": "a"},
        "in_flight": 256,
    }
    assert world.database.read(registry.version) == before + 1
    await made(api, "anthropic", kind="anthropic", base_url="https://api.example.org/v1/")
    listed = (await api.get(PROVIDERS, params={"limit": 1})).json()
    rest = (await api.get(PROVIDERS, params={"cursor": listed["next_cursor"]})).json()
    assert [(p["name"], p["spec"]["base_url"]) for p in listed["items"] + rest["items"]] == [
        ("anthropic", "https://api.example.org/v1"),
        ("openai", URL),
    ]
    changed = await api.patch(path, json={"spec": {"in_flight": 3, "headers": {"x-team": None}}})
    assert (changed.headers["etag"], changed.json()["spec"]["headers"]) == ('"2"', {})
    assert (await api.get(path)).json() == changed.json()
    assert [(await api.delete(path)).status_code, (await api.delete(path)).status_code] == [204, 404]


async def test_a_key_is_sealed_and_shown_nowhere(world: World, api: httpx.AsyncClient) -> None:
    answers = [await made(api, api_key=KEY)]
    path = f"{PROVIDERS}/openai"
    answers += [await api.get(path), await api.get(PROVIDERS), await api.patch(path, json={"spec": {"in_flight": 1}})]
    assert all(KEY not in a.text and "sealed" not in a.text for a in answers)
    assert KEY not in str(row(world).model_dump())
    assert key_of(world) == KEY


async def test_a_patch_keeps_replaces_or_removes_the_key(world: World, api: httpx.AsyncClient) -> None:
    await made(api, api_key=KEY)
    path, sealed = f"{PROVIDERS}/openai", row(world).sealed_key
    for same in ({"in_flight": 1}, {"api_key": MASK}, {"api_key": KEY}):
        assert (await api.patch(path, json={"spec": same})).json()["spec"]["has_key"]
        assert row(world).sealed_key == sealed
    assert (await api.patch(path, json={"spec": {"api_key": "sk-2"}})).status_code == 200
    assert key_of(world) == "sk-2"
    gone = await api.patch(path, json={"spec": {"api_key": None}})
    assert (gone.json()["spec"]["has_key"], row(world).sealed_key) == (False, "")
    refused = await api.patch(path, json={"spec": {"api_key": MASK}})
    assert (refused.status_code, refused.json()["field"]) == (422, "spec.api_key")


@pytest.mark.parametrize("key", ["", " ", "a\nb", "a\r\nx-evil: 1", "key ", "schlüssel", "\0", MASK, "x" * 8193, 5])
async def test_a_key_that_no_header_can_carry_is_refused(world: World, api: httpx.AsyncClient, key: Any) -> None:
    answer = await api.post(PROVIDERS, json={"name": "p", "spec": {"base_url": URL, "api_key": key}})
    assert (answer.status_code, answer.json()["field"]) == (422, "spec.api_key")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec.base_url"),
        ({"base_url": "api.example.com"}, "spec.base_url"),
        ({"base_url": "https://me:pw@api.example.com/v1"}, "spec.base_url"),
        ({"base_url": "https://api.example.com/v1?x=1"}, "spec.base_url"),
        ({"base_url": URL, "kind": "other"}, "spec.kind"),
        ({"base_url": URL, "in_flight": 0}, "spec.in_flight"),
        ({"base_url": URL, "headers": {"content-length": "1"}}, "spec.headers.content-length.[key]"),
        ({"base_url": URL, "headers": {"x-a": "1\r\n"}}, "spec.headers.x-a"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_field(
    world: World, api: httpx.AsyncClient, spec: dict[str, Any], field: str
) -> None:
    answer = await api.post(PROVIDERS, json={"name": "p", "spec": spec})
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_a_name_is_given_once_and_a_repetition_is_no_second(api: httpx.AsyncClient) -> None:
    body, key = {"name": "p", "spec": {"base_url": URL, "api_key": KEY}}, {"Idempotency-Key": "k"}
    assert [(await api.post(PROVIDERS, json=body, headers=key)).status_code for _ in range(2)] == [201, 201]
    refused = await api.post(PROVIDERS, json=body)
    assert (refused.status_code, refused.json()["field"]) == (409, "name")


async def test_a_change_of_what_somebody_else_changed_is_refused(api: httpx.AsyncClient) -> None:
    read = (await made(api)).headers["etag"]
    path = f"{PROVIDERS}/openai"
    statuses = [
        (await api.patch(path, json={"spec": {"in_flight": n}}, headers={"If-Match": read})).status_code for n in (1, 2)
    ]
    assert statuses == [200, 412]


async def test_a_provider_that_routes_use_stays(api: httpx.AsyncClient) -> None:
    await made(api)
    await made(api, "other")
    target, other = {"provider": "openai", "model": "gpt-x"}, {"provider": "other"}
    specs = {
        "b": {"targets": [target, other]},
        "a": {"targets": [other, target]},
        "c": {"targets": [other]},
    }
    for name, spec in specs.items():
        assert (await api.post("/api/v1/routes", json={"name": name, "spec": spec})).status_code == 201
    refused = await api.delete(f"{PROVIDERS}/openai")
    assert (refused.status_code, refused.json()["detail"]) == (409, "routes use it: a, b")
    for name in ("a", "b"):
        await api.patch(f"/api/v1/routes/{name}", json={"spec": {"targets": [other]}})
    assert (await api.delete(f"{PROVIDERS}/openai")).status_code == 204


@pytest.mark.parametrize(
    "body", [{"name": "x"}, {"labels": {}}, {"spec": None}, {"spec": "x"}, {"spec": {"has_key": 1}}]
)
async def test_a_patch_that_makes_no_sense_changes_nothing(
    world: World, api: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    await made(api)
    before = row(world).model_dump()
    answer = await api.patch(f"{PROVIDERS}/openai", json=body)
    assert (answer.status_code, answer.json()["field"].split(".")[0]) == (422, next(iter(body)))
    assert row(world).model_dump() == before


@pytest.mark.parametrize("name", ["nope", "a%00b", "%F0%9F%92%A5"])
async def test_what_is_not_there_is_neither_shown_nor_asked(api: httpx.AsyncClient, name: str) -> None:
    path = f"{PROVIDERS}/{name}"
    answers = [await api.get(path), await api.patch(path, json={"spec": {}}), await api.delete(path)]
    assert [a.status_code for a in (*answers, await api.post(f"{path}/check"))] == [404] * 4


# -- asking --------------------------------------------------------------------------------------------------------


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """URL of a server that does anything."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def answering(head: str, body: bytes = b"", heard: list[str] | None = None) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        if heard is not None:
            heard.append(request.lower())
        writer.write(f"HTTP/1.1 {head}\r\nconnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    return handler


def models(*names: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}).encode()


async def test_a_check_asks_with_the_key_and_tells_the_models(api: httpx.AsyncClient) -> None:
    heard: list[str] = []
    async with listening(answering("200 OK", models(*(f"m{n}" for n in range(150))), heard)) as url:
        await made(api, base_url=url, api_key=KEY, headers={"x-team": "a"})
        seen = (await api.post(f"{PROVIDERS}/openai/check")).json()
    assert (seen["ok"], seen["status"], seen["problem"]) == (True, 200, "")
    assert seen["models"] == [f"m{n}" for n in range(100)]
    assert 0 < seen["latency_ms"] < 10_000
    [request] = heard
    assert request.startswith("get /v1/models http/1.1")
    assert f"authorization: bearer {KEY}\r\n" in request
    assert "x-team: a\r\n" in request


async def test_anthropic_is_asked_in_its_own_way(api: httpx.AsyncClient) -> None:
    heard: list[str] = []
    async with listening(answering("200 OK", models("claude"), heard)) as url:
        await made(api, kind="anthropic", base_url=url, api_key=KEY)
        assert (await api.post(f"{PROVIDERS}/openai/check")).json()["models"] == ["claude"]
    assert f"x-api-key: {KEY}\r\n" in heard[0]
    assert "anthropic-version: 2023-06-01\r\n" in heard[0]
    assert "authorization" not in heard[0]


@pytest.mark.parametrize(
    ("head", "body", "status", "problem"),
    [
        ("401 Unauthorized", b"", 401, "does not take the key"),
        ("403 Forbidden", b"", 403, "not allowed to list"),
        ("404 Not Found", b"", 404, "is base_url right"),
        ("429 Too Many Requests", b"", 429, "later"),
        ("500 Oh No", b"", 500, "status page"),
        ("301 Moved\r\nlocation: https://elsewhere.example/v1/models", b"", 301, "https://elsewhere.example"),
        ("200 OK", b"<html>", 200, "not JSON"),
        ("200 OK", b"[" * 200_000, 200, "not JSON"),
        ("200 OK", b'"\xff"', 200, "not JSON"),
        ("200 OK\r\ncontent-encoding: gzip", b"\x1f\x8b" + b"\0" * 100, 200, "not JSON"),
        ("200 OK", b'{"data": {}}', 200, "no list of models"),
        ("200 OK", b"5", 200, "no list of models"),
        ("200 OK", b" " * (5 << 20), 200, "larger than 4 MiB"),
        ("200 OK\r\ncontent-length: 50", b"[]", None, "cannot be asked"),
        ("nonsense", b"", None, "cannot be asked"),
    ],
)
async def test_whatever_a_provider_answers_the_check_says_what_is_wrong(
    api: httpx.AsyncClient, head: str, body: bytes, status: int | None, problem: str
) -> None:
    async with listening(answering(head, body)) as url:
        await made(api, base_url=url, api_key=KEY)
        answer = await api.post(f"{PROVIDERS}/openai/check")
    assert answer.status_code == 200
    assert (answer.json()["ok"], answer.json()["status"]) == (False, status)
    assert problem in answer.json()["problem"]
    assert KEY not in answer.text


async def test_odd_lists_are_read_as_far_as_they_can_be(api: httpx.AsyncClient) -> None:
    body = b'[{"id": 1}, 5, {"id": "\\ud800"}, {"name": "x"}, {"id": "%s"}]' % (b"y" * 5000)
    async with listening(answering("200 OK", body)) as url:
        await made(api, base_url=url)
        seen = (await api.post(f"{PROVIDERS}/openai/check")).json()
    assert (seen["ok"], seen["models"]) == (True, ["?", "y" * 256])


async def test_nobody_there_is_said_plainly(api: httpx.AsyncClient, unused_tcp_url: str) -> None:
    await made(api, base_url=unused_tcp_url)
    seen = (await api.post(f"{PROVIDERS}/openai/check")).json()
    assert (seen["ok"], seen["status"]) == (False, None)
    assert "cannot be asked" in seen["problem"]


@pytest.fixture
async def unused_tcp_url() -> str:
    async with listening(answering("200 OK")) as url:
        return url


async def test_a_provider_that_never_ends_is_not_waited_for() -> None:
    async def dribbling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n[")
        try:
            while await reader.read(1):
                pass
        finally:
            writer.close()

    async with listening(dribbling) as url:
        checked = await ask(ProviderSpec(base_url=url), "", within_s=0.2)
    assert (checked.ok, checked.problem) == (False, f"{url} did not answer within 0.2 s")


async def test_a_key_that_cannot_be_opened_says_how_to_set_it_again(world: World, api: httpx.AsyncClient) -> None:
    await made(api, api_key=KEY)
    lost = master_sealer("another").seal(KEY)

    def damage(session: Any) -> None:
        session.get_one(ProviderRow, "openai").sealed_key = lost

    world.database.write(damage)
    seen = (await api.post(f"{PROVIDERS}/openai/check")).json()
    assert (seen["ok"], "master key" in seen["problem"]) == (False, True)


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40), st.sampled_from(["http", "https"]))
async def test_whatever_passes_as_a_url_can_be_asked(rest: str, scheme: str) -> None:
    try:
        spec = ProviderSpec(base_url=f"{scheme}://{rest}")
    except ValidationError:
        return
    refused = httpx.MockTransport(lambda _: httpx.Response(401, stream=httpx.ByteStream(b"")))
    assert not (await ask(spec, "key", transport=refused)).ok
