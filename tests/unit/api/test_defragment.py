"""Beginning, watching and stopping the moves that make room."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from fleet.db import defragmentations
from fleet.defragmentations import Defragmentation, PlannedMove, Seat, UnderWay, Waiting
from tests.unit.api.world import SPEC, World

PATH = "/api/v1/defragmentations"
NOW = datetime.now(UTC)
MOVE = PlannedMove(
    instance_id="low/1", deployment="low", fence=1, from_host="h1", from_name="a", to=(Seat(host_id="h2"),), bytes=7
)


@pytest.fixture
async def deployed(api: httpx.AsyncClient) -> None:
    assert (await api.post("/api/v1/deployments", json={"name": "chat", "spec": SPEC})).status_code == 201


def under_way(**changes: Any) -> Defragmentation:
    known = Defragmentation(
        deployment="chat",
        started_at=NOW,
        waiting=Waiting(instance_id="chat/1", deployment="chat"),
        under_way=(UnderWay(move=MOVE, until=NOW + timedelta(minutes=1)),),
        projection=5,
    )
    return known.with_(**changes)


def put(world: World, d: Defragmentation) -> None:
    world.workflows.defragmented[d.deployment] = d
    world.database.write(lambda s: defragmentations.record(s, d, "run"))


@pytest.fixture(autouse=True)
def a_host(world: World) -> None:
    world.add_host()


@pytest.mark.usefixtures("deployed")
async def test_it_is_begun_and_begun_again_without_effect(world: World, api: httpx.AsyncClient) -> None:
    first = await api.post(PATH, json={"deployment": "chat"})
    assert (first.status_code, first.json()["state"], first.json()["asked_by"]) == (202, "planning", "a person")
    again = await api.post(PATH, json={"deployment": "chat"})
    assert again.json()["started_at"] == first.json()["started_at"]
    assert "defragment%2Fchat" in first.json()["workflow_url"]


@pytest.mark.usefixtures("deployed")
async def test_without_a_controller_it_says_what_was_asked(world: World, api: httpx.AsyncClient) -> None:
    world.workflows.idle = True
    answer = await api.post(PATH, json={"deployment": "chat"})
    assert (answer.status_code, answer.json()["message"]) == (202, "looks what could be moved")


async def test_what_is_moved_is_seen_in_full(world: World, api: httpx.AsyncClient) -> None:
    put(world, under_way(done=(MOVE.model_copy(update={"instance_id": "low/0"}),), given_up=("x/1",)))
    [found] = (await api.get(PATH)).json()["items"]
    assert (found["state"], found["waiting"], found["could_not_be_moved"]) == ("moving", "chat/1", ["x/1"])
    assert found["message"] == "moves low/1 from a to h2"
    assert [(m["instance_id"], m["state"], m["to_hosts"]) for m in found["moves"]] == [
        ("low/1", "under_way", ["h2"]),
        ("low/0", "done", ["h2"]),
    ]
    assert (await api.get(f"{PATH}/chat")).json() == found


async def test_it_is_stopped_once_and_a_stopped_one_again_is_harmless(world: World, api: httpx.AsyncClient) -> None:
    put(world, under_way())
    answer = await api.post(f"{PATH}/chat/stop", json={"reason": "not today"})
    assert (answer.status_code, answer.json()["state"]) == (202, "stopping")
    assert world.workflows.defragmented["chat"].stop_reason == "not today"
    assert (await api.post(f"{PATH}/chat/stop")).status_code == 202
    assert world.workflows.defragmented["chat"].stop_reason == "not today"
    put(world, under_way(ended="not today", projection=99))
    before = world.workflows.defragmented["chat"]
    assert (await api.post(f"{PATH}/chat/stop")).json()["state"] == "ended"
    assert world.workflows.defragmented["chat"] is before


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "deployment"), ({"deployment": "A B"}, "deployment"), ({"deployment": "chat", "how": 1}, "how")],
)
async def test_bad_input_is_refused_by_field(api: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    answer = await api.post(PATH, json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_what_is_not_there_is_not_found(api: httpx.AsyncClient) -> None:
    assert (await api.post(PATH, json={"deployment": "nobody"})).status_code == 404
    assert (await api.get(f"{PATH}/nobody")).status_code == 404
    assert (await api.post(f"{PATH}/nobody/stop")).status_code == 404
    assert (await api.get(f"{PATH}/%00")).status_code in (404, 422)


async def test_an_older_word_does_not_replace_a_newer_one(world: World) -> None:
    put(world, under_way())
    assert not world.database.write(lambda s: defragmentations.record(s, under_way(projection=4), "run"))
    earlier = under_way(started_at=NOW - timedelta(hours=1), projection=50)
    assert not world.database.write(lambda s: defragmentations.record(s, earlier, "another run"))
    later = under_way(started_at=NOW + timedelta(hours=1), projection=1)
    assert world.database.write(lambda s: defragmentations.record(s, later, "another run"))
