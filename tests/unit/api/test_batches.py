"""Operators see the batches of all keys, and hold them up."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from api.batch_starter import BatchStarter
from fleet.batches import Batch, BatchStatus, CancelBatch, CheckedBatch, PauseBatch
from fleet.db import batches
from fleet.db.batches import BatchRow, Result
from fleet.timings import Timings
from tests.unit.api.world import World

PATH = "/api/v1/batches"
NOW = datetime.now(UTC)
STATE = Batch(
    batch_id="b1",
    endpoint="/v1/embeddings",
    created_at=NOW - timedelta(seconds=60),
    expires_at=NOW + timedelta(hours=24),
    status=BatchStatus.IN_PROGRESS,
    checked=CheckedBatch(total=10, windows=1, model="tiny"),
    in_progress_at=NOW - timedelta(seconds=50),
    last_error="429 overloaded",
    projection=3,
)


@pytest.fixture(autouse=True)
def _just_now() -> None:
    """This module may have been loaded half an hour before its tests run."""
    global NOW, STATE  # noqa: PLW0603 (what all tests here go by)
    passed = datetime.now(UTC) - NOW
    NOW += passed
    moved = {name: getattr(STATE, name) + passed for name in ("created_at", "expires_at", "in_progress_at")}
    STATE = STATE.model_copy(update=moved)


def put(world: World, batch_id: str = "b1", key_id: str = "key-a", **changes: Any) -> None:
    row = BatchRow(
        id=batch_id,
        key_id=key_id,
        endpoint="/v1/embeddings",
        input_file_id="f",
        completion_window="24h",
        created_at=NOW - timedelta(seconds=60),
        expires_at=NOW + timedelta(hours=24),
    )
    for name, value in changes.items():
        setattr(row, name, value)
    world.add(row)


def going(world: World) -> None:
    put(world)
    world.database.write(lambda s: batches.record(s, STATE))


async def test_all_keys_batches_are_seen_with_how_far_they_are(world: World, api: httpx.AsyncClient) -> None:
    going(world)
    world.database.write(lambda s: batches.write_results(s, "b1", [Result(n, n < 5, b"{}") for n in range(6)]))
    put(world, "b2", "key-b", created_at=NOW)
    found = (await api.get(PATH)).json()["items"]
    assert [(b["id"], b["key_id"], b["status"]) for b in found] == [
        ("b2", "key-b", "validating"),
        ("b1", "key-a", "in_progress"),
    ]
    assert (found[1]["completed"], found[1]["failed"], found[1]["total"]) == (5, 1, 10)
    assert found[1]["lines_per_second"] == pytest.approx(6 / 50, rel=0.2)
    assert found[1]["last_error"] == "429 overloaded"
    assert found[1]["workflow_url"].endswith("batch%2Fb1")
    assert (await api.get(f"{PATH}/b1")).json() | {"lines_per_second": 0} == found[1] | {"lines_per_second": 0}


async def test_lists_go_page_by_page(world: World, api: httpx.AsyncClient) -> None:
    for n in range(3):
        put(world, f"b{n}", created_at=NOW + timedelta(seconds=n))
    first = (await api.get(PATH, params={"limit": 2})).json()
    assert [b["id"] for b in first["items"]] == ["b2", "b1"]
    rest = (await api.get(PATH, params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([b["id"] for b in rest["items"]], rest["next_cursor"]) == (["b0"], None)


async def test_paused_resumed_and_cancelled(world: World, api: httpx.AsyncClient) -> None:
    going(world)
    assert (await api.post(f"{PATH}/b1/pause")).json()["paused"]
    assert not (await api.post(f"{PATH}/b1/resume")).json()["paused"]
    assert (await api.post(f"{PATH}/b1/cancel")).json()["status"] == "cancelling"
    assert world.workflows.told == [
        ("b1", PauseBatch(paused=True)),
        ("b1", PauseBatch(paused=False)),
        ("b1", CancelBatch(reason="an operator cancelled it")),
    ]


async def test_one_that_has_ended_is_not_held_up(world: World, api: httpx.AsyncClient) -> None:
    put(world, status="completed")
    assert (await api.post(f"{PATH}/b1/pause")).status_code == 409
    assert (await api.post(f"{PATH}/b1/cancel")).json()["status"] == "completed"
    assert world.workflows.told == []


@pytest.mark.parametrize("path", ["nothing", "a%00b"])
async def test_what_is_not_there_is_said(api: httpx.AsyncClient, path: str) -> None:
    assert (await api.get(f"{PATH}/{path}")).status_code == 404
    assert (await api.get(PATH, params={"cursor": "nothing"})).status_code == 404


async def test_what_workflows_have_not_heard_they_are_told(world: World) -> None:
    put(world, "new")
    put(world, "unwanted", cancel_asked_at=NOW - timedelta(seconds=30))
    put(world, "young", created_at=NOW + timedelta(minutes=1))
    world.workflows.gone = {"batch/new", "batch/unwanted", "batch/young"}
    starter = BatchStarter(world.database, world.workflows, Timings())  # type: ignore[arg-type]
    assert await starter.look() == 2
    assert sorted(world.workflows.taken_up) == ["batch/new", "batch/unwanted"]
    assert world.workflows.told == [("unwanted", CancelBatch())]


async def test_while_temporal_is_down_nothing_is_lost(world: World) -> None:
    put(world, "new")
    world.workflows.gone = {"batch/new"}
    world.workflows.down = True
    starter = BatchStarter(world.database, world.workflows, Timings())  # type: ignore[arg-type]
    assert await starter.look() == 0
    world.workflows.down = False
    assert await starter.look() == 1
