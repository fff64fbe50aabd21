"""Taking hosts and instances out of service."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from api.management import drains
from fleet.db.tables import ClaimRow
from fleet.states import ClaimState, HostState
from tests.unit.api.test_instances import instance
from tests.unit.api.world import SPEC, World

HOST = "/api/v1/hosts/h1"
WAITING: dict[str, Any] = {"state": HostState.LOST, "replacement_paused": True}


async def test_drain_is_seen_in_its_answer_and_resume_ends_it(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    answer = await api.post(f"{HOST}/drain", json={"reason": "new disk"})
    assert answer.status_code == 202
    assert answer.json()["maintenance"] == "draining"
    assert "new disk" in answer.json()["maintenance_message"]
    assert (await api.get(HOST)).json()["maintenance"] == "draining"
    answer = await api.post(f"{HOST}/resume")
    assert (answer.status_code, answer.json()["maintenance"], answer.json()["maintenance_message"]) == (202, "none", "")


async def test_nothing_needs_to_be_sent_to_drain(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    assert (await api.post(f"{HOST}/drain")).json()["maintenance"] == "draining"
    assert world.workflows.hosts["h1"].wanted.deadline is None


async def test_host_can_be_cordoned_without_moving_anything(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    answer = await api.post(f"{HOST}/drain", json={"evacuate": False, "deadline_s": 5})
    assert answer.json()["maintenance"] == "cordoned"
    assert world.workflows.hosts["h1"].wanted.deadline is None


async def test_deadline_is_kept_as_a_moment(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    before = datetime.now(UTC)
    await api.post(f"{HOST}/drain", json={"deadline_s": 600})
    kept = world.workflows.hosts["h1"].wanted.deadline
    assert kept is not None
    assert before + timedelta(seconds=600) <= kept <= datetime.now(UTC) + timedelta(seconds=600)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"deadline_s": -1}, "deadline_s"),
        ({"deadline_s": 10**9}, "deadline_s"),
        ({"deadline_s": "soon"}, "deadline_s"),
        ({"evacuate": "perhaps"}, "evacuate"),
        ({"reason": "x" * 201}, "reason"),
        ({"reason": "a\0b"}, "reason"),
        ({"when": 1}, "when"),
    ],
)
async def test_bad_drain_is_refused_and_changes_nothing(
    world: World, api: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    world.add_host()
    answer = await api.post(f"{HOST}/drain", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert world.workflows.hosts == {}


async def test_what_is_not_there_cannot_be_drained(world: World, api: httpx.AsyncClient) -> None:
    for path in ("hosts/nope/drain", "hosts/nope/resume", "hosts/nope/approve-replacement", "instances/a/1-x/drain"):
        answer = await api.post(f"/api/v1/{path}")
        assert (answer.status_code, "GET /api/v1/" in answer.json()["hint"]) == (404, True)


async def test_host_that_never_registered_has_nothing_to_drain(world: World, api: httpx.AsyncClient) -> None:
    world.add_host(state=HostState.LOST)
    world.workflows.never_registered.add("h1")
    answer = await api.post(f"{HOST}/drain")
    assert (answer.status_code, "never registered" in answer.json()["detail"]) == (409, True)


async def test_drain_waits_for_temporal(world: World, api: httpx.AsyncClient) -> None:
    world.add_host()
    world.workflows.down = True
    assert (await api.post(f"{HOST}/drain")).status_code == 503


async def test_drain_that_no_controller_has_taken_up_is_accepted(
    world: World, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drains, "_PROJECTED_WITHIN_S", 0.05)
    world.add_host()
    world.workflows.idle = True
    answer = await api.post(f"{HOST}/drain")
    assert (answer.status_code, answer.json()["maintenance"]) == (202, "none")


async def test_instance_is_replaced_by_its_deployment(world: World, api: httpx.AsyncClient) -> None:
    await api.post("/api/v1/deployments", json={"name": "chat", "spec": SPEC})
    row = instance()
    instance_id = row.id
    world.add(row)
    answer = await api.post(f"/api/v1/instances/{instance_id}/drain", json={"deadline_s": 60, "reason": "slow"})
    assert (answer.status_code, answer.json()["id"]) == (202, instance_id)
    [leave] = world.workflows.leaves
    assert (leave.instance_ids, leave.reason) == ((instance_id,), "slow")
    assert leave.by is not None


async def test_waiting_hosts_are_approved_together(world: World, api: httpx.AsyncClient) -> None:
    world.add_host("h1", "1", **WAITING)
    world.add_host("h2", "2", **WAITING)
    world.add_host("h3", "3")
    assert (await api.get("/api/v1/hosts/h2")).json()["replacement_paused"] is True
    answer = await api.post("/api/v1/hosts/approve-replacement")
    assert (answer.status_code, answer.json()) == (202, {"hosts": ["h1", "h2"]})
    assert (await api.get("/api/v1/hosts/h2")).json()["replacement_paused"] is False
    assert (await api.post("/api/v1/hosts/approve-replacement")).status_code == 409


async def test_host_that_came_back_meanwhile_is_left_out(world: World, api: httpx.AsyncClient) -> None:
    world.add_host("h1", "1", **WAITING)
    world.add_host("h2", "2", **WAITING)
    world.workflows.never_registered.add("h1")
    assert (await api.post("/api/v1/hosts/approve-replacement")).json() == {"hosts": ["h2"]}


async def test_one_host_is_approved_and_only_while_it_waits(world: World, api: httpx.AsyncClient) -> None:
    world.add_host("h1", "1", **WAITING)
    world.add_host("h2", "2", **WAITING)
    answer = await api.post(f"{HOST}/approve-replacement")
    assert (answer.status_code, answer.json()["replacement_paused"]) == (202, False)
    assert (await api.get("/api/v1/hosts/h2")).json()["replacement_paused"] is True
    answer = await api.post(f"{HOST}/approve-replacement")
    assert (answer.status_code, "approval" in answer.json()["detail"]) == (409, True)


async def test_waiting_host_is_not_forgotten_before_its_replicas_are_elsewhere(
    world: World, api: httpx.AsyncClient
) -> None:
    world.add_host(**WAITING)
    world.add(
        ClaimRow(instance_id="chat/1-a", fence=1, host_id="h1", memory_bytes=1, state=ClaimState.BOUND, placement={})
    )
    answer = await api.delete(HOST)
    assert (answer.status_code, "approve-replacement h1" in answer.json()["hint"]) == (409, True)
