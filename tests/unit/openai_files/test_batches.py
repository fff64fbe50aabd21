"""Batches as clients make and see them; what becomes of them is for their workflows."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from openai import APIStatusError, NotFoundError
from sqlmodel import Session

from fleet.batches import AssembledBatch, CheckedBatch, assembled, checked
from fleet.db import batches
from fleet.db.batches import BatchRow, Result
from fleet.timings import Timings
from tests.unit.openai_files.conftest import Here


async def begin(here: Here, key: str = "key-a", purpose: Any = "batch", **changes: Any) -> Any:
    client = here.client(key)
    file = await client.files.create(file=("in.jsonl", b"{}\n"), purpose=purpose)
    asked = {"input_file_id": file.id, "endpoint": "/v1/embeddings", "completion_window": "24h"} | changes
    return await client.batches.create(**asked)


def change(here: Here, batch_id: str, **values: Any) -> None:
    def write(session: Session) -> None:
        row = session.get_one(BatchRow, batch_id)
        for name, value in values.items():
            setattr(row, name, value)
        session.add(row)

    here.database.write(write)


async def test_a_new_batch_is_written_down_and_begun(here: Here) -> None:
    batch = await begin(here, metadata={"a": "b"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"a": "b"})
    assert batch.expires_at - batch.created_at == 24 * 3600
    assert here.started == [batch.id]
    assert await here.client().batches.retrieve(batch.id) == batch


async def test_without_temporal_it_is_kept_and_begun_at_a_later_look(here: Here) -> None:
    here.temporal_answers = False
    batch = await begin(here)
    here.temporal_answers = True
    await here.client().batches.retrieve(batch.id)
    assert here.started == [], "it has just been asked"
    change(here, batch.id, created_at=datetime.now(UTC) - timedelta(minutes=1))
    await here.client().batches.retrieve(batch.id)
    async with asyncio.timeout(10):
        while not here.started:
            await asyncio.sleep(0)
    assert here.started == [batch.id]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-nothing"}, "input_file_id"),
        ({"input_file_id": "file-\x00"}, "input_file_id"),
        ({"purpose": "user_data"}, "input_file_id"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ],
)
async def test_what_is_wrong_is_named(here: Here, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(APIStatusError) as refused:
        await begin(here, **changes)
    assert (refused.value.status_code, refused.value.param) == (400, param)
    assert here.started == []


async def test_a_batch_is_its_keys_alone(here: Here) -> None:
    batch, stranger = await begin(here), here.client("key-b")
    for ask in (stranger.batches.retrieve, stranger.batches.cancel):
        with pytest.raises(NotFoundError):
            await ask(batch.id)
    assert (await stranger.batches.list()).data == []
    with pytest.raises(APIStatusError, match="No such file"):
        await begin(here, "key-b", input_file_id=batch.input_file_id)


async def test_lists_go_page_by_page_newest_first(here: Here) -> None:
    made = [(await begin(here)).id for _ in range(5)]
    assert [b.id async for b in here.client().batches.list(limit=2)] == made[::-1]


async def test_a_wish_to_cancel_is_seen_at_once_and_told(here: Here) -> None:
    batch = await begin(here)
    for _ in range(2):
        cancelled = await here.client().batches.cancel(batch.id)
        assert cancelled.status == "cancelling"
        assert cancelled.cancelling_at is not None
    assert here.cancelled == [batch.id, batch.id]


async def test_one_that_has_ended_cannot_be_cancelled(here: Here) -> None:
    batch = await begin(here)
    change(here, batch.id, status="completed")
    with pytest.raises(APIStatusError) as refused:
        await here.client().batches.cancel(batch.id)
    assert (refused.value.status_code, refused.value.code) == (409, "batch_has_ended")


async def test_a_client_sees_how_far_it_is_while_it_goes_on(here: Here) -> None:
    batch = await begin(here)
    at = datetime.now(UTC)
    row = here.database.read(lambda s: s.get_one(BatchRow, batch.id))
    state = checked(batches.state_of(row, Timings()), CheckedBatch(total=9, windows=1, model="m"), at)
    here.database.write(lambda s: batches.record(s, state.with_(projection=1)))
    here.database.write(lambda s: batches.write_results(s, batch.id, [Result(1, True, b"{}"), Result(2, False, b"{}")]))
    seen = await here.client().batches.retrieve(batch.id)
    assert (seen.status, seen.model) == ("in_progress", "m")
    assert seen.request_counts.model_dump() == {"total": 9, "completed": 1, "failed": 1}
    ended = assembled(state, AssembledBatch(completed=8, failed=1, output_file_id="o", error_file_id="e"), at)
    here.database.write(lambda s: batches.record(s, ended.with_(projection=2)))
    seen = await here.client().batches.retrieve(batch.id)
    assert (seen.status, seen.output_file_id, seen.error_file_id) == ("completed", "o", "e")
    assert seen.request_counts.model_dump() == {"total": 9, "completed": 8, "failed": 1}
    assert seen.completed_at == int(at.timestamp())
