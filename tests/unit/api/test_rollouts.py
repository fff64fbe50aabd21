"""Revisions, rollbacks and steering, as seen through the API."""

from typing import Any

import httpx
import pytest

from fleet.access.sealing import MASK
from tests.unit.api.world import SPEC, World

URL = "/api/v1/deployments/chat"


@pytest.fixture
async def chat(world: World, api: httpx.AsyncClient) -> str:
    """Revision 1 works."""
    body = {"name": "chat", "spec": {**SPEC, "replicas": 2, "env": {"TOKEN": "secret"}}}
    assert (await api.post("/api/v1/deployments", json=body)).status_code == 201
    await world.workflows.all_replicas_become_ready("chat")
    return "chat"


async def update(api: httpx.AsyncClient, **spec: Any) -> dict[str, Any]:
    answer = await api.patch(URL, json={"spec": spec})
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["status"])


async def outcomes(api: httpx.AsyncClient) -> dict[int, str]:
    items = (await api.get(f"{URL}/revisions")).json()["items"]
    assert [r["revision"] for r in items] == sorted((r["revision"] for r in items), reverse=True)
    return {r["revision"]: r["outcome"] for r in items}


async def test_changed_spec_is_a_revision_whose_rollout_can_be_watched(
    world: World, api: httpx.AsyncClient, chat: str
) -> None:
    assert await outcomes(api) == {1: "live"}
    status = await update(api, max_model_len=1024)
    rollout = status["rollout"]
    assert (rollout["revision"], rollout["from_revision"], rollout["strategy"], rollout["mode"]) == (
        2,
        1,
        "rolling",
        "surge",
    )
    assert await outcomes(api) == {2: "rolling out", 1: "live"}
    await world.workflows.all_replicas_become_ready(chat)
    assert await outcomes(api) == {2: "live", 1: "superseded"}
    assert (await api.get(URL)).json()["status"]["rollout"] is None


async def test_scaling_and_policies_are_no_revision(api: httpx.AsyncClient, chat: str) -> None:
    status = await update(api, replicas=3, rollout={"strategy": "canary"}, restart={"max_failures": 9})
    assert (status["revision"], status["rollout"]) == (1, None)
    assert await outcomes(api) == {1: "live"}


async def test_rollback_deploys_what_worked_before_under_a_new_number(
    world: World, api: httpx.AsyncClient, chat: str
) -> None:
    await update(api, max_model_len=1024)
    await world.workflows.all_replicas_become_ready(chat)
    await update(api, replicas=5)
    answer = await api.post(f"{URL}/rollback")
    assert answer.status_code == 202, answer.text
    said = answer.json()
    assert (said["status"]["revision"], said["spec"]["max_model_len"], said["spec"]["replicas"]) == (3, None, 5)
    assert said["spec"]["env"] == {"TOKEN": MASK}
    sealed = world.workflows.deployments[chat].spec.env["TOKEN"]
    assert world.master.open(sealed) == "secret"
    items = (await api.get(f"{URL}/revisions")).json()["items"]
    assert items[0]["cause"] == "rollback to revision 1"
    assert items[0]["current"]
    assert items[0]["spec"]["env"] == {"TOKEN": MASK}


async def test_rollback_to_a_revision_by_its_number(world: World, api: httpx.AsyncClient, chat: str) -> None:
    for length in (64, 128, 256):
        await update(api, max_model_len=length)
        await world.workflows.all_replicas_become_ready(chat)
    said = (await api.post(f"{URL}/rollback", json={"revision": 2})).json()
    assert (said["status"]["revision"], said["spec"]["max_model_len"]) == (5, 64)


async def test_rollback_during_a_rollout_turns_it_round(world: World, api: httpx.AsyncClient, chat: str) -> None:
    await update(api, max_model_len=1024)
    status = (await api.post(f"{URL}/rollback")).json()["status"]
    assert (status["revision"], status["rollout"]["rolling_back"]) == (1, True)
    await world.workflows.all_replicas_become_ready(chat)
    assert await outcomes(api) == {2: "aborted", 1: "live"}
    assert (await update(api, max_model_len=2048))["revision"] == 3


async def test_rollback_to_what_it_is_already_or_never_was_is_refused(api: httpx.AsyncClient, chat: str) -> None:
    nothing = await api.post(f"{URL}/rollback")
    assert nothing.status_code == 409
    same = await api.post(f"{URL}/rollback", json={"revision": 1})
    assert (same.status_code, same.json()["field"]) == (409, "revision")
    never = await api.post(f"{URL}/rollback", json={"revision": 7})
    assert (never.status_code, never.json()["hint"]) == (404, "kept are: 1")
    for bad in ({"revision": 0}, {"revision": "x"}, {"to": 1}):
        assert (await api.post(f"{URL}/rollback", json=bad)).status_code == 422
    assert (await api.get(URL)).json()["status"]["generation"] == 2 - 1


async def test_rollout_is_paused_resumed_and_aborted(world: World, api: httpx.AsyncClient, chat: str) -> None:
    refused = await api.post(f"{URL}/rollout/pause")
    assert (refused.status_code, refused.json()["detail"]) == (409, "no rollout is in progress")
    await update(api, max_model_len=1024)
    paused = await api.post(f"{URL}/rollout/pause")
    assert (paused.status_code, paused.json()["status"]["rollout"]["paused"]) == (202, True)
    resumed = (await api.post(f"{URL}/rollout/resume")).json()
    assert not resumed["status"]["rollout"]["paused"]
    assert (await api.post(f"{URL}/rollout/promote")).status_code == 409
    aborted = (await api.post(f"{URL}/rollout/abort")).json()
    assert (aborted["status"]["revision"], aborted["status"]["rollout"]["rolling_back"]) == (1, True)
    assert (await api.post(f"{URL}/rollout/explode")).status_code == 422
    assert (await api.post("/api/v1/deployments/none/rollout/pause")).status_code == 404


async def test_what_is_sent_again_under_its_key_is_done_once(world: World, api: httpx.AsyncClient, chat: str) -> None:
    key = {"idempotency-key": "r1"}
    first = (await api.post(f"{URL}/restart", headers=key)).json()["status"]["generation"]
    await world.workflows.all_replicas_become_ready(chat)
    again = await api.post(f"{URL}/restart", headers=key)
    assert (again.status_code, again.json()["status"]["generation"]) == (202, first)
    assert world.workflows.deployments[chat].launch == 2
    other = (await api.post(f"{URL}/restart", headers={"idempotency-key": "r2"})).json()
    assert other["status"]["generation"] == first + 1


async def test_rollback_sent_again_under_its_key_is_done_once(world: World, api: httpx.AsyncClient, chat: str) -> None:
    await update(api, max_model_len=1024)
    await world.workflows.all_replicas_become_ready(chat)
    key = {"idempotency-key": "b1"}
    first = (await api.post(f"{URL}/rollback", json={"revision": 1}, headers=key)).json()["status"]
    again = await api.post(f"{URL}/rollback", json={"revision": 1}, headers=key)
    assert again.status_code == 202
    assert again.json()["status"]["generation"] == first["generation"]


async def test_old_revisions_are_forgotten_but_never_the_ones_in_use(
    world: World, api: httpx.AsyncClient, chat: str
) -> None:
    for length in range(100, 125):
        await update(api, max_model_len=length)
        await world.workflows.all_replicas_become_ready(chat)
    kept = await outcomes(api)
    assert (len(kept), max(kept), kept[26]) == (20, 26, "live")


@pytest.mark.parametrize(
    ("rollout", "field"),
    [
        ({"strategy": "magic"}, "spec.rollout.strategy"),
        ({"max_surge": 0}, "spec.rollout"),
        ({"canary": {"weight": 100}}, "spec.rollout.canary.weight"),
        ({"bake_s": -1}, "spec.rollout.bake_s"),
    ],
)
async def test_policy_that_makes_no_sense_is_refused_by_its_field(
    api: httpx.AsyncClient, chat: str, rollout: dict[str, Any], field: str
) -> None:
    answer = await api.patch(URL, json={"spec": {"rollout": rollout}})
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert (await api.get(URL)).json()["status"]["generation"] == 1
