"""Answers of engines that speak the Responses API themselves."""

from typing import Any

import orjson
import pytest

from api.gateway.responses import Collect, Prepared, prepare
from tests.unit.gateway.responses.shapes import EVENTS, JSON, Nothing, prepared

NATIVE: dict[str, Any] = {
    "id": "resp_engine",
    "object": "response",
    "status": "completed",
    "output": [],
    "store": False,
    "previous_response_id": None,
    "own": {"field": 1.5},
}
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hi"}\n\n'


class Before(Nothing):
    async def load_chain(self, key_id: str, response_id: str) -> list[dict[str, Any]]:
        return [{"type": "message", "role": "user", "content": "earlier", "id": "msg_1"}]


class Kept(list[dict[str, Any]]):
    def __call__(self, prepared: Prepared, response: dict[str, Any]) -> None:
        self.append(response)


def named(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


async def test_engines_get_the_whole_conversation_and_are_told_to_store_nothing() -> None:
    asked = {"model": "m", "input": "Hi", "previous_response_id": "resp_1", "tools": [{"type": "web_search"}]}
    ready = await prepare(asked, "k", Before())
    assert ready.document == {
        "model": "m",
        "input": [
            {"type": "message", "role": "user", "content": "earlier", "id": "msg_1"},
            {"type": "message", "role": "user", "content": "Hi"},
        ],
        "tools": [{"type": "web_search"}],
        "store": False,
    }
    assert asked["previous_response_id"] == "resp_1"
    assert ready.history == 1
    alone = await prepared(input="Hi")
    assert alone.document == {"model": "m", "input": "Hi", "store": False}


async def test_a_body_is_kept_and_says_what_the_client_asked_for() -> None:
    ready = await prepare({"model": "m", "input": "Hi", "previous_response_id": "resp_1"}, "k", Before())
    kept = Kept()
    collect = Collect(ready, kept)
    assert collect.head(200, [*JSON, (b"content-length", b"9")]) == (200, JSON)
    body = orjson.dumps(NATIVE)
    assert collect.feed(body[:9]) + collect.feed(body[9:]) == b""
    assert orjson.loads(collect.end()) == NATIVE | {"store": True, "previous_response_id": "resp_1"}
    assert kept == [NATIVE | {"store": True, "previous_response_id": "resp_1"}]


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
async def test_of_a_stream_the_last_response_is_kept(kind: str) -> None:
    kept = Kept()
    collect = Collect(await prepared(stream=True), kept)
    collect.head(200, EVENTS)
    begun = collect.feed(named("response.created", response=NATIVE | {"status": "in_progress"}, sequence_number=0))
    assert b'"store":true' in begun
    assert kept == []
    assert collect.feed(DELTA) == DELTA
    last = collect.feed(named(f"response.{kind}", response=NATIVE | {"status": kind}, sequence_number=9))
    assert kept == [NATIVE | {"status": kind, "store": True}]
    assert orjson.loads(last.split(b"data: ")[1]) == {
        "type": f"response.{kind}",
        "response": NATIVE | {"status": kind, "store": True},
        "sequence_number": 9,
    }
    assert collect.end() == b""


@pytest.mark.parametrize(
    "piece", [DELTA, b": response.completed\n\n", b'data: "response.completed"\n\n', b"data: response.completed\n\n"]
)
async def test_everything_else_passes_as_it_is(piece: bytes) -> None:
    kept = Kept()
    collect = Collect(await prepared(stream=True), kept)
    collect.head(200, EVENTS)
    assert collect.feed(piece) == piece
    assert kept == []


async def test_nothing_is_kept_that_is_not_to_be_stored() -> None:
    kept = Kept()
    collect = Collect(await prepared(store=False), kept)
    collect.head(200, JSON)
    collect.feed(orjson.dumps(NATIVE))
    assert orjson.loads(collect.end()) == NATIVE
    assert kept == []


@pytest.mark.parametrize(
    ("status", "body"), [(400, orjson.dumps({"error": {"message": "m"}})), (200, b"no json"), (200, b'{"object":"x"}')]
)
async def test_errors_and_what_is_no_response_pass_as_they_are(status: int, body: bytes) -> None:
    kept = Kept()
    collect = Collect(await prepared(), kept)
    collect.head(status, JSON)
    assert collect.feed(body) + collect.end() == body
    assert kept == []


async def test_a_body_too_large_to_be_looked_at_passes() -> None:
    kept = Kept()
    collect = Collect(await prepared(), kept)
    collect.head(200, JSON)
    part = b"x" * (1 << 20)
    passed = sum(len(collect.feed(part)) for _ in range(20))
    assert passed + len(collect.end()) == 20 << 20
    assert kept == []
