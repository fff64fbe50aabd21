"""Which engine gets a request, and what becomes of those in an engine that dies, hangs or vanishes."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from api.gateway.app import Gateway
from fleet.http.connection import Connection
from fleet.http.dial import VANISHED_AFTER_S, connect
from tests.unit.gateway.client import Client
from tests.unit.gateway.conftest import FAST, GatewayFactory
from tests.unit.gateway.engines import Exchange, RawEngine, echo, raw_engine, silent, until, unused_port
from tests.unit.gateway.world import KEY, World, in_flight, metric


def publish(world: World, *engines: RawEngine, states: tuple[str, ...] = (), launches: tuple[int, ...] = ()) -> None:
    """A deployment ``m`` with these as ``i-1``, ``i-2``, …"""
    world.add_deployment("m", replicas=len(engines))
    for n, engine in enumerate(engines):
        world.add_endpoint(
            "m",
            engine.url,
            instance=f"i-{n + 1}",
            state=states[n] if states else "ready",
            launch=launches[n] if launches else 1,
        )


def asked(*engines: RawEngine) -> list[int]:
    return [len(engine.requests) for engine in engines]


async def requests(gateway: Gateway, number: int) -> Counter[int]:
    """Statuses of so many, one after another."""
    client = Client(gateway, KEY)
    return Counter([(await client.chat()).status for _ in range(number)])


async def test_a_suspect_engine_is_asked_only_when_no_other_is_left(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as suspect, raw_engine(echo) as well:
        publish(world, suspect, well, states=("suspect", "ready"))
        await gateway.refresh()
        assert await requests(gateway, 10) == {200: 10}
        assert asked(suspect, well) == [0, 10]
        world.remove_endpoint("i-2")
        await gateway.refresh()
        assert await requests(gateway, 10) == {200: 10}
        assert asked(suspect, well) == [10, 10]


async def test_a_suspect_engine_serves_when_the_ready_ones_cannot_be_reached(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as suspect:
        publish(world, suspect, RawEngine(f"http://127.0.0.1:{await unused_port()}"), states=("suspect", "ready"))
        await gateway.refresh()
        assert await requests(gateway, 10) == {200: 10}


async def test_an_engine_that_took_the_place_of_a_dead_one_is_found_before_a_request_is_refused(
    world: World, start_gateway: GatewayFactory
) -> None:
    gateway = await start_gateway(replace(FAST, poll_interval=3600.0))
    async with raw_engine(echo) as new:
        publish(world, RawEngine(f"http://127.0.0.1:{await unused_port()}"))
        await gateway.refresh()
        world.add_endpoint("m", new.url, instance="i-1", fence=2)
        assert await requests(gateway, 3) == {200: 3}


async def test_a_draining_engine_gets_nothing_new(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as draining, raw_engine(echo) as well:
        publish(world, draining, well, states=("draining", "ready"))
        await gateway.refresh()
        await requests(gateway, 4)
        assert asked(draining, well) == [0, 4]


async def test_requests_are_shared_out_by_weight(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as a, raw_engine(echo) as b, raw_engine(echo) as canary:
        publish(world, a, b, canary, launches=(1, 1, 2))
        world.add_deployment("m", traffic={"1": 90, "2": 10})
        await gateway.refresh()
        assert await requests(gateway, 15) == {200: 15}
        assert asked(a, b, canary) == [7, 7, 1]
        world.add_key("hf-key-that-makes-a-new-table")
        await gateway.refresh()
        await requests(gateway, 5)
        assert asked(a, b, canary) == [9, 9, 2], "a new table does not begin the shares anew"


async def test_new_weights_take_effect_with_the_next_table(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as blue, raw_engine(echo) as green:
        publish(world, blue, green, launches=(1, 2))
        for traffic, expected in ({"1": 1, "2": 0}, [6, 0]), ({"1": 0, "2": 1}, [6, 6]), ({}, [9, 9]):
            world.add_deployment("m", traffic=traffic)
            await gateway.refresh()
            await requests(gateway, 6)
            assert asked(blue, green) == expected


async def test_a_launch_that_cannot_serve_passes_its_requests_on(world: World, gateway: Gateway) -> None:
    nobody = RawEngine(f"http://127.0.0.1:{await unused_port()}")
    async with raw_engine(echo) as well:
        for traffic in ({"1": 50, "2": 50}, {"1": 100, "2": 0}):
            publish(world, nobody, well, launches=(1, 2))
            world.add_deployment("m", traffic=traffic)
            await gateway.refresh()
            assert await requests(gateway, 20) == {200: 20}
        world.remove_endpoint("i-1")
        await gateway.refresh()
        assert await requests(gateway, 20) == {200: 20}


@pytest.mark.parametrize("concurrent", [10, 30])  # an engine that has not said how many gets no more than 32
@pytest.mark.parametrize("pooled", [False, True])
async def test_no_request_fails_when_one_of_two_engines_dies(
    world: World, gateway: Gateway, concurrent: int, pooled: bool
) -> None:
    waiting: list[Exchange] = []

    async def hold(exchange: Exchange) -> None:
        if pooled and exchange.number == 1:
            await exchange.answer(b"{}")
            return
        waiting.append(exchange)
        await exchange.gone()

    async with raw_engine(hold) as dying:
        publish(world, dying)
        await gateway.refresh()
        client = Client(gateway, KEY)
        if pooled:  # so that its death looks like that of idle connections
            await asyncio.gather(*(client.chat() for _ in range(concurrent)))
        calls = [client.start_chat() for _ in range(concurrent)]
        await until(lambda: len(waiting) == concurrent)
        async with raw_engine(echo) as well:
            publish(world, dying, well)
            await gateway.refresh()
            for exchange in waiting:
                exchange.hang_up()
            answers = await asyncio.gather(*(call.result() for call in calls))
    assert Counter(answer.status for answer in answers) == {200: concurrent}
    assert in_flight(gateway) == 0


async def test_a_request_whose_pooled_connection_died_is_sent_to_another_engine(world: World, gateway: Gateway) -> None:
    async def die_after_the_first(exchange: Exchange) -> None:
        if len(exchange.engine.requests) == 1:
            await exchange.answer(b"{}")
        else:
            exchange.hang_up()

    async def busy(exchange: Exchange) -> None:
        await (silent if len(exchange.engine.requests) == 1 else echo)(exchange)

    async with raw_engine(die_after_the_first) as dying, raw_engine(busy) as well:
        publish(world, dying)
        await gateway.refresh()
        await requests(gateway, 1)
        publish(world, dying, well, states=("suspect", "ready"))
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat()
        await until(lambda: len(well.requests) == 1)
        publish(world, dying, well)
        await gateway.refresh()
        assert await requests(gateway, 1) == {200: 1}
        assert asked(dying, well) == [2, 2], "the one that died has less to do, and is not asked again all the same"
        call.leave()
        await call.result()


async def test_a_request_is_sent_again_over_a_connection_that_was_not_used_before(
    world: World, gateway: Gateway
) -> None:
    """Two old connections may end at the same time, and then none of the two engines is at fault."""

    async def once_per_connection(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.answer(b"{}")
        else:
            exchange.hang_up()

    async with raw_engine(once_per_connection) as a, raw_engine(once_per_connection) as b:
        publish(world, a, b)
        await gateway.refresh()
        assert await requests(gateway, 12) == {200: 12}
        assert max(asked(a, b)) > 2


async def test_an_engine_that_ended_an_old_connection_is_asked_again_when_the_other_cannot_be_reached(
    world: World, gateway: Gateway
) -> None:
    async def once_per_connection(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.answer(b"{}")
        else:
            exchange.hang_up()

    async with raw_engine(once_per_connection) as well:
        publish(world, RawEngine(f"http://127.0.0.1:{await unused_port()}"), well)
        await gateway.refresh()
        assert await requests(gateway, 4) == {200: 4}, "few enough for the retry budget"


async def test_what_was_withdrawn_is_moved_without_asking_the_retry_budget(world: World, gateway: Gateway) -> None:
    async with raw_engine(silent) as first, raw_engine(silent) as second, raw_engine(echo) as third:
        publish(world, first)
        await gateway.refresh()
        calls = [Client(gateway, KEY).start_chat() for _ in range(30)]
        for fence, (before, after) in enumerate(((first, second), (second, third)), 2):
            await until(lambda before=before: len(before.requests) == 30)  # type: ignore[misc]
            world.add_endpoint("m", after.url, instance="i-1", fence=fence)
            await gateway.refresh()
        assert {(await call.result(within=5)).status for call in calls} == {200}


async def test_what_waits_in_a_vanished_engine_is_asked_elsewhere_at_once(world: World, gateway: Gateway) -> None:
    async with raw_engine(silent) as partitioned, raw_engine(echo) as well:
        publish(world, partitioned)
        await gateway.refresh()
        calls = [Client(gateway, KEY).start_chat(n=n) for n in range(30)]
        await until(lambda: len(partitioned.requests) == 30)
        world.add_endpoint("m", well.url, instance="i-2")
        await gateway.refresh()
        assert in_flight(gateway) == 30, "an engine that is there keeps what it has"
        world.remove_endpoint("i-1")
        await gateway.refresh()
        answers = [await call.result(within=2) for call in calls]
        assert [answer.json["n"] for answer in answers] == list(range(30))
        await until(lambda: partitioned.open_connections == 0)


async def test_what_waits_in_a_vanished_engine_goes_to_its_successor(world: World, gateway: Gateway) -> None:
    async with raw_engine(silent) as old, raw_engine(echo) as new:
        publish(world, old)
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat()
        await until(lambda: len(old.requests) == 1)
        world.remove_endpoint("i-1")
        await gateway.refresh()
        assert in_flight(gateway) == 1, "while there is nobody else, it may still answer"
        world.add_endpoint("m", new.url, instance="i-1", fence=2)
        await gateway.refresh()
        assert (await call.result(within=2)).status == 200
        assert metric(gateway, "holdfast_gateway_retries_total", model="m") == 1


async def test_a_draining_engine_finishes_what_it_has(world: World, gateway: Gateway) -> None:
    may_answer = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await may_answer.wait()
        await exchange.answer(b'{"by": "the old one"}')

    async with raw_engine(slow) as old, raw_engine(echo) as new:
        publish(world, old)
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat()
        await until(lambda: len(old.requests) == 1)
        publish(world, old, new, states=("draining", "ready"))
        await gateway.refresh()
        await requests(gateway, 3)
        may_answer.set()
        assert (await call.result()).json == {"by": "the old one"}
        assert asked(old, new) == [1, 3]


async def test_an_answer_that_has_begun_stays_with_a_vanished_engine(world: World, gateway: Gateway) -> None:
    may_go_on = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.chunk(b"data: 1\n\n")
        await may_go_on.wait()
        await exchange.chunk(b"data: 2\n\n")
        await exchange.end_chunks()

    async with raw_engine(stream) as old, raw_engine(echo) as new:
        publish(world, old, new)
        world.remove_endpoint("i-2")
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat(stream=True)
        await until(lambda: bool(call.answer.chunks))
        world.add_endpoint("m", new.url, instance="i-2")
        world.remove_endpoint("i-1")
        await gateway.refresh()
        may_go_on.set()
        answer = await call.result()
        assert (answer.body, answer.complete) == (b"data: 1\n\ndata: 2\n\n", True)


async def test_a_request_that_waits_in_one_vanished_engine_after_another_is_not_passed_on_for_ever(
    world: World, gateway: Gateway
) -> None:
    async with raw_engine(silent) as engine:
        publish(world, engine)
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat()
        for fence in range(1, 4):
            await until(lambda fence=fence: len(engine.requests) == fence)  # type: ignore[misc]
            world.add_endpoint("m", engine.url, instance="i-1", fence=fence + 1)
            await gateway.refresh()
        answer = await call.result()
        assert (answer.status, answer.error["code"]) == (502, "engine_failed")
        assert len(engine.requests) == 3


async def test_nothing_is_sent_over_a_connection_that_was_made_too_late(
    world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine was withdrawn while the connection to it was being made."""
    connecting, may_connect = asyncio.Event(), asyncio.Event()

    async def slowly(
        make: Callable[[], Connection], host: str, port: int, *, tls: bool | None, timeout: float
    ) -> Connection:
        connecting.set()
        await may_connect.wait()
        return await connect(make, host, port, tls=tls, timeout=timeout)

    monkeypatch.setattr("api.gateway.way.connect", slowly)
    async with raw_engine(echo) as late, raw_engine(echo) as well:
        publish(world, late)
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat()
        await connecting.wait()
        publish(world, late, well)
        world.remove_endpoint("i-1")
        await gateway.refresh()
        may_connect.set()
        assert (await call.result()).status == 200
        assert asked(late, well) == [0, 1]


async def test_the_kernel_is_told_to_notice_when_a_host_vanishes() -> None:
    """A cut network says nothing; that it works is tested with namespaces."""
    async with raw_engine(silent) as engine:
        host, _, port = engine.url.removeprefix("http://").partition(":")
        loop = asyncio.get_running_loop()
        connection = await connect(lambda: Connection(loop, 5.0, 5.0), host, int(port), tls=False, timeout=5.0)
        sock = cast(asyncio.Transport, connection._transport).get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == VANISHED_AFTER_S * 1000
        connection.abort()
