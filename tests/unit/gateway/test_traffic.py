"""What the gateway counts of each engine's answers, and how it gets into the database."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlmodel import Session, col, select

from api.gateway.app import Gateway
from fleet.db import traffic
from fleet.db.session import Database
from fleet.db.tables import TrafficRow
from fleet.policy.canary import Reading
from fleet.policy.latency import quantile
from tests.unit.gateway.client import Client
from tests.unit.gateway.conftest import FAST, GatewayFactory
from tests.unit.gateway.engines import Exchange, echo, raw_engine, silent, until, unused_port
from tests.unit.gateway.world import KEY, World

QUIET = replace(FAST, traffic_interval=3600.0)
"""Writes only when a test says so."""


@pytest.fixture
async def gateway(start_gateway: GatewayFactory) -> Gateway:
    return await start_gateway(QUIET)


def serve(world: World, *urls: str, launch: int = 1) -> None:
    world.add_deployment("m", replicas=len(urls))
    for n, url in enumerate(urls, 1):
        world.add_endpoint("m", url, instance=f"i-{n}", launch=launch)


async def flush(gateway: Gateway) -> None:
    await gateway._traffic.flush()


def rows(world: World) -> list[TrafficRow]:
    return list(world.database.read(lambda s: s.exec(select(TrafficRow).order_by(col(TrafficRow.instance_id))).all()))


def counted(world: World) -> dict[str, tuple[int, int, int]]:
    """By instance: requests, errors, and answers that were begun."""
    return {row.instance_id: (row.requests, row.errors, sum(row.latency)) for row in rows(world)}


async def test_requests_and_the_engines_own_errors_are_counted(world: World, gateway: Gateway) -> None:
    async def answer(exchange: Exchange) -> None:
        want = re.findall(rb'"want": "([^"]+)", "say": "([^"]+)"', exchange.body)
        status, message = want[0] if want else (b"200 OK", b"")
        await exchange.answer(b'{"error":{"message":"%b"}}' % message, status=status.decode())

    async with raw_engine(answer) as engine:
        serve(world, engine.url)
        await gateway.refresh()
        client = Client(gateway, KEY)
        await client.chat()
        await client.chat(want="400 Bad Request", say="no")
        await client.chat(want="429 Slow", say="down")
        await client.chat(want="500 Oops", say="Failed to parse tools: not a list")
        await flush(gateway)
        assert counted(world) == {"i-1": (4, 0, 4)}, "clients make these errors"
        await client.chat(want="500 Oops", say="CUDA error")
        await client.chat(want="503 Loading", say="later")
        await flush(gateway)
        assert counted(world) == {"i-1": (6, 2, 6)}
        (row,) = rows(world)
        assert (row.deployment, row.launch, row.fence, row.gateway) == ("m", 1, 1, gateway._traffic.gateway)


async def test_an_engine_that_fails_is_counted_on_every_attempt(world: World, gateway: Gateway) -> None:
    async def die(exchange: Exchange) -> None:
        exchange.hang_up()

    async with raw_engine(die) as dying, raw_engine(echo) as well:
        serve(world, dying.url, well.url, f"http://127.0.0.1:{await unused_port()}")
        await gateway.refresh()
        client = Client(gateway, KEY)
        assert [(await client.chat()).status for _ in range(9)] == [200] * 9
        await flush(gateway)
        sums = counted(world)
        assert dying.requests
        assert sums["i-1"] == (len(dying.requests), len(dying.requests), 0)
        assert sums["i-2"] == (9, 0, 9)
        assert sums["i-3"][0] == sums["i-3"][1] > 0


async def test_an_answer_that_breaks_off_is_one_request_and_one_error(world: World, gateway: Gateway) -> None:
    async def torn(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.chunk(b"data: 1\n\n")
        exchange.writer.close()

    async with raw_engine(torn) as engine:
        serve(world, engine.url)
        await gateway.refresh()
        await Client(gateway, KEY).chat(stream=True)
        await flush(gateway)
        assert counted(world) == {"i-1": (1, 1, 1)}


async def test_an_error_that_breaks_off_is_one_request_and_one_error(world: World, gateway: Gateway) -> None:
    async def torn(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n")
        await exchange.chunk(b'{"error":')
        exchange.writer.close()

    async with raw_engine(torn) as engine:
        serve(world, engine.url)
        await gateway.refresh()
        assert (await Client(gateway, KEY).chat()).status == 502
        await flush(gateway)
        assert counted(world) == {"i-1": (1, 1, 1)}


async def test_an_engine_that_is_too_slow_is_counted_as_failing(world: World, start_gateway: GatewayFactory) -> None:
    gateway = await start_gateway(replace(QUIET, first_byte_timeout=0.1))
    async with raw_engine(silent) as engine:
        serve(world, engine.url)
        await gateway.refresh()
        assert (await Client(gateway, KEY).chat()).status == 504
        await flush(gateway)
        assert counted(world) == {"i-1": (1, 1, 0)}


async def test_a_client_that_leaves_is_not_held_against_the_engine(world: World, gateway: Gateway) -> None:
    async def stream(exchange: Exchange) -> None:
        if b"begin" in exchange.body:
            await exchange.start_events()
            await exchange.chunk(b"data: 1\n\n")
        await exchange.gone()

    async with raw_engine(stream) as engine:
        serve(world, engine.url)
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat(begin=True)
        await until(lambda: bool(call.answer.chunks))
        call.leave()
        await call.result()
        call = Client(gateway, KEY).start_chat()
        await until(lambda: len(engine.requests) == 2)
        call.leave()
        await call.result()
        await flush(gateway)
        assert counted(world) == {"i-1": (1, 0, 1)}


async def test_what_was_withdrawn_is_not_held_against_the_engine(world: World, gateway: Gateway) -> None:
    async with raw_engine(silent) as gone, raw_engine(echo) as well:
        serve(world, gone.url)
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat()
        await until(lambda: len(gone.requests) == 1)
        world.add_endpoint("m", well.url, instance="i-1", fence=2)
        await gateway.refresh()
        await call.result()
        await flush(gateway)
        assert [(row.fence, row.requests, row.errors) for row in rows(world)] == [(2, 1, 0)]


async def test_time_until_the_first_byte_is_counted_and_not_that_of_the_whole_answer(
    world: World, gateway: Gateway
) -> None:
    release = asyncio.Event()

    async def two_steps(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        await exchange.start_events()
        await exchange.chunk(b"data: 1\n\n")
        await release.wait()
        await exchange.end_chunks()

    async with raw_engine(two_steps) as engine:
        serve(world, engine.url)
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat(stream=True)
        await until(lambda: bool(call.answer.chunks))
        await flush(gateway)
        (row,) = rows(world)
        begun = quantile(row.latency, 1.0)
        assert begun is not None
        assert begun >= 0.08, "the bucket from 40 to 80 ms, or a slower one"
        release.set()
        await call.result()
        await flush(gateway)
        assert rows(world)[0].latency == row.latency


async def test_they_are_written_by_themselves(world: World, start_gateway: GatewayFactory) -> None:
    gateway = await start_gateway(replace(FAST, traffic_interval=0.02))
    async with raw_engine(echo) as engine:
        serve(world, engine.url)
        await gateway.refresh()
        await Client(gateway, KEY).chat()
        await until(lambda: counted(world) == {"i-1": (1, 0, 1)})


async def test_nothing_is_written_when_nothing_changed(
    world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = traffic.write

    def counting(session: Session, gateway: str, sums: Sequence[traffic.Sums]) -> None:
        written.append(len(sums))
        write(session, gateway, sums)

    monkeypatch.setattr(traffic, "write", counting)
    async with raw_engine(echo) as a, raw_engine(echo) as b:
        serve(world, a.url, b.url)
        await gateway.refresh()
        await flush(gateway)
        client = Client(gateway, KEY)
        await client.chat()
        await client.chat()
        await flush(gateway)
        await flush(gateway)
        await client.chat()
        await flush(gateway)
    assert written == [2, 1]


async def test_a_database_that_is_down_loses_nothing(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as engine:
        serve(world, engine.url)
        await gateway.refresh()
        client = Client(gateway, KEY)
        await client.chat()
        await flush(gateway)
        rename(world.database, "traffic", "hidden")
        for _ in range(3):
            assert (await client.chat()).status == 200
            await flush(gateway)
        rename(world.database, "hidden", "traffic")
        assert counted(world) == {"i-1": (1, 0, 1)}
        await flush(gateway)
        assert counted(world) == {"i-1": (4, 0, 4)}


async def test_the_last_sums_of_an_engine_that_is_gone_are_written(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as engine:
        serve(world, engine.url)
        await gateway.refresh()
        await Client(gateway, KEY).chat()
        world.remove_endpoint("i-1")
        await gateway.refresh()
        await until(lambda: not list(gateway._routing.upstreams))
        await flush(gateway)
        assert counted(world) == {"i-1": (1, 0, 1)}
        serve(world, engine.url)
        await gateway.refresh()
        await Client(gateway, KEY).chat()
        await flush(gateway)
        assert counted(world) == {"i-1": (2, 0, 2)}, "it counts on when it comes back under its fence"


async def test_a_gateway_that_stops_writes_what_it_has(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as engine:
        serve(world, engine.url)
        await gateway.refresh()
        await Client(gateway, KEY).chat()
        await gateway.stop()
        assert counted(world) == {"i-1": (1, 0, 1)}


async def test_rows_of_a_deleted_deployment_are_deleted(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as engine:
        serve(world, engine.url)
        world.add_deployment("other")
        world.add_endpoint("other", engine.url, instance="o-1")
        await gateway.refresh()
        await Client(gateway, KEY).chat()
        await Client(gateway, KEY).chat("other")
        await flush(gateway)
        world.remove_endpoint("i-1")
        world.remove_deployment("m")
        await gateway.refresh()
        await flush(gateway)
        assert set(counted(world)) == {"o-1"}
        await flush(gateway)
        assert set(counted(world)) == {"o-1"}


async def test_gateways_count_side_by_side(world: World, start_gateway: GatewayFactory) -> None:
    gateways = [await start_gateway(QUIET) for _ in range(3)]
    async with raw_engine(echo) as engine:
        serve(world, engine.url)
        for gateway in gateways:
            await gateway.refresh()
            await Client(gateway, KEY).chat()
            await flush(gateway)
        reading = world.database.read(lambda s: traffic.read(s, "m", 1))
        assert (reading.requests, reading.errors, sum(reading.latency)) == (3, 0, 3)
        assert world.database.read(lambda s: traffic.read(s, "m", 2)) == Reading()


def rename(database: Database, table: str, name: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} RENAME TO {name}"))


async def test_an_engine_that_says_it_cannot_is_counted_though_another_answers(world: World, gateway: Gateway) -> None:
    async def cannot(exchange: Exchange) -> None:
        await exchange.answer(b'{"error": {"message": "loading"}}', status="503 Loading")

    async with raw_engine(cannot) as bad, raw_engine(echo) as well:
        serve(world, bad.url, well.url)
        await gateway.refresh()
        client = Client(gateway, KEY)
        assert [(await client.chat()).status for _ in range(4)] == [200] * 4
        await flush(gateway)
        assert bad.requests
        assert counted(world)["i-1"] == (len(bad.requests), len(bad.requests), len(bad.requests))
