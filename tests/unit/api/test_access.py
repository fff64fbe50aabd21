"""API keys and join tokens."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlmodel import select

from api.management.access import ensure_admin_key
from fleet.access.secrets import digest
from fleet.db import registry
from fleet.db.join_tokens import use_token
from fleet.db.tables import ApiKeyRow, JoinTokenRow
from fleet.errors import Unauthenticated
from fleet.join import JoinToken
from tests.unit.api.world import ADMIN, World, the_authority

KEYS, TOKENS = "/api/v1/api-keys", "/api/v1/join-tokens"


def rows(world: World, table: Any) -> list[Any]:
    return world.database.read(lambda s: list(s.exec(select(table)).all()))


async def made(api: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await api.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_key_is_shown_once_and_kept_as_a_hash(world: World, api: httpx.AsyncClient) -> None:
    key = await made(api, KEYS, name="app")
    assert key["key"].startswith("hf-key-")
    assert key["key"].startswith(key["prefix"].rstrip("…"))
    listed = (await api.get(KEYS)).text
    assert key["id"] in listed
    assert key["key"] not in listed
    kept = [row for row in rows(world, ApiKeyRow) if row.id == key["id"]]
    assert kept[0].key_hash == digest(key["key"])
    assert key["key"] not in str([row.model_dump() for row in kept])


async def test_key_is_for_inference_unless_asked_otherwise(world: World, api: httpx.AsyncClient) -> None:
    assert (await made(api, KEYS, name="app"))["scope"] == "inference"
    admin = await made(api, KEYS, name="ops", scope="admin")
    async with world.client(admin["key"]) as client:
        assert (await client.get(KEYS)).status_code == 200


async def test_key_ends_when_it_was_said_to(api: httpx.AsyncClient) -> None:
    before = datetime.now(UTC)
    key = await made(api, KEYS, name="app", ttl_s=60)
    ends = datetime.fromisoformat(key["expires_at"])
    assert before + timedelta(seconds=60) <= ends <= datetime.now(UTC) + timedelta(seconds=60)
    assert (await made(api, KEYS, name="app"))["expires_at"] is None


async def test_revoked_key_is_refused_from_then_on_and_gateways_are_told(world: World, api: httpx.AsyncClient) -> None:
    key = await made(api, KEYS, name="ops", scope="admin")
    version = world.database.read(registry.version)
    assert (await api.delete(f"{KEYS}/{key['id']}")).status_code == 204
    assert world.database.read(registry.version) == version + 1
    async with world.client(key["key"]) as client:
        assert (await client.get(KEYS)).status_code == 401
    first = [row.revoked_at for row in rows(world, ApiKeyRow) if row.id == key["id"]]
    assert (await api.delete(f"{KEYS}/{key['id']}")).status_code == 204
    assert [row.revoked_at for row in rows(world, ApiKeyRow) if row.id == key["id"]] == first


async def test_last_admin_key_stays(world: World, api: httpx.AsyncClient) -> None:
    world.add_key("hf-revoked", revoked=True)
    world.add_key("hf-expired", expired=True)
    world.add_key("hf-inference", "inference")
    [own] = [row for row in rows(world, ApiKeyRow) if row.key_hash == digest(ADMIN)]
    answer = await api.delete(f"{KEYS}/{own.id}")
    assert (answer.status_code, answer.json()["hint"]) == (409, "make another admin key first")
    world.add_key("hf-second")
    assert (await api.delete(f"{KEYS}/{own.id}")).status_code == 204


async def test_key_in_the_file_is_made_valid_once_and_stays_revoked(world: World) -> None:
    await ensure_admin_key(world.services, "hf-key-of-the-file")
    await ensure_admin_key(world.services, "hf-key-of-the-file")
    [key] = [row for row in rows(world, ApiKeyRow) if row.key_hash == digest("hf-key-of-the-file")]
    async with world.client(ADMIN) as client:
        await client.delete(f"{KEYS}/{key.id}")
    await ensure_admin_key(world.services, "hf-key-of-the-file")
    async with world.client("hf-key-of-the-file") as client:
        assert (await client.get(KEYS)).status_code == 401


@pytest.mark.parametrize("path", [KEYS, TOKENS])
@pytest.mark.parametrize("name", ["nope", "a%00b", "%F0%9F%92%A5", "x" * 500])
async def test_what_does_not_exist_cannot_be_revoked(api: httpx.AsyncClient, path: str, name: str) -> None:
    assert (await api.delete(f"{path}/{name}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "x", "scope": "root"}, "scope"),
        ({"name": "x", "ttl_s": 0}, "ttl_s"),
        ({"name": "x", "ttl_s": 10**30}, "ttl_s"),
        ({"name": "x", "admin": True}, "admin"),
        ({}, "name"),
    ],
)
async def test_bad_key_is_refused_and_none_is_made(
    world: World, api: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await api.post(KEYS, json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert len(rows(world, ApiKeyRow)) == 1


async def test_keys_come_page_by_page(world: World, api: httpx.AsyncClient) -> None:
    for number in range(5):
        world.add_key(f"hf-{number}")
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        answer = (await api.get(KEYS, params=params)).json()
        seen += [key["id"] for key in answer["items"]]
        if answer["next_cursor"] is None:
            break
        params["cursor"] = answer["next_cursor"]
    assert seen == sorted(row.id for row in rows(world, ApiKeyRow))


async def test_join_token_is_shown_once_with_the_pin_of_our_ca(world: World, api: httpx.AsyncClient) -> None:
    made_ = await made(api, TOKENS, description="rack 4")
    token = JoinToken.parse(made_["token"])
    assert token.pin == the_authority().ca.pin
    listed = await api.get(TOKENS)
    assert token.secret not in listed.text
    assert [item["description"] for item in listed.json()["items"]] == ["rack 4"]
    [row] = rows(world, JoinTokenRow)
    assert row.token_hash == digest(token.secret)
    assert (row.max_uses, row.uses) == (1, 0)


async def test_revoked_join_token_stays_on_the_list_and_is_worth_nothing(world: World, api: httpx.AsyncClient) -> None:
    token = await made(api, TOKENS, max_uses=3)
    assert token["max_uses"] == 3
    for _ in range(2):
        assert (await api.delete(f"{TOKENS}/{token['id']}")).status_code == 204
    [listed] = (await api.get(TOKENS)).json()["items"]
    assert listed["revoked_at"]
    secret = JoinToken.parse(token["token"]).secret
    with pytest.raises(Unauthenticated, match="revoked"):
        world.database.write(lambda s: use_token(s, secret, "h1"))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": 10**9}, "ttl_s"),
        ({"max_uses": 0}, "max_uses"),
        ({"max_uses": 10_001}, "max_uses"),
        ({"x": 1}, "x"),
    ],
)
async def test_bad_join_token_is_refused(
    world: World, api: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await api.post(TOKENS, json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert rows(world, JoinTokenRow) == []
