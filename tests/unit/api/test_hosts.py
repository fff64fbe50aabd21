"""Hosts: how they join, what they say, and how people see them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlmodel import select

from fleet.access.secrets import digest
from fleet.db.tables import ClaimRow, GpuRow, HostRow, JoinTokenRow
from fleet.inventory import AcceleratorKind, Gpu
from fleet.states import ClaimState, HostState
from tests.unit.api.world import World, inventory, registration

CREDENTIAL = "hf-host-1"
JOIN = "/api/v1/hosts/join"
GPU = Gpu(uuid="GPU-1", kind=AcceleratorKind.NVIDIA, name="H200", memory_bytes=141 << 30, index=0)
BAD_GPU = Gpu(
    uuid="GPU-2", kind=AcceleratorKind.NVIDIA, name="?", memory_bytes=0, index=1, healthy=False, reason="lost"
)


async def new_token(api: httpx.AsyncClient) -> str:
    return str((await api.post("/api/v1/join-tokens", json={})).json()["token"])


async def join(
    world: World, token: str, credential: str = CREDENTIAL, changes: dict[str, Any] | None = None
) -> httpx.Response:
    body = {"token": token, "name": "Box.1", "machine_id": "m", "credential_hash": digest(credential)}
    async with world.client(None) as client:
        return await client.post(JOIN, json=body | (changes or {}))


def hosts(world: World) -> list[HostRow]:
    return world.database.read(lambda s: list(s.exec(select(HostRow)).all()))


async def test_host_joins_with_a_token_and_is_known_by_its_credential(world: World, api: httpx.AsyncClient) -> None:
    answer = await join(world, await new_token(api))
    assert answer.status_code == 201
    assert answer.json()["host_id"].startswith("box-1-")
    assert answer.json()["temporal"] == {"address": "127.0.0.1:8234", "namespace": "default"}
    [row] = hosts(world)
    assert (row.id, row.name, row.state) == (answer.json()["host_id"], "Box.1", HostState.LOST)
    assert row.credential_hash == digest(CREDENTIAL)


async def test_token_is_good_for_one_host(world: World, api: httpx.AsyncClient) -> None:
    token = await new_token(api)
    await join(world, token)
    answer = await join(world, token, "hf-host-2")
    assert (answer.status_code, "used already" in answer.json()["detail"]) == (401, True)
    assert len(hosts(world)) == 1


async def test_asking_again_with_the_same_credential_is_the_same_host(world: World, api: httpx.AsyncClient) -> None:
    token = await new_token(api)
    first, second = await join(world, token), await join(world, token)
    assert first.json() == second.json()
    assert len(hosts(world)) == 1


async def test_answer_that_was_lost_can_be_asked_for_after_the_token_ended(
    world: World, api: httpx.AsyncClient
) -> None:
    token = await new_token(api)
    first = await join(world, token)
    _expire_tokens(world)
    assert (await join(world, token)).json() == first.json()


async def test_credential_that_is_known_cannot_join_with_another_token(world: World, api: httpx.AsyncClient) -> None:
    await join(world, await new_token(api))
    assert (await join(world, await new_token(api))).status_code == 401


async def test_token_that_ended_was_revoked_or_never_was_is_refused(world: World, api: httpx.AsyncClient) -> None:
    made = (await api.post("/api/v1/join-tokens", json={})).json()
    assert (await api.delete(f"/api/v1/join-tokens/{made['id']}")).status_code == 204
    expired = await new_token(api)
    _expire_tokens(world)
    for token, why in ((made["token"], "unknown"), (expired, "expired"), ("nonsense", "unknown")):
        answer = await join(world, token)
        assert answer.status_code == 401
        assert why in answer.json()["detail"]
        assert "join-token create" in answer.json()["hint"]
    assert hosts(world) == []


async def test_token_that_is_revoked_after_use_keeps_its_host(world: World, api: httpx.AsyncClient) -> None:
    made = (await api.post("/api/v1/join-tokens", json={})).json()
    await join(world, made["token"])
    await api.delete(f"/api/v1/join-tokens/{made['id']}")
    assert len(hosts(world)) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "-x"}, "name"),
        ({"name": "x" * 64}, "name"),
        ({"machine_id": "a b"}, "machine_id"),
        ({"credential_hash": "x"}, "credential_hash"),
        ({"credential": "clear"}, "credential"),
    ],
)
async def test_bad_join_is_refused_and_costs_no_token(
    world: World, api: httpx.AsyncClient, changes: dict[str, Any], field: str
) -> None:
    token = await new_token(api)
    answer = await join(world, token, changes=changes)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert (await join(world, token)).status_code == 201


# -- what a host says ----------------------------------------------------------------------------------------------


async def said(world: World, what: str, body: Any, host_id: str = "h1") -> httpx.Response:
    async with world.client(CREDENTIAL) as client:
        return await client.post(f"/api/v1/hosts/{host_id}/{what}", json=body)


def claim(instance_id: str, fence: int, state: ClaimState = ClaimState.BOUND, host_id: str = "h1") -> ClaimRow:
    return ClaimRow(
        instance_id=instance_id, fence=fence, host_id=host_id, memory_bytes=1 << 30, state=state, placement={}
    )


async def test_registration_is_what_people_see(world: World, api: httpx.AsyncClient) -> None:
    world.add_host(state=HostState.LOST, inventory={})
    cards = inventory(gpus=(GPU, BAD_GPU)).model_dump(mode="json")
    answer = await said(world, "register", registration(inventory=cards))
    assert (answer.status_code, answer.json()) == (200, {"engines": []})
    seen = (await api.get("/api/v1/hosts/h1")).json()
    assert (seen["name"], seen["state"], seen["address"], seen["version"]) == ("box", "ready", "127.0.0.1", "0.1.0")
    assert seen["ram_allocatable_bytes"] == 7 << 30
    assert [(g["uuid"], g["healthy"], g["reason"]) for g in seen["gpus"]] == [
        ("GPU-1", True, ""),
        ("GPU-2", False, "lost"),
    ]
    assert seen["workflow_url"].endswith("/workflows/host%2Fh1")
    assert "credential" not in str(seen)


async def test_host_hears_which_engines_may_go_on(world: World) -> None:
    world.add_host(ram_used=2 << 30)
    world.add(claim("chat/1-a", 2))
    world.add(claim("chat/2-b", 1, ClaimState.RELEASING))
    running = [{"instance_id": "chat/1-a", "fence": 1}, {"instance_id": "stray/1", "fence": 9}]
    mine = {"engines": [{"instance_id": "chat/1-a", "fence": 2}]}
    assert (await said(world, "engines", {"engines": running})).json() == mine
    assert (await said(world, "register", registration(engines=running))).json() == mine
    [left] = world.database.read(lambda s: s.exec(select(ClaimRow)).all())
    assert left.instance_id == "chat/1-a", "what was given up and does not run is free"


async def test_report_goes_to_the_instance(world: World) -> None:
    world.add_host()
    world.add(claim("chat/1-a", 2))
    body = {"instance_id": "chat/1-a", "fence": 2, "sequence": 1, "phase": "ready", "url": "http://127.0.0.1:1"}
    assert (await said(world, "reports", body)).status_code == 202
    [report] = world.workflows.reports
    assert (report.instance_id, report.phase, report.url) == ("chat/1-a", "ready", "http://127.0.0.1:1")


async def test_host_does_not_speak_for_engines_of_another(world: World) -> None:
    world.add_host()
    world.add_host("h2", "hf-host-2")
    world.add(claim("chat/1-a", 2, host_id="h2"))
    answer = await said(world, "reports", {"instance_id": "chat/1-a", "fence": 2, "sequence": 1, "phase": "ready"})
    assert answer.status_code == 403
    assert world.workflows.reports == []


HUGE = 10**30


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("engines", {"engines": [{"instance_id": "a", "fence": HUGE}]}),
        ("engines", {"engines": [{"instance_id": "a\0", "fence": 1}]}),
        ("engines", {"engines": [{"instance_id": "a", "fence": 1}] * 10_001}),
        ("reports", {"instance_id": "a", "fence": HUGE, "sequence": 1, "phase": "ready"}),
        ("reports", {"instance_id": "a", "fence": 1, "sequence": HUGE, "phase": "ready"}),
        ("reports", {"instance_id": "a", "fence": 1, "sequence": 1, "phase": "ready", "pid": HUGE}),
        ("reports", {"instance_id": "a", "fence": 1, "sequence": 1, "phase": "ready", "progress": 1e400}),
        ("reports", {"instance_id": "a", "fence": 1, "sequence": 1, "phase": "ready", "message": "\0"}),
        ("register", registration(http_port=HUGE)),
        ("register", registration(address="\0")),
        ("register", registration(inventory=inventory().model_dump(mode="json") | {"ram_allocatable_bytes": HUGE})),
        ("register", registration(inventory=inventory().model_dump(mode="json") | {"hostname": "a\0b"})),
        ("register", registration(engines=[{"instance_id": "a", "fence": -1}])),
    ],
)
async def test_what_no_database_can_keep_is_refused(world: World, what: str, body: Any) -> None:
    world.add_host()
    async with world.client(CREDENTIAL) as client:
        headers = {"content-type": "application/json"}
        answer = await client.post(f"/api/v1/hosts/h1/{what}", content=json.dumps(body), headers=headers)
    assert answer.status_code == 422, answer.text
    assert world.workflows.reports == []


async def test_host_hears_when_its_words_cannot_be_passed_on(world: World) -> None:
    world.add_host()
    world.workflows.down = True
    body = {"instance_id": "chat/1-a", "fence": 2, "sequence": 1, "phase": "ready"}
    assert (await said(world, "reports", body)).status_code == 503
    assert (await said(world, "register", registration())).status_code == 503


# -- people --------------------------------------------------------------------------------------------------------


async def test_hosts_are_listed_by_label(world: World, api: httpx.AsyncClient) -> None:
    world.add_host("h1", labels={"zone": "a"})
    world.add_host("h2", "2", labels={"zone": "b"})
    world.add(GpuRow(**GPU.model_dump(include=set(GpuRow.model_fields)), host_id="h2", allocatable=1))
    listed = (await api.get("/api/v1/hosts")).json()["items"]
    assert [(h["id"], len(h["gpus"])) for h in listed] == [("h1", 0), ("h2", 1)]
    chosen = (await api.get("/api/v1/hosts", params={"label": "zone=b"})).json()["items"]
    assert [h["id"] for h in chosen] == ["h2"]


async def test_only_a_lost_host_without_instances_is_forgotten(world: World, api: httpx.AsyncClient) -> None:
    world.add_host("h1")
    assert (await api.delete("/api/v1/hosts/h1")).status_code == 409
    world.add_host("h2", "2", state=HostState.LOST)
    world.add(claim("chat/1-a", 1, host_id="h2"))
    answer = await api.delete("/api/v1/hosts/h2")
    assert (answer.status_code, "chat/1-a" in answer.json()["detail"]) == (409, True)
    world.add_host("h3", "3", state=HostState.LOST)
    assert (await api.delete("/api/v1/hosts/h3")).status_code == 204
    assert (await api.get("/api/v1/hosts/h3")).status_code == 404
    assert (await api.delete("/api/v1/hosts/nope")).status_code == 404


def _expire_tokens(world: World) -> None:
    def expire(session: Any) -> None:
        for row in session.exec(select(JoinTokenRow)).all():
            row.expires_at = datetime.now(UTC) - timedelta(seconds=1)
            session.add(row)

    world.database.write(expire)
