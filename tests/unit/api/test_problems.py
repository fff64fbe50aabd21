"""Errors are problem documents that name the field and the remedy, whatever was sent."""

import json
from typing import Any

import httpx
import pytest
from fastapi.responses import JSONResponse

from api.problems import invalid, problem
from tests.unit.api.world import SPEC, World

JSON = {"content-type": "application/json"}


def read(answer: JSONResponse) -> Any:
    return json.loads(bytes(answer.body))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x", "spec": SPEC, "nmae": 1}, "nmae"),
        ({"name": "x", "spec": {**SPEC, "replica": 1}}, "spec.replica"),
        ({"name": "x", "spec": {**SPEC, "replicas": -1}}, "spec.replicas"),
        ({"name": "x", "spec": {**SPEC, "replicas": 10**9}}, "spec.replicas"),
        ({"name": "x", "spec": {**SPEC, "engine_args": ["a", ""]}}, "spec.engine_args.1"),
        ({"name": "x", "spec": {**SPEC, "engine_args": ["a\0b"]}}, "spec.engine_args.0"),
        ({"name": "x", "spec": {**SPEC, "env": {"A": "a\0b"}}}, "spec.env.A"),
        ({"name": "X Y", "spec": SPEC}, "name"),
        ({"name": "x"}, "spec"),
        ({"name": "x", "spec": {"model": {"path": "a/../b"}}}, "spec.model.path"),
        ([], "body"),
        (None, "body"),
    ],
)
async def test_wrong_field_is_named(api: httpx.AsyncClient, body: object, field: str) -> None:
    answer = await api.post("/api/v1/deployments", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    said = answer.json()
    assert (said["status"], said["title"], said["field"]) == (422, "Invalid input", field)
    assert said["detail"].startswith(f"{field}: ")
    assert said["hint"]
    assert field in [e["field"] for e in said["errors"]]


async def test_all_wrong_fields_are_listed_up_to_a_limit(api: httpx.AsyncClient) -> None:
    answer = await api.post("/api/v1/deployments", json={"name": "x", "spec": {f"f{n}": 1 for n in range(50)}})
    said = answer.json()
    assert len(said["errors"]) == 20
    assert "(and 50 more)" in said["detail"]


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"name": ' + b"9" * 100_000 + b"}", b"{'a': 1}"]
)
async def test_body_that_is_not_json_is_said_to_be_none(api: httpx.AsyncClient, content: bytes) -> None:
    answer = await api.post("/api/v1/deployments", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["title"]) == (400, "Not JSON")


async def test_what_was_sent_is_quoted_in_short_only(api: httpx.AsyncClient) -> None:
    long = "x" * 900_000
    for body in ({"name": long, "spec": SPEC}, {"name": "x", "spec": {**SPEC, long: 1}}, {long: 1}, long, [long]):
        answer = await api.post("/api/v1/deployments", json=body)
        assert answer.status_code == 422
        assert len(answer.content) < 4000
    await api.post("/api/v1/deployments", json={"name": "x", "spec": SPEC})
    answer = await api.patch("/api/v1/deployments/x", json={long: 1})
    assert answer.status_code == 422
    assert len(answer.content) < 4000


async def test_values_of_secrets_are_never_quoted(api: httpx.AsyncClient) -> None:
    env = {"TOKEN": "s3cret" * 2000, "OTHER=": "s3cret"}
    answer = await api.post("/api/v1/deployments", json={"name": "x", "spec": {**SPEC, "env": env}})
    assert answer.status_code == 422
    assert "s3cret" not in answer.text


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\0", "\u202e", "💥"])
async def test_letters_that_are_none_can_be_quoted(api: httpx.AsyncClient, text: str) -> None:
    for body in ({text: 1}, {"name": text, "spec": SPEC}, {"name": "x", "spec": {**SPEC, "labels": {text: text}}}):
        answer = await api.post("/api/v1/deployments", content=json.dumps(body), headers=JSON)
        assert answer.status_code == 422, answer.text
        assert answer.json()["field"]


async def test_path_that_does_not_exist_is_a_problem_too(api: httpx.AsyncClient) -> None:
    answer = await api.get("/api/v1/nothing")
    assert (answer.status_code, answer.json()["hint"]) == (404, "see /docs for the paths that exist")
    answer = await api.put("/api/v1/deployments")
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"] or "GET" in answer.headers["allow"]


async def test_temporal_being_away_is_a_503_that_says_when_to_come_back(world: World, api: httpx.AsyncClient) -> None:
    world.workflows.down = True
    answer = await api.post("/api/v1/deployments", json={"name": "x", "spec": SPEC})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["hint"]


async def test_missing_key_says_what_to_send(world: World) -> None:
    async with world.client(None) as nobody:
        answer = await nobody.get("/api/v1/deployments")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer" in answer.json()["hint"]


def test_empty_members_are_left_out() -> None:
    assert read(problem(404, "t", "d", hint="", field=None, errors=[], more=0)) == {
        "type": "about:blank",
        "title": "t",
        "status": 404,
        "detail": "d",
        "more": 0,
    }


def test_where_a_field_was_is_not_part_of_its_name() -> None:
    errors = [{"type": "missing", "loc": ("body", "spec", 0, "x"), "msg": "Field required"}]
    assert read(invalid(errors))["field"] == "spec.0.x"
    assert read(invalid(errors, ("spec",)))["field"] == "spec.spec.0.x"
    assert read(invalid([{**errors[0], "loc": ("query", "limit")}]))["field"] == "limit"
