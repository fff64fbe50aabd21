"""OpenAI's own client has batches done, while gateways fail, refuse and die, and controllers are killed."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from temporalio.testing import WorkflowEnvironment

from fleet.batches import PauseBatch
from fleet.db import batches
from fleet.db.batches import BatchResultRow, BatchRow, BatchWindowRow
from tests.batch_stack import BatchStack, jsonl, moody, obliging, parsed, request_line
from tests.workflows.server import temporal_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    async with temporal_server() as environment:
        yield environment


@pytest.fixture
async def stack(tmp_path: Path, temporal: WorkflowEnvironment) -> AsyncIterator[BatchStack]:
    stack = BatchStack(tmp_path, temporal.client.service_client.config.target_host)
    try:
        await stack.start()
        async with stack.serving_files():
            yield stack
    finally:
        await stack.stop()


async def begin(stack: BatchStack, lines: list[dict[str, Any]], **more: Any) -> Any:
    file = await stack.client().files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    return await stack.client().batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more
    )


async def lines_of(stack: BatchStack, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return parsed((await stack.client().files.content(file_id)).text)


async def both(stack: BatchStack, batch: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    output, errors = await lines_of(stack, batch.output_file_id), await lines_of(stack, batch.error_file_id)
    assert len({line["id"] for line in output + errors}) == len(output + errors)
    return output, errors


def ids_of(lines: list[dict[str, Any]]) -> list[str]:
    return [line["custom_id"] for line in lines]


def answer(line: dict[str, Any]) -> str:
    text: str = line["response"]["body"]["choices"][0]["message"]["content"]
    return text


async def test_every_line_is_answered_once_however_moody_the_gateway(stack: BatchStack) -> None:
    stack.gateway.act = moody(7)
    batch = await begin(stack, [request_line(n) for n in range(450)], metadata={"why": "test"})
    assert (batch.status, batch.metadata) == ("validating", {"why": "test"})
    done = await stack.ended(batch.id)
    assert done.status == "completed", done
    output, errors = await both(stack, done)
    assert ids_of(output) == [f"c-{n}" for n in range(450)], "in order"
    assert errors == []
    assert [answer(line) for line in output] == [f"re: question {n}" for n in range(450)]
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (450, 450, 0)
    assert done.model == "tiny"
    assert None not in (done.in_progress_at, done.finalizing_at, done.completed_at)
    assert stack.gateway.keys == {"key-a"}, "on behalf of the key whose batch it is"
    assert stack.gateway.most_at_once > 4, "more at once as it goes well"

    async def cleared() -> bool:
        left = stack.database.read(lambda s: [s.exec(select(t)).first() for t in (BatchResultRow, BatchWindowRow)])
        return left == [None, None]

    await stack.until(cleared, "nothing is kept twice")


async def test_what_cannot_be_answered_is_in_the_error_file(stack: BatchStack) -> None:
    async def act(text: str, before: int) -> tuple[int, Any, dict[str, str]] | None:
        if text == "question 1":
            return 400, {"error": {"code": "context_length_exceeded", "message": "too long"}}, {}
        if text == "question 2":
            return 500, {"error": {"message": "always"}}, {}
        return None if text == "question 3" else await obliging(text, before)

    stack.gateway.act = act
    done = await stack.ended((await begin(stack, [request_line(n) for n in range(5)])).id)
    assert done.status == "completed"
    output, errors = await both(stack, done)
    assert ids_of(output) == ["c-0", "c-4"]
    assert ids_of(errors) == ["c-1", "c-2", "c-3"]
    assert errors[0]["response"]["status_code"] == 400
    assert errors[0]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert errors[1]["response"]["status_code"] == 500
    assert (errors[2]["response"], errors[2]["error"]["code"]) == (None, "no_answer")
    assert [stack.gateway.asked[f"question {n}"] for n in range(5)] == [1, 1, 5, 5, 1]
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (5, 2, 3)


async def test_killed_in_the_middle_of_windows_every_line_is_there_once(stack: BatchStack) -> None:
    gate = asyncio.Event()

    async def act(text: str, before: int) -> tuple[int, Any, dict[str, str]]:
        if sum(stack.gateway.answered.values()) > 60:
            await gate.wait()
        return await obliging(text, before)

    stack.gateway.act = act
    batch = await begin(stack, [request_line(n) for n in range(300)])

    async def written() -> int:
        return stack.database.read(lambda s: batches.counts(s, batch.id)).completed

    async def stuck() -> bool:
        return stack.gateway.now > 1 and await written() > 50

    await stack.until(stuck, "some are answered, some are in flight")
    stack.controller.kill()
    before = await written()
    with_answer = sum(stack.gateway.answered.values())
    gate.set()
    stack.controller.start()
    done = await stack.ended(batch.id)
    output, errors = await both(stack, done)
    assert ids_of(output) == [f"c-{n}" for n in range(300)]
    assert errors == []
    assert before <= with_answer < 300
    again = sum(stack.gateway.asked.values()) - 300
    assert 0 < again <= 64 + with_answer - before, "only lines whose answers were lost are asked again"


async def test_cancelled_it_keeps_what_was_answered(stack: BatchStack) -> None:
    gate = asyncio.Event()

    async def act(text: str, before: int) -> tuple[int, Any, dict[str, str]]:
        if int(text.split()[1]) >= 10:
            await gate.wait()
        return await obliging(text, before)

    stack.gateway.act = act
    batch = await begin(stack, [request_line(n) for n in range(150)])

    async def some() -> bool:
        now = await stack.client().batches.retrieve(batch.id)
        return bool(now.request_counts.completed == 10)

    await stack.until(some, "ten are answered, and the client sees it")
    assert (await stack.client().batches.cancel(batch.id)).status == "cancelling"
    done = await stack.ended(batch.id)
    gate.set()
    assert done.status == "cancelled"
    output, errors = await both(stack, done)
    assert ids_of(output) == [f"c-{n}" for n in range(10)]
    assert ids_of(errors) == [f"c-{n}" for n in range(10, 150)]
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert None not in (done.cancelling_at, done.cancelled_at)


async def test_what_temporal_could_not_be_told_it_is_told_later(stack: BatchStack) -> None:
    stack.temporal_answers = False
    first = await begin(stack, [request_line(0)])
    second = await begin(stack, [request_line(1)])
    await stack.client().batches.cancel(second.id)
    assert [b.status for b in (await stack.client().batches.list()).data] == ["cancelling", "validating"]

    def earlier(session: Any) -> None:
        for row in session.exec(select(BatchRow)).all():
            row.created_at -= timedelta(minutes=1)
            session.add(row)

    stack.database.write(earlier)
    assert await stack.starter.look() == 2
    assert (await stack.ended(first.id)).status == "completed"
    assert (await stack.ended(second.id)).status == "cancelled"


async def test_looking_at_one_that_has_not_begun_begins_it(stack: BatchStack) -> None:
    stack.temporal_answers = False
    batch = await begin(stack, [request_line(0)])
    stack.temporal_answers = True

    def earlier(session: Any) -> None:
        row = session.get_one(BatchRow, batch.id)
        row.created_at -= timedelta(minutes=1)
        session.add(row)

    stack.database.write(earlier)
    assert (await stack.ended(batch.id)).status == "completed"


async def test_out_of_time_the_rest_is_expired(stack: BatchStack) -> None:
    async def act(text: str, before: int) -> tuple[int, Any, dict[str, str]]:
        if text == "question 0":
            return await obliging(text, before)
        return 429, {"error": {"code": "overloaded"}}, {"retry-after": "0.2"}

    stack.gateway.act = act
    stack.temporal_answers = False
    batch = await begin(stack, [request_line(n) for n in range(3)])

    def hurry(session: Any) -> None:
        row = session.get_one(BatchRow, batch.id)
        row.expires_at = datetime.now(UTC) + timedelta(seconds=6)
        session.add(row)

    stack.database.write(hurry)
    await stack.starter.start(batch.id)
    done = await stack.ended(batch.id)
    assert done.status == "expired"
    output, errors = await both(stack, done)
    assert ids_of(output) == ["c-0"]
    assert ids_of(errors) == ["c-1", "c-2"]
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}
    assert done.expired_at


async def test_mistakes_of_the_input_are_told_by_line(stack: BatchStack) -> None:
    lines = [request_line(0), request_line(0), request_line(1, url="/v1/embeddings"), request_line(2, body={})]
    done = await stack.ended((await begin(stack, lines)).id)
    assert done.status == "failed"
    assert [(m.code, m.line, m.param) for m in done.errors.data] == [
        ("duplicate_custom_id", 2, "custom_id"),
        ("invalid_url", 3, "url"),
        ("missing_required_parameter", 4, "body.model"),
    ]
    assert (done.output_file_id, done.error_file_id) == (None, None)
    assert stack.gateway.asked == Counter()


async def test_a_gateway_that_is_away_for_a_while_costs_no_line(stack: BatchStack) -> None:
    await stack.close_gateway()
    batch = await begin(stack, [request_line(n) for n in range(20)])

    async def waits() -> bool:
        return (await stack.client().batches.retrieve(batch.id)).status == "in_progress"

    await stack.until(waits, "it has begun")
    await stack.open_gateway()
    done = await stack.ended(batch.id)
    assert (done.status, done.request_counts.completed) == ("completed", 20)
    assert set(stack.gateway.asked.values()) == {1}


async def test_a_key_that_was_revoked_gets_no_more_answers(stack: BatchStack) -> None:
    stack.gateway.revoked = {"key-a"}
    done = await stack.ended((await begin(stack, [request_line(n) for n in range(3)])).id)
    _, errors = await both(stack, done)
    assert [line["response"]["status_code"] for line in errors] == [401, 401, 401]
    assert stack.gateway.asked == Counter()


async def test_paused_and_resumed(stack: BatchStack) -> None:
    gate = asyncio.Event()

    async def act(text: str, before: int) -> tuple[int, Any, dict[str, str]]:
        await gate.wait()
        return await obliging(text, before)

    stack.gateway.act = act
    batch = await begin(stack, [request_line(n) for n in range(100)])

    async def some() -> bool:
        return stack.gateway.now > 0

    await stack.until(some, "some are in flight")
    await stack.workflows.pause_batch(batch.id, PauseBatch())

    async def none() -> bool:
        row = stack.database.read(lambda s: s.get_one(BatchRow, batch.id))
        return bool(row.durable["paused"] and not row.durable["under_way"])

    await stack.until(none, "what is in flight has ended")
    asked = sum(stack.gateway.asked.values())
    gate.set()
    assert asked < 100
    await stack.workflows.pause_batch(batch.id, PauseBatch(paused=False))
    done = await stack.ended(batch.id)
    output, _ = await both(stack, done)
    assert ids_of(output) == [f"c-{n}" for n in range(100)]
