"""Engines behind the doors of hosts: real TLS, tickets and proxies, straight and through a relay's tunnel."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from api.gateway.app import Gateway
from fleet.access.authority import new_key
from fleet.access.sealing import CannotOpen
from fleet.access.tickets import TicketSigner
from fleet.db.authority import Authority
from tests.connect_relay import connect_relay
from tests.doors import HostDoor, authority, host_door
from tests.unit.gateway.client import Client
from tests.unit.gateway.conftest import FAST, GatewayFactory
from tests.unit.gateway.engines import (
    Exchange,
    RawEngine,
    Reply,
    echo,
    raw_engine,
    silent,
    stands_still,
    until,
    unused_port,
)
from tests.unit.gateway.world import KEY, World, in_flight, metric

INSTANCE = "m/1-a"


@dataclass
class Fleet:
    """Engines of the deployment ``m``, each on a host of its own: ``m/1-a`` on ``h-1`` …"""

    world: World
    doors: list[HostDoor] = field(default_factory=list)
    engines: list[RawEngine] = field(default_factory=list)

    @property
    def asked(self) -> list[int]:
        return [len(engine.requests) for engine in self.engines]

    def publish(self, *, fence: int = 1) -> None:
        self.world.add_deployment("m", replicas=len(self.doors))
        for n, door in enumerate(self.doors, 1):
            self.world.add_host(door.host, http_port=door.port)
            url = f"https://127.0.0.1:{door.port}/engines/m/{n}-a"
            self.world.add_endpoint("m", url, instance=f"m/{n}-a", host=door.host, fence=fence)


@asynccontextmanager
async def fleet(world: World, folder: Path, *replies: Reply) -> AsyncIterator[Fleet]:
    made = Fleet(world)
    async with AsyncExitStack() as stack:
        for n, reply in enumerate(replies, 1):
            engine = await stack.enter_async_context(raw_engine(reply))
            door = await stack.enter_async_context(host_door(f"h-{n}", folder / f"h-{n}"))
            door.runs(f"m/{n}-a", engine.url)
            made.doors.append(door)
            made.engines.append(engine)
        made.publish()
        yield made


async def statuses(gateway: Gateway, number: int) -> Counter[int]:
    client = Client(gateway, KEY)
    return Counter([(await client.chat()).status for _ in range(number)])


async def hang_up(exchange: Exchange) -> None:
    exchange.hang_up()


# -- the way there -------------------------------------------------------------------------------------------------


async def test_an_engine_is_asked_through_its_host(world: World, gateway: Gateway, tmp_path: Path) -> None:
    async with fleet(world, tmp_path, echo) as f:
        await gateway.refresh()
        answer = await Client(gateway, KEY).chat(n=5)
        assert (answer.status, answer.json["n"]) == (200, 5)
        assert f.engines[0].requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert b"uthorization" not in f.engines[0].requests[0]
        assert f.doors[0].server.take_refusals() == ()


async def test_connections_to_hosts_are_kept(world: World, start_gateway: GatewayFactory, tmp_path: Path) -> None:
    gateway = await start_gateway(replace(FAST, keep_idle=0.01))
    accepted = 0
    async with fleet(world, tmp_path, echo) as f:
        await gateway.refresh()
        server = f.doors[0].server

        async def counted(scope: dict[str, object], *rest: object) -> None:
            nonlocal accepted
            peers.add(scope["client"])
            await server(scope, *rest)  # type: ignore[arg-type]

        peers: set[object] = set()
        f.doors[0].server = counted  # type: ignore[assignment]
        assert await statuses(gateway, 5) == {200: 5}
        assert len(peers) == 1


async def test_events_pass_one_by_one_and_a_client_that_leaves_stops_the_engine(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.chunk(b"data: 1\n\n")
        await exchange.gone()

    async with fleet(world, tmp_path, stream) as f:
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat(stream=True)
        await until(lambda: call.answer.chunks == [b"data: 1\n\n"])
        call.leave()
        await until(lambda: f.engines[0].open_connections == 0 and in_flight(gateway) == 0, within=1.0)


async def test_a_client_that_does_not_read_holds_the_engine_back(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    sent, total = 0, 4000

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.start_events()
        for _ in range(total):
            await exchange.chunk(b"data: " + b"x" * 16_000 + b"\n\n")
            sent += 1
        await exchange.end_chunks()

    async with fleet(world, tmp_path, flood):
        await gateway.refresh()
        call = Client(gateway, KEY).start_chat(stream=True, hold_after=3)
        await stands_still(lambda: sent)
        assert 0 < sent < total * 0.9
        call.reading.set()
        answer = await call.result(within=30)
        assert len(answer.body) == total * 16_008
        assert answer.complete


async def test_engines_of_a_suspect_host_are_asked_last(world: World, gateway: Gateway, tmp_path: Path) -> None:
    async with fleet(world, tmp_path, echo, echo) as f:
        world.add_host("h-1", state="suspect", http_port=f.doors[0].port)
        await gateway.refresh()
        assert await statuses(gateway, 6) == {200: 6}
        assert f.asked == [0, 6]
        world.add_host("h-1", http_port=f.doors[0].port)
        await gateway.refresh()
        await statuses(gateway, 6)
        assert f.asked == [3, 9]


async def test_a_host_that_moves_is_followed_and_answers_on_their_way_go_on(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.chunk(b"data: 1\n\n")
        await go_on.wait()
        await exchange.chunk(b"data: 2\n\n")
        await exchange.end_chunks()

    async with fleet(world, tmp_path, stream) as f, host_door("h-1", tmp_path / "moved") as moved:
        await gateway.refresh()
        client = Client(gateway, KEY)
        begun = client.start_chat(stream=True)
        await until(lambda: bool(begun.answer.chunks))
        moved.runs(INSTANCE, f.engines[0].url)
        f.doors[0].engines.clear()
        world.add_host("h-1", http_port=moved.port)
        await gateway.refresh()
        go_on.set()
        assert (await client.chat(stream=True)).complete
        assert (await begun.result()).body == b"data: 1\n\ndata: 2\n\n"
        assert moved.server.loads().popitem()[1].requests == 1


async def test_who_else_is_at_the_address_of_a_host_gets_no_request(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async with fleet(world, tmp_path, echo) as f, host_door("h-9", tmp_path / "h-9") as other:
        other.runs(INSTANCE, f.engines[0].url)
        world.add_host("h-1", http_port=other.port)
        await gateway.refresh()
        assert (await Client(gateway, KEY).chat()).status == 503
        assert f.asked == [0]
        assert other.server.take_refusals() == (), "not even a ticket"


async def test_a_plain_server_at_the_address_of_a_host_gets_no_request(world: World, gateway: Gateway) -> None:
    async with raw_engine(echo) as plain:
        world.add_deployment("m")
        world.add_host("h-1", http_port=int(plain.url.rpartition(":")[2]))
        world.add_endpoint("m", plain.url, instance=INSTANCE, host="h-1")
        await gateway.refresh()
        assert (await Client(gateway, KEY).chat()).status == 503
        assert plain.requests == []


# -- what goes wrong there -----------------------------------------------------------------------------------------


def gone(f: Fleet) -> None:
    f.doors[0].engines.clear()


def stale(f: Fleet) -> None:
    f.doors[0].runs(INSTANCE, f.engines[0].url, fence=2)


def other_keys(f: Fleet) -> None:
    f.doors[0].server._guard._tickets.trust([TicketSigner(new_key()).public_key])


def late_clock(f: Fleet) -> None:
    now = f.doors[0].now()
    f.doors[0].now = lambda: now + 10_000


@pytest.mark.parametrize(
    ("wrong", "status", "says"),
    [
        (gone, 503, "can be reached"),
        (stale, 503, "can be reached"),
        (other_keys, 502, "refuses the gateway's ticket (invalid)"),
        (late_clock, 502, "refuses the gateway's ticket (expired)"),
    ],
)
async def test_a_host_that_lets_nobody_in_is_an_engine_that_fails_and_not_the_clients_fault(
    world: World, gateway: Gateway, tmp_path: Path, wrong: Callable[[Fleet], None], status: int, says: str
) -> None:
    async with fleet(world, tmp_path, echo, echo) as f:
        await gateway.refresh()
        wrong(f)
        assert await statuses(gateway, 8) == {200: 8}
        assert f.asked == [0, 8]
        world.remove_endpoint("m/2-a")
        await gateway.refresh()
        answer = await Client(gateway, KEY).chat()
        assert (answer.status, says in answer.error["message"]) == (status, True), answer.error
        assert not any(name.startswith("holdfast-") for name in answer.headers)
        assert in_flight(gateway) == 0


async def test_an_engine_that_is_not_there_while_its_host_is_costs_no_request_and_is_soon_avoided(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async with fleet(world, tmp_path, echo, echo) as f:
        f.doors[0].runs(INSTANCE, f"http://127.0.0.1:{await unused_port()}")
        await gateway.refresh()
        assert await statuses(gateway, 30) == {200: 30}
        assert metric(gateway, "holdfast_gateway_retries_total", model="m") == FAST.avoid_after


async def test_an_engine_that_comes_back_is_used_again(
    world: World, start_gateway: GatewayFactory, tmp_path: Path
) -> None:
    gateway = await start_gateway(replace(FAST, avoid_for=0.05))
    async with fleet(world, tmp_path, echo, echo) as f:
        f.doors[0].engines.clear()
        await gateway.refresh()
        await statuses(gateway, 8)
        f.doors[0].runs(INSTANCE, f.engines[0].url)
        async with asyncio.timeout(5):
            while f.asked[0] < 2:
                assert await statuses(gateway, 1) == {200: 1}


async def test_an_engines_own_404_is_passed_on_even_if_it_poses_as_the_door(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    reply = "404 Not Found"
    async with fleet(
        world, tmp_path, lambda e: e.answer(b'{"mine":1}', status=reply, headers="Holdfast-Refused: gone\r\n")
    ):
        await gateway.refresh()
        answer = await Client(gateway, KEY).chat()
        assert (answer.status, answer.body) == (404, b'{"mine":1}')


async def test_a_request_that_kills_engines_reaches_two_at_most(world: World, gateway: Gateway, tmp_path: Path) -> None:
    async with fleet(world, tmp_path, hang_up, hang_up, hang_up) as f:
        await gateway.refresh()
        answer = await Client(gateway, KEY).chat()
        assert (answer.status, answer.error["code"]) == (502, "engine_failed")
        assert sorted(f.asked) == [0, 1, 1]
        assert in_flight(gateway) == 0


async def test_an_engine_that_only_ended_an_old_connection_is_asked_again(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async def twice_and_no_more(exchange: Exchange) -> None:
        await (hang_up if exchange.number == 2 else echo)(exchange)

    async with fleet(world, tmp_path, twice_and_no_more):
        await gateway.refresh()
        assert await statuses(gateway, 6) == {200: 6}
        assert metric(gateway, "holdfast_gateway_retries_total", model="m") > 0


async def test_an_engine_that_dies_before_it_answers_fails_over_to_another(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async with fleet(world, tmp_path, hang_up, echo):
        await gateway.refresh()
        assert await statuses(gateway, 10) == {200: 10}


async def test_a_stream_that_breaks_off_ends_with_an_error_event(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async def die(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.chunk(b"data: 1\n\n")
        exchange.writer.close()

    async with fleet(world, tmp_path, die):
        await gateway.refresh()
        answer = await Client(gateway, KEY).chat(stream=True)
        assert answer.body.startswith(b'data: 1\n\ndata: {"error":')
        assert not answer.complete


async def test_a_request_that_is_sent_again_gets_a_connection_of_its_own_behind_the_host_too(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async def tired(exchange: Exchange) -> None:
        await (echo if exchange.number == 1 else hang_up)(exchange)

    async with fleet(world, tmp_path, tired, tired) as f:
        await gateway.refresh()
        assert await statuses(gateway, 8) == {200: 8}
        assert sum(f.asked) > 8, "old connections did end"
        assert not any(b"holdfast-" in head for engine in f.engines for head in engine.requests)


async def test_a_host_process_that_ends_breaks_off_what_it_carries_and_the_next_one_is_found(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async with raw_engine(silent) as engine:
        async with host_door("h-1", tmp_path / "a") as door:
            f = Fleet(world, [door], [engine])
            f.publish()
            door.runs(INSTANCE, engine.url)
            await gateway.refresh()
            waiting = Client(gateway, KEY).start_chat()
            await until(lambda: len(engine.requests) == 1)
            port = door.port
        answer = await waiting.result()
        assert (answer.status, answer.error["code"]) == (502, "engine_failed")
        assert in_flight(gateway) == 0
    async with raw_engine(echo) as engine, host_door("h-1", tmp_path / "b", port=port) as door:
        door.runs(INSTANCE, engine.url)
        assert (await Client(gateway, KEY).chat()).status == 200


async def test_what_waits_at_a_host_whose_process_ends_is_asked_elsewhere(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async with raw_engine(silent) as slow, fleet(world, tmp_path, echo) as f:
        async with host_door("h-2", tmp_path / "h-2") as ending:
            ending.runs("m/2-a", slow.url)
            f.doors.append(ending)
            f.publish()
            world.add_host("h-1", state="suspect", http_port=f.doors[0].port)
            await gateway.refresh()
            waiting = [Client(gateway, KEY).start_chat(n=n) for n in range(3)]
            await until(lambda: len(slow.requests) == 3)
        assert [(await call.result()).json["n"] for call in waiting] == [0, 1, 2]


async def test_requests_wait_for_a_host_whose_process_is_replaced(
    world: World, start_gateway: GatewayFactory, tmp_path: Path
) -> None:
    gateway = await start_gateway(replace(FAST, return_patience=20.0))
    go_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        if not go_on.is_set():
            await exchange.gone()
        await echo(exchange)

    async with raw_engine(slow) as engine:
        async with host_door("h-1", tmp_path / "a") as door:
            Fleet(world, [door], [engine]).publish()
            door.runs(INSTANCE, engine.url)
            await gateway.refresh()
            client = Client(gateway, KEY)
            begun = [client.start_chat(n=n) for n in range(3)]
            await until(lambda: len(engine.requests) == 3)
            port = door.port
        later = [client.start_chat(n=n) for n in range(3, 6)]
        go_on.set()
        await until(lambda: gateway._routing.get("m").destinations[0].patient >= 3)
        async with host_door("h-1", tmp_path / "b", port=port) as door:
            door.runs(INSTANCE, engine.url)
            assert [(await call.result()).json["n"] for call in (*begun, *later)] == list(range(6))
        assert in_flight(gateway) == 0


async def test_no_more_requests_wait_for_a_host_than_may_and_none_for_longer(
    world: World, start_gateway: GatewayFactory, tmp_path: Path
) -> None:
    gateway = await start_gateway(replace(FAST, return_patience=0.5, waiting_at_most=2))
    world.add_deployment("m")
    world.add_host("h-1", http_port=await unused_port())
    world.add_endpoint("m", "https://x", instance=INSTANCE, host="h-1")
    await gateway.refresh()
    calls = [Client(gateway, KEY).start_chat() for _ in range(6)]
    done, waiting = await asyncio.wait([c.task for c in calls], timeout=0.3)
    assert (len(done), len(waiting)) == (4, 2)
    assert {(await call.result()).status for call in calls} == {503}


async def test_a_client_that_leaves_while_it_waits_for_a_host_is_forgotten(
    world: World, start_gateway: GatewayFactory, tmp_path: Path
) -> None:
    gateway = await start_gateway(replace(FAST, return_patience=20.0))
    world.add_deployment("m")
    world.add_host("h-1", http_port=await unused_port())
    world.add_endpoint("m", "https://x", instance=INSTANCE, host="h-1")
    await gateway.refresh()
    call = Client(gateway, KEY).start_chat()
    await until(lambda: gateway._routing.get("m").destinations[0].patient == 1)
    call.leave()
    await call.result(within=1.0)
    assert (
        gateway._routing.get("m").destinations[0].patient,
        gateway._routing.get("m").destinations[0].pool.in_flight,
    ) == (0, 0)


# -- tunnels -------------------------------------------------------------------------------------------------------


async def test_a_host_that_cannot_be_reached_is_asked_through_its_tunnel(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async with fleet(world, tmp_path, echo) as f, connect_relay() as relay:
        relay.hosts["h-1"] = f.doors[0].port
        world.add_host("h-1", address="", http_port=0, tunnel_only=True, tunnel_url=relay.url)
        await gateway.refresh()
        assert await statuses(gateway, 5) == {200: 5}
        assert relay.asked == ["h-1:443"], "one way for all"


async def test_a_tunnel_that_is_cut_and_restored_loses_no_later_request(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    async with fleet(world, tmp_path, echo) as f, connect_relay() as relay:
        relay.hosts["h-1"] = f.doors[0].port
        world.add_host("h-1", tunnel_only=True, tunnel_url=relay.url)
        await gateway.refresh()
        for _ in range(5):
            assert await statuses(gateway, 2) == {200: 2}
            relay.cut()
        assert len(relay.asked) == 5


async def test_a_tunnel_to_somebody_else_carries_nothing(world: World, gateway: Gateway, tmp_path: Path) -> None:
    async with fleet(world, tmp_path, echo) as f, connect_relay() as relay, host_door("h-9", tmp_path / "h-9") as other:
        relay.hosts["h-1"] = other.port
        other.runs(INSTANCE, f.engines[0].url)
        world.add_host("h-1", tunnel_only=True, tunnel_url=relay.url)
        await gateway.refresh()
        assert (await Client(gateway, KEY).chat()).status == 503
        assert f.asked == [0]


@pytest.mark.parametrize("way", ["none", "elsewhere", "down"])
async def test_without_a_tunnel_other_replicas_are_asked(
    world: World, gateway: Gateway, tmp_path: Path, way: str
) -> None:
    async with fleet(world, tmp_path, echo, echo) as f, connect_relay() as relay:
        url = {"none": "", "elsewhere": relay.url, "down": f"http://127.0.0.1:{await unused_port()}"}[way]
        world.add_host("h-1", tunnel_only=True, tunnel_url=url)
        await gateway.refresh()
        assert await statuses(gateway, 6) == {200: 6}
        assert f.asked == [0, 6]
        world.remove_endpoint("m/2-a")
        await gateway.refresh()
        assert (await Client(gateway, KEY).chat()).status == 503


async def test_a_tunnel_that_moves_is_followed_and_answers_on_their_way_go_on(
    world: World, gateway: Gateway, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.chunk(b"data: 1\n\n")
        await go_on.wait()
        await exchange.end_chunks()

    async with fleet(world, tmp_path, stream) as f, connect_relay() as one, connect_relay() as two:
        one.hosts["h-1"] = two.hosts["h-1"] = f.doors[0].port
        world.add_host("h-1", tunnel_only=True, tunnel_url=one.url)
        await gateway.refresh()
        begun = Client(gateway, KEY).start_chat(stream=True)
        await until(lambda: bool(begun.answer.chunks))
        for move, expected in (({"tunnel_only": True, "tunnel_url": two.url}, 1), ({"http_port": f.doors[0].port}, 1)):
            world.add_host("h-1", **({"tunnel_only": False} | move))
            await gateway.refresh()
            later = Client(gateway, KEY).start_chat(stream=True)
            await until(lambda later=later: bool(later.answer.chunks))  # type: ignore[misc]
            assert (len(one.asked), len(two.asked)) == (1, expected)
        go_on.set()
        assert (await begun.result()).complete


# -- keys ----------------------------------------------------------------------------------------------------------


async def test_a_gateway_whose_keys_cannot_be_read_comes_up_when_they_can(world: World, tmp_path: Path) -> None:
    down = True

    def keys() -> Authority:
        if down:
            raise OperationalError("select", {}, OSError("away"))
        return authority()

    async with fleet(world, tmp_path, echo):
        gateway = Gateway(world.database, keys=keys, options=FAST)
        await gateway.start()
        try:
            assert not gateway.ready
            assert (await Client(gateway, KEY).chat()).status == 503
            down = False
            await until(lambda: gateway.ready)
            assert (await Client(gateway, KEY).chat()).status == 200
        finally:
            await gateway.stop()


async def test_a_gateway_with_another_master_key_says_so_and_is_not_ready(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def keys() -> Authority:
        raise CannotOpen("the value was sealed with another master key or credential")

    gateway = Gateway(world.database, keys=keys, options=FAST)
    with caplog.at_level(logging.ERROR):
        await gateway.start()
    await gateway.stop()
    assert not gateway.ready
    assert [r for r in caplog.records if "HOLDFAST_MASTER_KEY" in r.getMessage()]
