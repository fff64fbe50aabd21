"""What requests used, as the management API sums it up."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from fleet.db import usage
from fleet.usage import Usage, UsageRecord
from tests.unit.api.world import World

PATH = "/api/v1/usage"
AT = datetime(2026, 11, 30, 4, 30, tzinfo=UTC)


def record(number: int, *, at: datetime = AT, key: str = "key-1", route: str = "chat", **changes: Any) -> UsageRecord:
    fields: dict[str, Any] = {"deployment": "d", "operation": "chat.completions", "status": 200, "duration_s": 1.0}
    used = Usage(
        prompt_tokens=10, cached_tokens=4, completion_tokens=3, reasoning_tokens=2, audio_seconds=0.5, images=1
    )
    return UsageRecord(
        request_id=f"r-{number}", at=at, key_id=key, route=route, usage=changes.pop("usage", used), **fields | changes
    )


def put(world: World, *records: UsageRecord) -> None:
    world.database.write(lambda s: usage.write(s, records))


async def items(api: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    answer = await api.get(PATH, params=params)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def test_everything_is_summed_up(world: World, api: httpx.AsyncClient) -> None:
    put(world, record(1), record(2, status=499, usage=Usage(prompt_tokens=5, estimated=True)))
    assert await items(api) == [
        {
            "group": {},
            "key_name": None,
            "requests": 2,
            "failed": 1,
            "estimated": 1,
            "prompt_tokens": 15,
            "cached_tokens": 4,
            "completion_tokens": 3,
            "reasoning_tokens": 2,
            "audio_seconds": 0.5,
            "images": 1,
        }
    ]


async def test_nothing_used_is_zero(api: httpx.AsyncClient) -> None:
    [total] = await items(api)
    assert (total["requests"], total["prompt_tokens"], total["audio_seconds"]) == (0, 0, 0.0)
    assert await items(api, by="route") == []


async def test_by_each_of_what_can_be_told_apart(world: World, api: httpx.AsyncClient) -> None:
    put(
        world,
        record(1),
        record(2, at=AT + timedelta(hours=1), key="key-2", route="embed", operation="embeddings"),
        record(3, at=AT + timedelta(days=1), deployment="provider:x"),
    )

    async def groups(*by: str) -> list[tuple[tuple[str, ...], int]]:
        return [(tuple(i["group"][d] for d in by), i["requests"]) for i in await items(api, by=by)]

    assert await groups("key") == [(("key-1",), 2), (("key-2",), 1)]
    assert await groups("route") == [(("chat",), 2), (("embed",), 1)]
    assert await groups("deployment") == [(("d",), 2), (("provider:x",), 1)]
    assert await groups("operation") == [(("chat.completions",), 2), (("embeddings",), 1)]
    assert await groups("day") == [(("2026-11-30",), 2), (("2026-12-01",), 1)]
    assert await groups("hour") == [((f"2026-{h}:00Z",), 1) for h in ("11-30T04", "11-30T05", "12-01T04")]
    assert await groups("day", "route") == [
        (("2026-11-30", "chat"), 1),
        (("2026-11-30", "embed"), 1),
        (("2026-12-01", "chat"), 1),
    ]


async def test_keys_are_named(world: World, api: httpx.AsyncClient) -> None:
    created = (await api.post("/api/v1/api-keys", json={"name": "billing"})).json()
    put(world, record(1, key=created["id"]), record(2, key="key-gone"))
    named = {i["group"]["key"]: i["key_name"] for i in await items(api, by="key")}
    assert named == {created["id"]: "billing", "key-gone": None}


async def test_only_of_a_time_and_a_kind(world: World, api: httpx.AsyncClient) -> None:
    put(world, *(record(n, at=AT + timedelta(minutes=n), route="chat" if n % 2 else "embed") for n in range(6)))
    [total] = await items(api, **{"from": "2026-11-30T04:31:00", "to": "2026-11-30T05:34:00+01:00"})
    assert total["requests"] == 3
    [total] = await items(api, route="chat", key="key-1")
    assert total["requests"] == 3
    [total] = await items(api, route="'; drop table usage; --")
    assert total["requests"] == 0


async def test_pages_join_without_gap_or_overlap(world: World, api: httpx.AsyncClient) -> None:
    routes = [f"r{n % 5}/ü-{n % 3}" for n in range(15)]
    put(world, *(record(n, route=route, key=f"key-{n % 2}") for n, route in enumerate(routes)))
    seen: list[tuple[str, str]] = []
    cursor = None
    while True:
        params: dict[str, Any] = {"by": ["key", "route"], "limit": 4} | ({"cursor": cursor} if cursor else {})
        answer = (await api.get(PATH, params=params)).json()
        assert len(answer["items"]) <= 4
        seen += [(i["group"]["key"], i["group"]["route"]) for i in answer["items"]]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    assert sorted(seen) == sorted({(f"key-{n % 2}", route) for n, route in enumerate(routes)})
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("cursor", ["x", "WyJhIl0=", "WzFd", "W10=", "%00", "é", "W1siYSJdLFtdXQ=="])
async def test_a_cursor_of_another_list_is_refused(api: httpx.AsyncClient, cursor: str) -> None:
    answer = await api.get(PATH, params={"by": ["key", "route"], "cursor": cursor})
    assert (answer.status_code, answer.json()["field"]) == (422, "cursor")


@pytest.mark.parametrize("params", [{"by": "colour"}, {"from": "yesterday"}, {"limit": 0}])
async def test_what_cannot_be_asked_is_said(api: httpx.AsyncClient, params: dict[str, Any]) -> None:
    assert (await api.get(PATH, params=params)).status_code == 422


async def test_only_administrators_read_it(world: World) -> None:
    world.add_key("hf-inference", "inference")
    async with world.client("hf-inference") as client:
        assert (await client.get(PATH)).status_code == 403


async def test_old_rows_go(world: World, api: httpx.AsyncClient) -> None:
    put(world, record(1, at=AT - timedelta(days=2)), record(2))
    assert world.database.write(lambda s: usage.prune(s, AT - timedelta(days=1))) == 1
    assert world.database.write(lambda s: usage.prune(s, AT - timedelta(days=1))) == 0
    [total] = await items(api)
    assert total["requests"] == 1
