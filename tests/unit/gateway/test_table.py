import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from api.gateway.app import Gateway
from api.gateway.options import Options
from api.gateway.table import Host, load
from fleet.access.secrets import digest
from fleet.db.session import Database
from tests.unit.gateway.client import Client
from tests.unit.gateway.engines import echo, raw_engine, silent, until
from tests.unit.gateway.world import CREATED, KEY, World, in_flight, metric


def test_table_holds_keys_deployments_and_ready_endpoints(world: World) -> None:
    world.add_key("hf-key-gone")
    world.revoke_key("hf-key-gone")
    world.add_key("hf-key-admin", scope="admin", expires_in=60)
    world.add_deployment("a", phase="deploying", replicas=3)
    world.add_endpoint("a", "http://127.0.0.1:1", instance="a-1", fence=4, capacity=8)
    world.add_endpoint("a", "http://127.0.0.1:2", instance="a-2", state="draining")

    table = world.database.read(load)

    assert set(table.keys) == {digest(KEY), digest("hf-key-admin")}
    assert table.keys[digest(KEY)].scope == "inference"
    admin = table.keys[digest("hf-key-admin")]
    assert admin.expires_at is not None
    assert admin.expires_at > datetime.now(UTC)
    known = table.deployments["a"]
    assert (known.phase, known.desired_replicas, known.created_at) == ("deploying", 3, CREATED.timestamp())
    (endpoint,) = table.endpoints["a"]
    assert (endpoint.instance_id, endpoint.fence, endpoint.capacity) == ("a-1", 4, 8)
    assert table.draining == {("a-2", 1)}


def test_an_endpoint_is_suspect_when_its_engine_or_its_host_is(world: World) -> None:
    world.add_deployment("m")
    for n, state in enumerate(("ready", "suspect", "ready", "ready", "ready"), 1):
        host = f"h-{n}" if n > 1 else None
        world.add_endpoint("m", f"http://127.0.0.1:{n}", instance=f"i-{n}", state=state, host=host)
        world.add_host(f"h-{n}", state={4: "suspect", 5: "lost"}.get(n, "ready"))
    endpoints = world.database.read(load).endpoints["m"]
    assert [e.instance_id for e in endpoints] == ["i-1", "i-2", "i-3", "i-4", "i-5"]
    assert [e.instance_id for e in endpoints if e.suspect] == ["i-2", "i-4", "i-5"]


def test_an_endpoint_is_where_its_host_is_now(world: World) -> None:
    world.add_deployment("m")
    world.add_endpoint("m", "https://10.0.0.1:7/engines/m/1-a", instance="m/1-a", host="h-1")
    world.add_endpoint("m", "https://10.0.0.2:7/engines/m/2-a", instance="m/2-a", host="h-2")
    world.add_host("h-1", address="10.0.0.9", http_port=7000)
    world.add_host("h-2", address="", http_port=0, tunnel_only=True, tunnel_url="http://10.0.0.3:8482")
    assert [e.host for e in world.database.read(load).endpoints["m"]] == [
        Host("h-1", "10.0.0.9", 7000),
        Host("h-2", "", 0, tunnel_only=True, tunnel_url="http://10.0.0.3:8482"),
    ]


@pytest.mark.parametrize("where", [None, {"address": ""}, {"http_port": 0}, {"http_port": 1 << 16}])
def test_an_endpoint_whose_host_is_nowhere_is_left_out(world: World, where: dict[str, Any] | None) -> None:
    world.add_deployment("m")
    world.add_endpoint("m", "https://10.0.0.1:7/engines/m/1-a", instance="m/1-a", host="h-1")
    if where is not None:
        world.add_host("h-1", **where)
    assert "m" not in world.database.read(load).endpoints


def test_table_holds_weights_by_launch(world: World) -> None:
    world.add_deployment("m", traffic={"3": 90, "4": 10})
    world.add_endpoint("m", "http://127.0.0.1:1", launch=4)
    table = world.database.read(load)
    assert table.deployments["m"].traffic == {3: 90, 4: 10}
    assert table.endpoints["m"][0].launch == 4


def test_table_cannot_be_changed(world: World) -> None:
    table = world.database.read(load)
    with pytest.raises(TypeError):
        table.keys["x"] = None  # type: ignore[index]
    with pytest.raises(AttributeError):
        table.version = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "ftp://h:1", "http://", "http://h:99999999", "http://h:x", "http://h /", "http://é:1"],
)
def test_an_endpoint_without_a_usable_url_is_left_out(world: World, url: str) -> None:
    world.add_deployment("a")
    world.add_endpoint("a", url, instance="a-1")
    world.add_endpoint("a", "https://engines.example:8443/a-2", instance="a-2")
    assert [e.instance_id for e in world.database.read(load).endpoints["a"]] == ["a-2"]


async def test_a_revoked_key_is_refused_within_a_second(
    world: World, start_gateway: Callable[[Options], Awaitable[Gateway]]
) -> None:
    gateway = await start_gateway(Options())
    client = Client(gateway, KEY)
    assert (await client.get("/v1/models")).status == 200
    world.revoke_key(KEY)
    revoked = time.monotonic()
    while (await client.get("/v1/models")).status == 200:
        assert time.monotonic() - revoked < 1.0
    assert (await client.get("/v1/models")).status == 401


async def test_a_new_model_is_served_within_a_second(
    world: World, start_gateway: Callable[[Options], Awaitable[Gateway]]
) -> None:
    client = Client(await start_gateway(Options()), KEY)
    async with raw_engine(echo) as engine:
        assert (await client.chat()).status == 404
        world.serve("m", engine.url)
        added = time.monotonic()
        while (await client.chat()).status != 200:
            assert time.monotonic() - added < 1.0


async def test_a_phase_that_did_not_bump_the_version_is_seen_at_the_next_reload(
    world: World, start_gateway: Callable[[Options], Awaitable[Gateway]]
) -> None:
    world.add_deployment("m", phase="pending")
    client = Client(await start_gateway(Options(poll_interval=0.02, reload_interval=0.2)), KEY)
    assert "pending" in (await client.chat()).error["message"]
    world.add_deployment("m", phase="failed", bump=False)
    async with asyncio.timeout(5):
        while "failed" not in (await client.chat()).error["message"]:
            pass


async def test_the_last_table_is_served_while_the_database_is_down(
    world: World, gateway: Gateway, client: Client, gateway_database: Database
) -> None:
    async with raw_engine(echo) as engine:
        world.serve("m", engine.url)
        await gateway.refresh()
        _rename(gateway_database, "registry", "hidden")
        await gateway.refresh()
        assert (await client.chat()).status == 200
        assert gateway.ready
        world_after = World(gateway_database)
        _rename(gateway_database, "hidden", "registry")
        world_after.revoke_key(KEY)
        await gateway.refresh()
        assert (await client.chat()).status == 401


async def test_a_gateway_starts_without_its_database_and_catches_up(
    world: World, start_gateway: Callable[[], Awaitable[Gateway]], gateway_database: Database
) -> None:
    _rename(gateway_database, "registry", "hidden")
    gateway = await start_gateway()
    client = Client(gateway, KEY)
    refused = await client.chat()
    assert not gateway.ready
    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"
    _rename(gateway_database, "hidden", "registry")
    await until(lambda: gateway.ready)
    assert (await client.get("/v1/models")).status == 200


async def test_in_flight_counts_survive_a_new_table(world: World, gateway: Gateway, client: Client) -> None:
    async with raw_engine(silent) as engine:
        world.serve("m", engine.url)
        await gateway.refresh()
        call = client.start_chat()
        await until(lambda: len(engine.requests) == 1)
        world.add_deployment("other")
        await gateway.refresh()
        assert in_flight(gateway) == 1
        world.remove_endpoint("i-1")
        await gateway.refresh()
        assert in_flight(gateway) == 1, "a withdrawn endpoint finishes what it has"
        call.leave()
        await call.result()
        await until(lambda: in_flight(gateway) == 0)
        assert metric(gateway, "holdfast_gateway_in_flight", endpoint="i-1") == 0


async def test_a_higher_fence_gets_the_next_request(world: World, gateway: Gateway, client: Client) -> None:
    async with raw_engine(echo) as old, raw_engine(echo) as new:
        world.serve("m", old.url)
        await gateway.refresh()
        await client.chat()
        world.add_endpoint("m", new.url, instance="i-1", fence=2)
        await gateway.refresh()
        await client.chat()
        assert (len(old.requests), len(new.requests)) == (1, 1)
        await until(lambda: old.open_connections == 0)


async def test_series_of_a_deleted_deployment_end(world: World, gateway: Gateway, client: Client) -> None:
    async with raw_engine(echo) as engine:
        world.serve("m", engine.url)
        await gateway.refresh()
        await client.chat()
        assert b'model="m"' in gateway.metrics.render()
        world.remove_endpoint("i-1")
        world.remove_deployment("m")
        await gateway.refresh()
        assert b'model="m"' not in gateway.metrics.render()


def _rename(database: Database, table: str, name: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} RENAME TO {name}"))


async def test_what_came_to_be_a_moment_ago_is_not_refused(
    start_gateway: Callable[[Options], Awaitable[Gateway]], world: World
) -> None:
    gateway = await start_gateway(Options(poll_interval=3600, reload_interval=3600))
    async with raw_engine(echo) as engine:
        assert (await Client(gateway, KEY).chat()).status == 404
        world.serve("m", engine.url)
        world.add_key("hf-key-fresh")
        assert (await Client(gateway, "hf-key-fresh").chat()).status == 200


async def test_a_flood_of_refusals_looks_at_the_database_seldom(
    start_gateway: Callable[[Options], Awaitable[Gateway]], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway(Options(poll_interval=3600, reload_interval=3600))
    looks = 0
    aread = Database.aread

    async def counted(self: Database, query: Callable[..., object]) -> object:
        nonlocal looks
        looks += 1
        return await aread(self, query)

    monkeypatch.setattr(Database, "aread", counted)
    client = Client(gateway, "hf-key-wrong")
    begin = time.monotonic()
    answers = await asyncio.gather(*(client.chat() for _ in range(200)))
    assert {a.status for a in answers} == {401}
    assert looks <= 2 + (time.monotonic() - begin) / 0.02
