"""Responses that clients come back to, on both databases."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import orjson
import pytest
from sqlalchemy import text
from sqlmodel import Session, col, select, update

from api.gateway.refusals import Refusal
from api.gateway.responses import Prepared, StoredResponses, answer_stored, prepare
from api.gateway.responses.ids import output_id
from fleet.db import stored_responses
from fleet.db.session import Database
from fleet.db.stored_responses import StoredResponseRow
from tests.unit.gateway.engines import until

T = TypeVar("T")
KEY, OTHER = "key-1", "key-2"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def running(database: Database, **options: Any) -> AsyncIterator[StoredResponses]:
    stored = StoredResponses(database, **options)
    task = asyncio.create_task(stored.run())
    try:
        yield stored
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stored.stop()


async def turn(
    stored: StoredResponses, asked: Any, answer: str, previous: str | None = None, *, key: str = KEY, **more: Any
) -> Prepared:
    """One request, answered and saved."""
    ready = await prepare({"model": "m", "input": asked, "previous_response_id": previous} | more, key, stored)
    stored.save(ready, response_of(ready, answer))
    return ready


def response_of(ready: Prepared, answer: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": answer, "annotations": []}]
    message = {"type": "message", "id": output_id("msg", ready.response_id, 0), "role": "assistant", "content": content}
    previous = {"previous_response_id": ready.previous_id}
    return {"id": ready.response_id, "object": "response", "output": [message | {"status": "completed"}]} | previous


def texts(items: list[Any]) -> list[str]:
    return [part["text"] for item in items for part in item["content"]]


async def written(stored: StoredResponses) -> None:
    await until(lambda: stored.waiting == 0)


async def refusal_of(asked: Any) -> Refusal:
    with pytest.raises(Refusal) as refused:
        await asked
    return refused.value


async def test_a_conversation_goes_on_before_and_after_it_is_written(database: Database) -> None:
    stored = StoredResponses(database)
    one = await turn(stored, "a", "A")
    two = await turn(stored, [{"role": "user", "content": "b"}], "B", one.response_id)
    assert texts(await stored.load_chain(KEY, two.response_id)) == ["a", "A", "b", "B"]
    assert await stored.flush()
    assert stored.waiting == 0
    three = await turn(stored, "c", "C", two.response_id)
    assert texts(await stored.load_chain(KEY, three.response_id)) == ["a", "A", "b", "B", "c", "C"]
    other_process = StoredResponses(database)
    assert texts(await other_process.load_chain(KEY, two.response_id)) == ["a", "A", "b", "B"]
    branch = await prepare({"input": "d", "previous_response_id": one.response_id}, KEY, other_process)
    assert [item.get("content") for item in branch.document["input"]][-1] == "d"
    assert branch.history == 2


async def test_another_process_waits_a_moment_for_what_is_being_written(database: Database) -> None:
    seen = Seen(database.url.render_as_string(hide_password=False))
    here, there = StoredResponses(database), StoredResponses(seen)
    one = await turn(here, "a", "A")
    asked = asyncio.create_task(there.load_chain(KEY, one.response_id))
    await until(lambda: seen.reads == 1)
    await here.flush()
    assert texts(await asked) == ["a", "A"]
    assert seen.reads > 1
    seen.close()


class Seen(Database):
    reads = 0

    async def aread(self, query: Callable[[Session], T]) -> T:
        found = await super().aread(query)
        self.reads += 1
        return found


async def test_writing_happens_by_itself_and_once(database: Database) -> None:
    async with running(database) as stored:
        ready = [await turn(stored, f"q{i}", f"a{i}") for i in range(150)]
        stored.save(ready[0], response_of(ready[0], "again"))
        await written(stored)
        stored.save(ready[0], response_of(ready[0], "once more"))
        await written(stored)
    rows = database.read(lambda s: s.exec(select(StoredResponseRow)).all())
    assert {row.id for row in rows} == {one.response_id for one in ready}
    [first] = [row for row in rows if row.id == ready[0].response_id]
    assert '"a0"' in first.response
    assert first.expires_at - first.created_at == timedelta(days=30)


async def test_stopping_writes_what_is_left(database: Database) -> None:
    async with running(database) as stored:
        one = await turn(stored, "a", "A")
    assert database.read(lambda s: s.get(StoredResponseRow, one.response_id)) is not None


async def test_responses_belong_to_the_key_that_made_them(database: Database) -> None:
    stored = StoredResponses(database)
    one = await turn(stored, "a", "A")
    for _ in ("noted", "written"):
        assert (await refusal_of(stored.get(OTHER, one.response_id))).status == 404
        assert (await refusal_of(stored.input_items(OTHER, one.response_id))).status == 404
        assert (await refusal_of(stored.delete(OTHER, one.response_id))).status == 404
        assert (await refusal_of(stored.load_chain(OTHER, one.response_id))).code == "previous_response_not_found"
        assert await stored.find_items(OTHER, one.response_id) == {}
        await stored.flush()
    assert orjson.loads(await stored.get(KEY, one.response_id))["id"] == one.response_id


@pytest.mark.parametrize("unknown", ["resp_nobody", "", "a\x00b", "ü", "x" * 5000, "a b"])
async def test_what_is_unknown_is_refused(database: Database, unknown: str) -> None:
    stored = StoredResponses(database)
    refusal = await refusal_of(prepare({"input": "a", "previous_response_id": unknown}, KEY, stored))
    assert (refusal.status, refusal.param, refusal.code) == (400, "previous_response_id", "previous_response_not_found")
    assert (await refusal_of(stored.get(KEY, unknown))).status == 404


@pytest.mark.parametrize("flushed", [False, True])
async def test_what_is_deleted_is_gone_and_conversations_end_there(database: Database, flushed: bool) -> None:
    stored = StoredResponses(database)
    one = await turn(stored, "a", "A")
    two = await turn(stored, "b", "B", one.response_id)
    if flushed:
        await stored.flush()
    await stored.delete(KEY, one.response_id)
    await stored.flush()
    assert (await refusal_of(stored.get(KEY, one.response_id))).status == 404
    assert (await refusal_of(stored.delete(KEY, one.response_id))).status == 404
    broken = await refusal_of(stored.load_chain(KEY, two.response_id))
    assert broken.code == "previous_response_not_found"
    assert one.response_id in broken.message
    assert texts(await stored.input_items(KEY, two.response_id)) == ["b"]
    assert orjson.loads(await stored.get(KEY, two.response_id))["id"] == two.response_id


async def test_what_has_expired_is_not_found_and_pruned(database: Database) -> None:
    async with running(database) as stored:
        one, two = await turn(stored, "a", "A"), await turn(stored, "b", "B")
        await written(stored)
        old = update(StoredResponseRow).where(col(StoredResponseRow.id) == one.response_id)
        database.write(lambda s: s.execute(old.values(expires_at=LONG_AGO)))
        assert (await refusal_of(stored.get(KEY, one.response_id))).status == 404
        assert (await refusal_of(stored.load_chain(KEY, one.response_id))).status == 400
    async with running(database) as stored:
        await turn(stored, "c", "C")
        await until(lambda: database.read(lambda s: s.get(StoredResponseRow, one.response_id)) is None)
    assert database.read(lambda s: s.get(StoredResponseRow, two.response_id)) is not None


async def test_a_conversation_that_goes_on_keeps_its_beginning(database: Database) -> None:
    stored = StoredResponses(database, keep=timedelta(days=30))
    one = await turn(stored, "a", "A")
    await stored.flush()
    soon = datetime.now(UTC) + timedelta(days=1)
    database.write(lambda s: s.execute(update(StoredResponseRow).values(expires_at=soon)))
    await turn(stored, "b", "B", one.response_id)
    await stored.flush()
    kept = database.read(lambda s: s.get_one(StoredResponseRow, one.response_id))
    assert kept.expires_at > datetime.now(UTC) + timedelta(days=29)


async def test_of_what_is_too_large_nothing_is_stored(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    stored = StoredResponses(database, largest=1000)
    with caplog.at_level(logging.WARNING):
        large = await turn(stored, "a" * 600, "A" * 600)
    assert large.response_id in caplog.text
    assert stored.waiting == 0
    small = await turn(stored, "a" * 50, "A" * 50)
    assert stored.waiting == 1
    assert orjson.loads(await stored.get(KEY, small.response_id))["id"] == small.response_id


async def test_a_conversation_that_is_too_long_is_refused(database: Database) -> None:
    stored = StoredResponses(database, longest=2000)
    previous = None
    for _ in range(6):
        previous = (await turn(stored, "a" * 300, "A" * 100, previous)).response_id
    await stored.flush()
    assert previous is not None
    assert (await refusal_of(stored.load_chain(KEY, previous))).code == "conversation_too_long"


async def test_without_its_table_nothing_fails_and_all_is_written_later(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    stored = StoredResponses(database, most_bytes=2000)
    database.write(lambda s: s.execute(text("ALTER TABLE stored_response RENAME TO away")))
    with caplog.at_level(logging.WARNING):
        one = await turn(stored, "a", "A")
        assert not await stored.flush()
        assert not await stored.flush()
    assert len(caplog.records) == 1
    two = await turn(stored, "b", "B", one.response_id)
    assert texts(await stored.load_chain(KEY, two.response_id)) == ["a", "A", "b", "B"]
    assert (await refusal_of(stored.get(KEY, "resp_unknown"))).status == 503
    lost = [await turn(stored, f"{i}", "x" * 400) for i in range(9)][-1]
    assert stored.waiting < 11
    database.write(lambda s: s.execute(text("ALTER TABLE away RENAME TO stored_response")))
    assert await stored.flush()
    assert texts(await StoredResponses(database).load_chain(KEY, two.response_id)) == ["a", "A", "b", "B"]
    assert (await refusal_of(stored.get(KEY, lost.response_id))).status == 404


async def test_an_engine_that_names_all_its_responses_alike_does_no_harm(database: Database) -> None:
    stored = StoredResponses(database)
    one = await turn(stored, "a", "A")
    await stored.flush()
    two = await prepare({"input": "b", "previous_response_id": one.response_id}, KEY, stored)
    stored.save(two, response_of(two, "B") | {"id": one.response_id})
    async with asyncio.timeout(5):
        assert texts(await stored.load_chain(KEY, one.response_id))[-2:] == ["b", "B"]
        await stored.flush()
        assert texts(await stored.load_chain(KEY, one.response_id)) == ["a", "A"]


async def test_items_are_listed_in_one_form_with_ids(database: Database) -> None:
    stored = StoredResponses(database)
    given: list[Any] = [
        {"role": "user", "content": "a", "id": "msg_mine"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}], "id": "msg_mine"},
        {"role": "assistant", "content": "b"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "Hm"}]},
    ]
    ready = await turn(stored, given, "A")
    items = await stored.input_items(KEY, ready.response_id)
    assert [item["type"] for item in items] == [
        "message",
        "message",
        "message",
        "function_call",
        "function_call_output",
        "reasoning",
    ]
    assert len({item["id"] for item in items}) == 6
    assert items[0]["content"] == [{"type": "input_text", "text": "a"}]
    assert items[1]["content"][0]["detail"] == "auto"
    assert items[2]["content"] == [{"type": "output_text", "text": "b", "annotations": []}]


async def test_items_may_be_referred_to(database: Database) -> None:
    stored = StoredResponses(database)
    one = await turn(stored, "a", "A")
    await stored.flush()
    [question, answer] = await stored.load_chain(KEY, one.response_id)
    refer = [{"type": "item_reference", "id": question["id"]}, {"id": answer["id"]}, {"role": "user", "content": "b"}]
    ready = await prepare({"input": refer}, KEY, stored)
    assert ready.document["input"] == [question, answer, refer[2]]
    on = await prepare({"input": refer[1:], "previous_response_id": one.response_id}, KEY, stored)
    assert on.document["input"] == [question, answer, answer, refer[2]]
    stranger = await prepare({"input": refer}, OTHER, stored)
    assert stranger.document["input"] == refer


def test_a_conversation_has_a_longest_length(database: Database) -> None:
    rows = [row(f"r{i}", f"r{i - 1}" if i else None) for i in range(stored_responses.MOST_LINKS + 5)]
    database.write(lambda s: s.add_all([StoredResponseRow(**one) for one in rows]))
    links = database.read(lambda s: stored_responses.links(s, KEY, rows[-1]["id"], LONG_AGO))
    assert len(links) == stored_responses.MOST_LINKS
    assert [link.id for link in links[:2]] == [rows[-1]["id"], rows[-2]["id"]]
    assert links[-1].previous_id == "r4"


def row(id: str, previous: str | None) -> dict[str, Any]:
    times = {"created_at": LONG_AGO, "expires_at": datetime.now(UTC) + timedelta(days=1)}
    return {"id": id, "key_id": KEY, "previous_id": previous, "input": "[]", "response": "{}", "size": 4} | times


async def asked(stored: StoredResponses, method: str, path: str, query: bytes = b"", key: str = KEY) -> Any:
    status, body = await answer_stored(stored, method, f"/v1/responses/{path}", query, key)
    return status, orjson.loads(body)


async def test_pages_of_items(database: Database) -> None:
    stored = StoredResponses(database)
    given = [{"role": "user", "content": str(i), "id": f"msg_{i}"} for i in range(25)]
    first = await turn(stored, given, "A")
    ready = await turn(stored, "last", "B", first.response_id)
    path = f"{ready.response_id}/input_items"
    seen: list[str] = []
    query, pages = b"order=asc&limit=10", 0
    while True:
        status, page = await asked(stored, "GET", path, query)
        assert (status, page["object"]) == (200, "list")
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        seen += texts(page["data"])
        pages += 1
        if not page["has_more"]:
            break
        query = b"order=asc&limit=10&after=" + page["last_id"].encode()
    assert pages == 3
    assert seen == [*map(str, range(25)), "A", "last"]
    _, newest = await asked(stored, "GET", path)
    assert texts(newest["data"]) == list(reversed(seen))[:20]
    assert newest["has_more"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        (b"limit=0", "limit"),
        (b"limit=101", "limit"),
        (b"limit=00100000", "limit"),
        (b"limit=x", "limit"),
        (b"limit=", "limit"),
        (b"order=up", "order"),
        (b"after=msg_unknown", "after"),
        (b"after=%ff%00", "after"),
    ],
)
async def test_pages_that_cannot_be(database: Database, query: bytes, param: str) -> None:
    stored = StoredResponses(database)
    ready = await turn(stored, "a", "A")
    status, body = await asked(stored, "GET", f"{ready.response_id}/input_items", query)
    assert (status, body["error"]["param"]) == (400, param)


async def test_paths(database: Database) -> None:
    stored = StoredResponses(database)
    ready = await turn(stored, "a", "A")
    id = ready.response_id
    assert await asked(stored, "GET", id) == (200, response_of(ready, "A"))
    expected = {
        ("POST", f"{id}/cancel"): (400, "cannot_cancel"),
        ("POST", "resp_unknown/cancel"): (404, "not_found"),
        ("GET", f"{id}/cancel"): (405, "method_not_allowed"),
        ("POST", id): (405, "method_not_allowed"),
        ("PUT", id): (405, "method_not_allowed"),
        ("GET", f"{id}/other"): (404, "unknown_url"),
        ("GET", f"{id}/input_items/x"): (404, "unknown_url"),
        ("GET", ""): (404, "unknown_url"),
        ("GET", "resp_unknown"): (404, "not_found"),
        ("GET", "resp_unknown/input_items"): (404, "not_found"),
        ("DELETE", "resp_unknown"): (404, "not_found"),
    }
    for (method, path), (status, code) in expected.items():
        found, body = await asked(stored, method, path)
        assert (found, body["error"]["code"]) == (status, code), (method, path)
    assert (await asked(stored, "GET", id, b"stream=true"))[1]["error"]["param"] == "stream"
    assert (await asked(stored, "GET", id, key=OTHER))[0] == 404
    assert (await asked(stored, "DELETE", id, key=OTHER))[0] == 404
    assert await asked(stored, "DELETE", id) == (200, {"id": id, "object": "response", "deleted": True})
    assert (await asked(stored, "GET", id))[0] == 404
