"""The audit log: what is changed and who is turned away, through the API and for people to read."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlmodel import select

from fleet.access.secrets import digest
from fleet.db.tables import ApiKeyRow, AuditRow
from fleet.states import HostState
from tests.unit.api.world import ADMIN, SPEC, World

AUDIT = "/api/v1/audit"


async def entries(world: World) -> list[AuditRow]:
    await world.services.audit.flush()
    return world.database.read(lambda s: list(s.exec(select(AuditRow).order_by(AuditRow.id)).all()))


def actor(world: World, key: str = ADMIN) -> str:
    hashed = digest(key)
    row = world.database.read(lambda s: s.exec(select(ApiKeyRow).where(ApiKeyRow.key_hash == hashed)).one())
    return f"key:{row.id}"


async def test_every_change_is_noted_with_who_made_it(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    world.add_host("h2", "2", state=HostState.LOST)
    await api.post("/api/v1/deployments", json={"name": "chat", "spec": SPEC})
    await api.patch("/api/v1/deployments/chat", json={"spec": {"replicas": 2}})
    await api.post("/api/v1/deployments/chat/stop")
    await api.delete("/api/v1/deployments/chat")
    token = (await api.post("/api/v1/join-tokens", json={})).json()
    await api.delete(f"/api/v1/join-tokens/{token['id']}")
    key = (await api.post("/api/v1/api-keys", json={"name": "x"})).json()
    await api.delete(f"/api/v1/api-keys/{key['id']}")
    await api.patch("/api/v1/hosts/h1", json={"labels": {"a": "b"}})
    await api.post("/api/v1/hosts/h1/drain", json={})
    await api.delete("/api/v1/hosts/h2")
    noted = await entries(world)
    assert [(e.action, e.target) for e in noted] == [
        ("deployments.create", "deployments/chat"),
        ("deployments.patch", "deployments/chat"),
        ("deployments.stop", "deployments/chat/stop"),
        ("deployments.delete", "deployments/chat"),
        ("access.create_token", f"join-tokens/{token['id']}"),
        ("access.revoke_token", f"join-tokens/{token['id']}"),
        ("access.create_key", f"api-keys/{key['id']}"),
        ("access.revoke_key", f"api-keys/{key['id']}"),
        ("hosts.patch", "hosts/h1"),
        ("hosts.drain", "hosts/h1/drain"),
        ("hosts.forget", "hosts/h2"),
    ]
    assert {(e.actor, e.outcome, e.peer) for e in noted} == {(actor(world), "done", "127.0.0.1")}


async def test_reading_and_what_was_not_done_are_not_noted(world: World, api: httpx.AsyncClient) -> None:
    await api.get("/api/v1/hosts")
    await api.get("/api/v1/hosts/nope")
    await api.delete("/api/v1/deployments/nope")
    await api.post("/api/v1/deployments", json={"name": "-"})
    await api.post("/api/v1/nothing")
    assert await entries(world) == []


async def test_who_is_turned_away_is_noted(world: World) -> None:
    world.add_key("hf-inference", "inference")
    async with world.client("wrong") as client:
        await client.get("/api/v1/hosts/h1")
        await client.get("/api/v1/hosts/h1")
        await client.delete("/api/v1/deployments/chat")
    async with world.client("hf-inference") as client:
        await client.get("/api/v1/hosts")
    assert [(e.actor, e.action, e.target, e.outcome, e.reason, e.count) for e in await entries(world)] == [
        ("unknown", "hosts.get", "hosts/h1", "refused", "no valid API key", 2),
        ("unknown", "deployments.delete", "deployments/chat", "refused", "no valid API key", 1),
        (actor(world, "hf-inference"), "hosts.list", "hosts", "refused", "the key is not for this", 1),
    ]


async def test_no_secret_is_in_the_log(world: World, api: httpx.AsyncClient) -> None:
    token = (await api.post("/api/v1/join-tokens", json={})).json()["token"]
    async with world.client("hf-key-wrong") as client:
        await client.get("/api/v1/hosts", params={"token": token})
    text = str([e.model_dump() for e in await entries(world)])
    assert token not in text
    assert "hf-key-wrong" not in text


def add(world: World, count: int, **changes: Any) -> None:
    start = datetime.now(UTC) - timedelta(hours=1)
    for number in range(count):
        fields = {"actor": "key:a", "action": f"hosts.{number}", "outcome": "done"} | changes
        world.add(AuditRow(at=start + timedelta(seconds=number), **fields))


async def test_newest_come_first_page_by_page(world: World, api: httpx.AsyncClient) -> None:
    add(world, 12)
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 5}
    while True:
        page = (await api.get(AUDIT, params=params)).json()
        seen += [item["action"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    assert seen == [f"hosts.{n}" for n in reversed(range(12))]


async def test_entries_are_chosen_by_actor_action_and_outcome(world: World, api: httpx.AsyncClient) -> None:
    add(world, 2)
    add(world, 1, action="hostsX", actor="host:h1", outcome="refused")

    async def seen(**params: str) -> list[str]:
        return [item["action"] for item in (await api.get(AUDIT, params=params)).json()["items"]]

    assert await seen(actor="host:h1") == ["hostsX"]
    assert await seen(action="hosts.1") == ["hosts.1"]
    assert await seen(action="hosts.") == ["hosts.1", "hosts.0"]
    assert await seen(outcome="refused") == ["hostsX"]
    assert await seen(actor="key:a", outcome="refused") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("cursor", "x"), ("cursor", "9" * 30), ("cursor", "-1"), ("outcome", "maybe"), ("limit", "0"), ("actor", "\0")],
)
async def test_odd_question_is_refused(world: World, api: httpx.AsyncClient, name: str, value: str) -> None:
    answer = await api.get(AUDIT, params={name: value})
    assert (answer.status_code, answer.json()["field"]) == (422, name)
