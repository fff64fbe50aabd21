"""Engines that misbehave, one way at a time."""

import asyncio
import re
from dataclasses import replace

import pytest

from api.gateway.app import Gateway
from tests.unit.gateway.client import Client
from tests.unit.gateway.conftest import FAST, GatewayFactory
from tests.unit.gateway.engines import (
    Exchange,
    RawEngine,
    echo,
    raw_engine,
    silent,
    stands_still,
    until,
    unused_port,
)
from tests.unit.gateway.world import KEY, World, in_flight, metric

EVENTS = [b'data: {"n": %d}\n\n' % n for n in range(5)]


async def serving(world: World, gateway: Gateway, *engines: RawEngine) -> Client:
    world.serve("m", *(engine.url for engine in engines))
    await gateway.refresh()
    return Client(gateway, KEY)


async def test_connections_are_reused(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as engine:
        client = await serving(world, gateway, engine)
        for _ in range(5):
            assert (await client.chat()).status == 200
        assert engine.connections == 1


async def test_concurrent_requests_get_connections_of_their_own(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as engine:
        client = await serving(world, gateway, engine)
        answers = await asyncio.gather(*(client.chat(n=n) for n in range(20)))
        assert [a.json["n"] for a in answers] == list(range(20))
        assert in_flight(gateway) == 0


async def test_idle_connections_are_closed_before_the_engine_would(world: World, start_gateway: GatewayFactory) -> None:
    gateway = await start_gateway(replace(FAST, keep_idle=0.05))
    async with raw_engine(echo) as engine:
        client = await serving(world, gateway, engine)
        await client.chat()
        await until(lambda: engine.open_connections == 0)
        assert (await client.chat()).status == 200


@pytest.mark.parametrize("framing", ["content-length", "chunked", "chunked with trailers", "http/1.0"])
async def test_replies_may_be_cut_at_every_byte(world: World, gateway: Gateway, framing: str) -> None:
    body = b'{"answer": "42"}'

    async def drip(exchange: Exchange) -> None:
        for byte in framed(framing, body):
            await exchange.write(bytes([byte]))
            await asyncio.sleep(0)
        if framing == "http/1.0":
            exchange.writer.close()

    async with raw_engine(drip) as engine:
        client = await serving(world, gateway, engine)
        for _ in range(2):
            answer = await client.chat()
            assert (answer.status, answer.body, answer.complete) == (200, body, True)
            assert answer.headers["content-type"] == "application/json"
        assert engine.connections == (2 if framing == "http/1.0" else 1)


def framed(framing: str, body: bytes) -> bytes:
    kind = b"Content-Type: application/json\r\n"
    if framing == "content-length":
        return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)
    if framing == "http/1.0":
        return b"HTTP/1.0 200 OK\r\n%b\r\n%b" % (kind, body)
    trailers = b"X-Sum: 1\r\n" if "trailers" in framing else b""
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    return b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n%b0\r\n%b\r\n" % (kind, chunks, trailers)


async def test_engine_errors_pass_through(world: World, gateway: Gateway) -> None:
    async def refuse(exchange: Exchange) -> None:
        status = re.findall(rb'"want": "([^"]+)"', exchange.body)[0].decode()
        await exchange.answer(b'{"error":"mine"}', status=status, headers="Retry-After: 7\r\nSet-Cookie: a=1\r\n")

    async with raw_engine(refuse) as engine:
        client = await serving(world, gateway, engine)
        for status in ("400 Bad Request", "429 Slow", "500 Oops", "503 Loading"):
            answer = await client.chat(want=status)
            assert (answer.status, answer.body) == (int(status[:3]), b'{"error":"mine"}')
            assert answer.headers["retry-after"] == "7"
            assert "set-cookie" not in answer.headers
        assert engine.connections == 1
        assert metric(gateway, "holdfast_gateway_requests_total", model="m", code="429") == 1


async def test_an_engines_5xx_about_the_request_is_the_clients_fault(world: World, gateway: Gateway) -> None:
    async def refuse(exchange: Exchange) -> None:
        status, message = re.findall(rb'"want": "([^"]+)", "say": "([^"]+)"', exchange.body)[0]
        await exchange.answer(b'{"error":{"message":"%b","code":500}}' % message, status=status.decode())

    async with raw_engine(refuse) as engine:
        client = await serving(world, gateway, engine)
        refused = await client.chat(want="500 Oops", say="Failed to parse tools: not a list")
        assert refused.status == 400
        assert "Failed to parse tools" in refused.error["message"]
        assert (await client.chat(want="501 No", say="start it otherwise")).status == 400
        broken = await client.chat(want="500 Oops", say="CUDA error: out of memory")
        assert (broken.status, broken.json["error"]["code"]) == (500, 500)
        assert engine.connections == 1, "the connection is used again"
        assert in_flight(gateway) == 0


async def test_interim_replies_are_skipped(world: World, gateway: Gateway) -> None:
    async def hint(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 103 Early Hints\r\nContent-Type: text/x\r\n\r\n")
        await exchange.answer(b"{}")

    async with raw_engine(hint) as engine:
        client = await serving(world, gateway, engine)
        answer = await client.chat()
        assert (answer.status, answer.body, answer.headers["content-type"]) == (
            200,
            b"{}",
            "application/json",
        )


async def test_a_reply_without_a_body_is_complete(world: World, gateway: Gateway) -> None:
    async with raw_engine(lambda e: e.write(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n")) as engine:
        client = await serving(world, gateway, engine)
        answer = await client.chat()
        assert (answer.status, answer.body, answer.complete) == (204, b"", True)
        assert "content-length" not in answer.headers


@pytest.mark.parametrize(
    "reply",
    [
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"\x00" * 100,
    ],
)
async def test_what_is_not_http_is_the_engines_failure(world: World, gateway: Gateway, reply: bytes) -> None:
    async with raw_engine(lambda exchange: exchange.write(reply)) as engine:
        client = await serving(world, gateway, engine)
        answer = await client.chat()
        assert (answer.status, answer.error["code"]) == (502, "engine_failed")
        assert len(engine.requests) == 1, "an engine that answered is not asked again"
        await until(lambda: engine.open_connections == 0)
        assert in_flight(gateway) == 0


async def test_bytes_after_the_reply_spoil_only_the_connection(world: World, gateway: Gateway) -> None:
    async def chatty(exchange: Exchange) -> None:
        await exchange.answer(b"{}" if exchange.number else b"")
        await exchange.answer(b"stale")

    async with raw_engine(chatty) as engine:
        client = await serving(world, gateway, engine)
        for n in range(1, 6):
            assert (await client.chat()).body == b"{}"
            await until(lambda: engine.open_connections == 0)
            assert engine.connections == n


async def test_connection_close_is_respected(world: World, gateway: Gateway) -> None:
    async with raw_engine(lambda e: e.answer(b"{}", headers="Connection: close\r\n")) as engine:
        client = await serving(world, gateway, engine)
        for _ in range(3):
            assert (await client.chat()).status == 200
        assert engine.connections == 3


async def test_a_pooled_connection_that_dies_is_tried_again(world: World, gateway: Gateway) -> None:
    async def closes_when_asked_twice(exchange: Exchange) -> None:
        if exchange.number == 2:
            exchange.hang_up()
        else:
            await echo(exchange)

    async with raw_engine(closes_when_asked_twice) as engine:
        client = await serving(world, gateway, engine)
        for n in range(4):
            assert (await client.chat(n=n)).json["n"] == n
        assert metric(gateway, "holdfast_gateway_retries_total", model="m") > 0
        assert in_flight(gateway) == 0


async def test_a_request_that_kills_engines_reaches_two_at_most(world: World, gateway: Gateway) -> None:
    async def die(exchange: Exchange) -> None:
        exchange.hang_up()

    async with raw_engine(die) as a, raw_engine(die) as b, raw_engine(die) as c:
        client = await serving(world, gateway, a, b, c)
        answer = await client.chat()
        assert (answer.status, answer.error["code"]) == (502, "engine_failed")
        assert sorted(len(e.requests) for e in (a, b, c)) == [0, 1, 1]
        assert in_flight(gateway) == 0


async def test_an_engine_that_dies_after_a_reply_byte_is_not_asked_again(world: World, gateway: Gateway) -> None:
    async def torso(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        exchange.writer.close()

    async with raw_engine(torso) as bad, raw_engine(torso) as other:
        client = await serving(world, gateway, bad, other)
        answer = await client.chat()
        assert (answer.status, answer.error["code"]) == (502, "engine_failed")
        assert len(bad.requests) + len(other.requests) == 1


async def test_a_long_reply_that_breaks_off_is_never_complete(world: World, gateway: Gateway) -> None:
    async def torso(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 1_000_000)
        exchange.hang_up()

    async with raw_engine(torso) as engine:
        client = await serving(world, gateway, engine)
        answer = await client.chat()
        assert answer.status == 200
        assert not answer.complete
        assert in_flight(gateway) == 0


async def test_events_come_one_by_one_as_the_engine_sends_them(world: World, gateway: Gateway) -> None:
    step = asyncio.Semaphore(0)

    async def stream(exchange: Exchange) -> None:
        await exchange.start_events()
        for event in EVENTS:
            await step.acquire()
            await exchange.chunk(event)
        await exchange.end_chunks()

    async with raw_engine(stream) as engine:
        client = await serving(world, gateway, engine)
        call = client.start_chat(stream=True)
        for n in range(len(EVENTS)):
            step.release()
            await until(lambda n=n: len(call.answer.chunks) == n + 1)  # type: ignore[misc]
        answer = await call.result()
        assert answer.chunks == EVENTS
        assert answer.complete
        assert answer.headers["content-type"] == "text/event-stream"
        assert metric(gateway, "holdfast_gateway_time_to_first_token_seconds_count", model="m") == 1


@pytest.mark.parametrize("torn", [b"", b'data: {"n": 5, "te'])
async def test_a_stream_that_breaks_off_ends_with_an_error_event(world: World, gateway: Gateway, torn: bytes) -> None:
    async def die(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.chunk(b"".join(EVENTS) + torn)
        exchange.writer.close()

    async with raw_engine(die) as engine:
        client = await serving(world, gateway, engine)
        answer = await client.chat(stream=True)
        *events, last, empty = answer.body.split(b"\n\n")
        assert [e + b"\n\n" for e in events] == EVENTS
        assert last.startswith(b'data: {"error":{"message":"The engine of the model')
        assert empty == b""
        assert not answer.complete, "the connection must be seen to break"
        assert metric(gateway, "holdfast_gateway_requests_total", model="m", code="502") == 1


async def test_a_silent_stream_is_ended_with_an_error_event(world: World, start_gateway: GatewayFactory) -> None:
    gateway = await start_gateway(replace(FAST, idle_timeout=0.1))

    async def stall(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.chunk(EVENTS[0])
        await exchange.gone()

    async with raw_engine(stall) as engine:
        client = await serving(world, gateway, engine)
        answer = await client.chat(stream=True)
        assert b"did not answer in time" in answer.body
        assert not answer.complete
        await until(lambda: engine.open_connections == 0)


async def test_an_engine_that_never_answers_times_out(world: World, start_gateway: GatewayFactory) -> None:
    gateway = await start_gateway(replace(FAST, first_byte_timeout=0.1))
    async with raw_engine(silent) as engine:
        client = await serving(world, gateway, engine)
        answer = await client.chat()
        assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
        assert len(engine.requests) == 1
        await until(lambda: engine.open_connections == 0)


async def test_when_nothing_can_be_reached_the_client_is_told_to_come_back(
    world: World, gateway: Gateway, client: Client
) -> None:
    ports = [await unused_port(), await unused_port()]
    world.serve("m", *(f"http://127.0.0.1:{port}" for port in ports))
    await gateway.refresh()
    answer = await client.chat()
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert in_flight(gateway) == 0


async def test_a_dead_endpoint_costs_no_request_and_is_soon_avoided(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as engine:
        world.serve("m", f"http://127.0.0.1:{await unused_port()}", engine.url)
        await gateway.refresh()
        client = Client(gateway, KEY)
        for _ in range(30):
            assert (await client.chat()).status == 200
        assert metric(gateway, "holdfast_gateway_retries_total", model="m") == FAST.avoid_after


async def test_an_endpoint_that_comes_back_is_used_again(world: World, start_gateway: GatewayFactory) -> None:
    gateway = await start_gateway(replace(FAST, avoid_for=0.05))
    port = await unused_port()
    async with raw_engine(echo) as engine:
        world.serve("m", f"http://127.0.0.1:{port}", engine.url)
        await gateway.refresh()
        client = Client(gateway, KEY)
        for _ in range(8):
            await client.chat()
        async with raw_engine(echo) as revived:
            world.add_endpoint("m", revived.url, instance="i-1")
            await gateway.refresh()
            for _ in range(4):
                assert (await client.chat()).status == 200
            assert len(revived.requests) == 2


async def test_retries_stop_when_the_budget_is_spent(world: World, start_gateway: GatewayFactory) -> None:
    gateway = await start_gateway(replace(FAST, avoid_after=10**9))
    async with raw_engine(echo) as engine:
        dead = [f"http://127.0.0.1:{await unused_port()}" for _ in range(5)]
        world.serve("m", *dead, engine.url)
        await gateway.refresh()
        client = Client(gateway, KEY)
        statuses = [(await client.chat()).status for _ in range(60)]
        assert set(statuses) == {200, 503}
        assert statuses[-20:] == [200] * 20, "those that fail are left alone by then"


async def test_load_is_spread_over_replicas(world: World, gateway: Gateway) -> None:
    async with raw_engine(silent) as a, raw_engine(silent) as b, raw_engine(silent) as c:
        client = await serving(world, gateway, a, b, c)
        calls = [client.start_chat() for _ in range(9)]
        await until(lambda: len(a.requests) + len(b.requests) + len(c.requests) == 9)
        assert [len(e.requests) for e in (a, b, c)] == [3, 3, 3]
        for call in calls:
            call.leave()
        await asyncio.gather(*(call.result() for call in calls))


async def test_an_engine_url_may_have_a_path(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as engine:
        world.serve("m", engine.url + "/engines/i-1/")
        await gateway.refresh()
        assert (await Client(gateway, KEY).chat()).status == 200
        assert engine.requests[0].startswith(b"POST /engines/i-1/v1/chat/completions HTTP/1.1\r\n")


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_stops_its_engine_at_once(world: World, gateway: Gateway, begun: bool) -> None:
    async def stream(exchange: Exchange) -> None:
        if begun:
            await exchange.start_events()
            await exchange.chunk(EVENTS[0])
        await exchange.gone()

    async with raw_engine(stream) as engine:
        client = await serving(world, gateway, engine)
        call = client.start_chat(stream=True)
        await until(lambda: len(engine.requests) == 1 and (not begun or bool(call.answer.chunks)))
        assert in_flight(gateway) == 1
        call.leave()
        await until(lambda: engine.open_connections == 0 and in_flight(gateway) == 0, within=0.5)
        await call.result()
        assert metric(gateway, "holdfast_gateway_requests_total", model="m", code="499") == 1


async def test_a_client_that_leaves_while_sending_asks_nothing(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as engine:
        client = await serving(world, gateway, engine)
        call = client.call("/v1/completions", parts=iter([b'{"model":', b'"m"}']))
        call.leave()
        await call.result()
        assert engine.requests == []
        assert call.answer.status == 0


async def test_a_cancelled_gateway_task_stays_cancelled(world: World, gateway: Gateway) -> None:
    async with raw_engine(silent) as engine:
        client = await serving(world, gateway, engine)
        call = client.start_chat()
        await until(lambda: len(engine.requests) == 1)
        call.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.task
        await until(lambda: engine.open_connections == 0 and in_flight(gateway) == 0)


async def test_a_client_that_does_not_read_holds_the_engine_back(world: World, gateway: Gateway) -> None:
    sent = 0
    total = 2000

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.start_events()
        for _ in range(total):
            await exchange.chunk(b"data: " + b"x" * 16_000 + b"\n\n")
            sent += 1
        await exchange.end_chunks()

    async with raw_engine(flood) as engine:
        client = await serving(world, gateway, engine)
        call = client.start_chat(stream=True, hold_after=3)
        await stands_still(lambda: sent)
        assert 0 < sent < total * 0.9
        call.reading.set()
        answer = await call.result()
        assert len(answer.body) == total * 16_008
        assert answer.complete


async def test_a_client_that_never_reads_is_given_up(world: World, start_gateway: GatewayFactory) -> None:
    gateway = await start_gateway(replace(FAST, idle_timeout=0.2))

    async def flood(exchange: Exchange) -> None:
        await exchange.start_events()
        while True:
            await exchange.chunk(b"data: " + b"x" * 16_000 + b"\n\n")

    async with raw_engine(flood) as engine:
        client = await serving(world, gateway, engine)
        call = client.start_chat(stream=True, hold_after=3)
        await call.result()
        await until(lambda: engine.open_connections == 0 and in_flight(gateway) == 0)
