"""Routes and their names, by the management API."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlmodel import select

from fleet.db import registry
from fleet.db.routes import RouteRow
from fleet.db.tables import AuditRow, DeploymentRow
from tests.unit.api.world import SPEC, World

ROUTES = "/api/v1/routes"
SMOL: dict[str, Any] = {"targets": [{"deployment": "smol"}]}


@pytest.fixture(autouse=True)
async def smol(world: World, api: httpx.AsyncClient) -> None:
    """A deployment with two adapters."""
    world.add_host()
    lora = [{"name": "law", "path": "law.gguf"}, {"name": "med", "path": "med.gguf"}]
    answer = await api.post("/api/v1/deployments", json={"name": "smol", "spec": {**SPEC, "lora": lora}})
    assert answer.status_code == 201, answer.text


async def made(api: httpx.AsyncClient, name: str, spec: dict[str, Any] | None = None, **more: Any) -> httpx.Response:
    answer = await api.post(ROUTES, json={"name": name, "spec": spec or SMOL, **more})
    assert answer.status_code == 201, answer.text
    return answer


def version(world: World) -> int:
    return world.database.read(registry.version)


async def test_a_route_is_made_read_listed_changed_and_deleted(world: World, api: httpx.AsyncClient) -> None:
    before = version(world)
    answer = await made(api, "acme/Chat:latest", labels={"team": "a"})
    path = answer.headers["location"]
    assert (path, answer.headers["etag"]) == (f"{ROUTES}/acme/Chat:latest", '"1"')
    assert version(world) == before + 1, "so that gateways load it"
    await made(api, "b", labels={"team": "b"})
    seen = (await api.get(path)).json()
    assert seen["spec"]["targets"] == [
        {"deployment": "smol", "revision": None, "adapter": None, "provider": None, "model": None, "weight": 1}
    ]
    listed = (await api.get(ROUTES, params={"limit": 1})).json()
    assert [r["name"] for r in listed["items"]] == ["acme/Chat:latest"]
    rest = (await api.get(ROUTES, params={"cursor": listed["next_cursor"]})).json()
    assert [r["name"] for r in rest["items"]] == ["b"]
    chosen = (await api.get(ROUTES, params={"label": "team=b"})).json()["items"]
    assert [r["name"] for r in chosen] == ["b"]
    changed = await api.patch(path, json={"labels": {"team": None, "x": "y"}, "spec": {"aliases": ["other"]}})
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    assert (changed.json()["labels"], changed.json()["spec"]["aliases"]) == ({"x": "y"}, ["other"])
    assert changed.json()["spec"]["targets"] == seen["spec"]["targets"]
    assert [(await api.delete(path)).status_code, (await api.delete(path)).status_code] == [204, 404]
    assert (await api.get(path)).status_code == 404
    await world.services.audit.flush()
    entries = world.database.read(lambda s: s.exec(select(AuditRow)).all())
    noted = [(e.action, e.target) for e in entries if e.action.startswith("routes.")]
    assert ("routes.create", "routes/acme/Chat:latest") in noted
    assert {action for action, _ in noted} == {"routes.create", "routes.patch", "routes.delete"}


async def test_a_route_may_replace_what_the_name_of_a_deployment_leads_to(api: httpx.AsyncClient) -> None:
    await made(api, "smol", {"targets": [{"deployment": "smol", "adapter": "law"}]})


async def test_the_same_request_again_makes_one_route(world: World, api: httpx.AsyncClient) -> None:
    body, key = {"name": "chat", "spec": SMOL}, {"Idempotency-Key": "k"}
    first = await api.post(ROUTES, json=body, headers=key)
    await api.patch(f"{ROUTES}/chat", json={"labels": {"a": "b"}})
    again = await api.post(ROUTES, json=body, headers=key)
    assert (first.status_code, again.status_code, again.json()["generation"]) == (201, 201, 2)
    for other in ({}, {"Idempotency-Key": "other"}):
        refused = await api.post(ROUTES, json=body, headers=other)
        assert (refused.status_code, refused.json()["field"]) == (409, "name")


async def test_a_change_of_what_somebody_else_changed_is_refused(world: World, api: httpx.AsyncClient) -> None:
    read = (await made(api, "chat")).headers["etag"]
    path, match = f"{ROUTES}/chat", {"If-Match": read}
    assert (await api.patch(path, json={"labels": {"a": "b"}}, headers=match)).status_code == 200
    late = await api.patch(path, json={"labels": {"a": "c"}}, headers=match)
    assert (late.status_code, late.json()["hint"]) == (412, "read it again and repeat the change")
    now = version(world)
    same = await api.patch(path, json={"labels": {"a": "b"}}, headers={"If-Match": '"2"'})
    assert (same.headers["etag"], version(world)) == ('"2"', now), "the same again is no change"
    odd = await api.patch(path, json={}, headers={"If-Match": "x"})
    assert (odd.status_code, odd.json()["field"]) == (422, "If-Match")


async def test_a_change_that_is_sent_again_is_made_once(api: httpx.AsyncClient) -> None:
    await made(api, "chat")
    headers = {"If-Match": '"1"', "Idempotency-Key": "k"}
    for _ in range(2):
        answer = await api.patch(f"{ROUTES}/chat", json={"labels": {"a": "b"}}, headers=headers)
        assert (answer.status_code, answer.json()["generation"]) == (200, 2)


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "aliases", "field"),
    [
        ("first", [], "name"),
        ("other-name", [], "name"),
        ("new", ["first"], "spec.aliases.0"),
        ("new", ["fine", "other-name"], "spec.aliases.1"),
        ("new", ["smol"], "spec.aliases.0"),
    ],
)
async def test_a_name_that_is_taken_is_refused(
    world: World, api: httpx.AsyncClient, name: str, aliases: list[str], field: str
) -> None:
    await made(api, "first", {**SMOL, "aliases": ["other-name"]})
    await made(api, "mine")
    before = version(world)
    answer = await api.post(ROUTES, json={"name": name, "spec": {**SMOL, "aliases": aliases}})
    assert (answer.status_code, answer.json()["field"]) == (409, field)
    if aliases:
        changed = await api.patch(f"{ROUTES}/mine", json={"spec": {"aliases": aliases}})
        assert (changed.status_code, changed.json()["field"]) == (409, field)
    assert version(world) == before


@pytest.mark.parametrize(("aliases", "field"), [(["a", "a"], "spec.aliases.1"), (["new"], "spec.aliases.0")])
async def test_a_name_twice_in_one_route_is_refused(api: httpx.AsyncClient, aliases: list[str], field: str) -> None:
    answer = await api.post(ROUTES, json={"name": "new", "spec": {**SMOL, "aliases": aliases}})
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_an_alias_is_no_name_for_a_deployment(api: httpx.AsyncClient) -> None:
    await made(api, "chat", {**SMOL, "aliases": ["gpt"]})
    answer = await api.post("/api/v1/deployments", json={"name": "gpt", "spec": SPEC})
    assert (answer.status_code, answer.json()["field"], "'chat'" in answer.json()["detail"]) == (409, "name", True)


async def test_of_those_who_want_one_name_at_once_one_gets_it(world: World, api: httpx.AsyncClient) -> None:
    bodies = [{"name": f"r{n}", "spec": {**SMOL, "aliases": ["wanted"]}} for n in range(6)]
    bodies.append({"name": "wanted", "spec": SMOL})
    answers = await asyncio.gather(*(api.post(ROUTES, json=body) for body in bodies))
    assert sorted(a.status_code for a in answers) == [201] + [409] * 6
    assert len(world.database.read(lambda s: s.exec(select(RouteRow)).all())) == 1


# -- what a route names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"targets": [{"deployment": "smol"}, {"deployment": "nope"}]}, "spec.targets.1.deployment"),
        ({"targets": [{"provider": "nope"}]}, "spec.targets.0.provider"),
        ({"targets": [{"deployment": "smol", "adapter": "nope"}]}, "spec.targets.0.adapter"),
        ({"targets": [{"deployment": "smol", "revision": 7}]}, "spec.targets.0.revision"),
        ({**SMOL, "fallbacks": {"general": ["smol", "nope"]}}, "spec.fallbacks.general.1"),
        ({**SMOL, "fallbacks": {"context_window": ["nope"]}}, "spec.fallbacks.context_window.0"),
        ({**SMOL, "fallbacks": {"content_policy": ["nope"]}}, "spec.fallbacks.content_policy.0"),
        ({"targets": []}, "spec.targets"),
        ({"targets": [{"deployment": "smol", "weight": 0}]}, "spec"),
        ({"targets": [{"deployment": "smol", "provider": "x"}]}, "spec.targets.0"),
        ({**SMOL, "headers": {"set": {"host": "x"}}}, "spec.headers.set.host.[key]"),
        ({**SMOL, "nope": 1}, "spec.nope"),
    ],
)
async def test_what_is_not_there_or_makes_no_sense_is_refused_by_field(
    world: World, api: httpx.AsyncClient, spec: dict[str, Any], field: str
) -> None:
    await made(api, "known")
    before = version(world)
    for answer in (
        await api.post(ROUTES, json={"name": "new", "spec": spec}),
        await api.patch(f"{ROUTES}/known", json={"spec": spec}),
    ):
        assert (answer.status_code, answer.json()["field"]) == (422, field)
        assert answer.json()["hint"]
    assert version(world) == before


async def test_fallbacks_are_any_public_names_and_may_go_in_a_circle(api: httpx.AsyncClient) -> None:
    await made(api, "a", {**SMOL, "aliases": ["alias-of-a"]})
    await made(api, "b", {**SMOL, "fallbacks": {"general": ["alias-of-a", "smol", "law", "b"]}})
    circle = await api.patch(f"{ROUTES}/a", json={"spec": {"fallbacks": {"general": ["b"]}}})
    assert circle.status_code == 200
    assert (await api.delete(f"{ROUTES}/b")).status_code == 204
    left = await api.patch(f"{ROUTES}/a", json={"spec": {"fallbacks": {"context_window": ["smol"]}}})
    assert (left.status_code, left.json()["spec"]["fallbacks"]["general"]) == (200, ["b"])


async def test_revisions_that_are_kept_have_their_own_adapters(world: World, api: httpx.AsyncClient) -> None:
    answer = await api.patch("/api/v1/deployments/smol", json={"spec": {"lora": [{"name": "new", "path": "n.gguf"}]}})
    assert answer.json()["status"]["revision"] == 2

    async def status(**target: Any) -> int:
        body = {
            "name": "-".join(["r", *map(str, target.values())]),
            "spec": {"targets": [{"deployment": "smol"} | target]},
        }
        return (await api.post(ROUTES, json=body)).status_code

    assert await status(revision=1, adapter="law") == 201
    assert await status(revision=2, adapter="new") == 201
    assert await status(adapter="new") == 201
    assert await status(adapter="law") == 422
    assert await status(revision=1, adapter="new") == 422


async def test_a_route_outlives_its_deployment_and_can_be_changed_then(world: World, api: httpx.AsyncClient) -> None:
    await made(api, "chat")
    world.database.write(lambda s: s.delete(s.get_one(DeploymentRow, "smol")))
    heavier = {"spec": {"targets": [{"deployment": "smol", "weight": 5}]}}
    assert (await api.patch(f"{ROUTES}/chat", json=heavier)).status_code == 200
    worse = {"spec": {"targets": [{"deployment": "smol", "weight": 5}, {"deployment": "smol", "adapter": "law"}]}}
    refused = await api.patch(f"{ROUTES}/chat", json=worse)
    assert (refused.status_code, refused.json()["field"]) == (422, "spec.targets.1.deployment")


@pytest.mark.parametrize("body", [{"name": "x"}, {"generation": 1}, {"spec": None}, {"spec": 1}, {"labels": {"a": 1}}])
async def test_a_patch_that_makes_no_sense_changes_nothing(
    world: World, api: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    await made(api, "chat")
    before = world.database.read(lambda s: s.get_one(RouteRow, "chat").model_dump())
    answer = await api.patch(f"{ROUTES}/chat", json=body)
    assert (answer.status_code, answer.json()["field"].split(".")[0]) == (422, next(iter(body)))
    assert world.database.read(lambda s: s.get_one(RouteRow, "chat").model_dump()) == before


@pytest.mark.parametrize("name", ["nope", "a%00b", "%F0%9F%92%A5", "a//b", ""])
async def test_what_is_not_there_is_neither_shown_changed_nor_deleted(api: httpx.AsyncClient, name: str) -> None:
    path = f"{ROUTES}/{name}"
    answers = [await api.get(path), await api.patch(path, json={}), await api.delete(path)]
    assert [a.status_code for a in answers] == [404] * 3
