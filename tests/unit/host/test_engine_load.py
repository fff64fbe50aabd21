"""How full an engine is goes along with its answers, to gateways and no further."""

import asyncio
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.access.authority import name_of_host
from fleet.engines.adapter import Queue
from fleet.http.connection import Connection
from fleet.http.dial import connect
from fleet.policy.engine_load import parse
from fleet.policy.replica import EngineLoad
from tests.doors import HostDoor, host_door, ticket, visitor
from tests.unit.gateway.engines import Exchange, raw_engine
from tests.unit.host.waiting import eventually
from tests.unit.host.world import INSTANCE as WATCHED
from tests.unit.host.world import World
from worker_host.engine_load import FRESH_S, LastLook
from worker_host.proxy import Running

INSTANCE = "chat/1-a"


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1), st.floats(0, FRESH_S))
def test_what_a_host_says_a_gateway_reads(in_flight: int, waiting: int, kv: float, age: float) -> None:
    look = LastLook()
    look.note(Queue(running=1, waiting=waiting, kv_usage=kv), 100.0)
    read = parse(look.header(in_flight, 100.0 + age), 7.0)
    assert read is not None
    assert (read.at, read.in_flight, read.waiting) == (7.0, in_flight, waiting)
    assert read.kv_used == pytest.approx(kv, abs=0.0006)


def test_what_is_old_or_not_known_is_not_said() -> None:
    look = LastLook()
    assert look.header(3, 100.0) == b"3"
    look.note(Queue(running=1, waiting=2), 100.0)
    assert look.header(3, 100.0 + FRESH_S) == b"3;2;0"
    assert look.header(3, 100.1 + FRESH_S) == b"3"
    look.note(None, 106.0)
    assert look.header(3, 106.0) == b"3"
    assert parse(b"3", 1.0) == EngineLoad(1.0, 3)


@pytest.mark.parametrize("value", [b"", b";", b"1;2", b"1;2;3;4", b"-1", b"1;x;3", b"1 ;2;3", b"9" * 40, "١".encode()])
def test_what_is_no_load_is_none(value: bytes) -> None:
    assert parse(value, 1.0) is None


async def test_a_gateway_hears_of_all_requests_in_the_engine(tmp_path: Path) -> None:
    last_look = LastLook()
    last_look.note(Queue(running=2, waiting=1, kv_usage=0.25), time.monotonic())
    held = asyncio.Event()
    inside = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if b"/v1/slow" in exchange.head:
            inside.set()
            await held.wait()
        await exchange.answer(b"{}")

    async with host_door("h-1", tmp_path) as door, raw_engine(answer) as engine:
        door.engines[INSTANCE] = Running(1, int(engine.url.rpartition(":")[2]), last_look)
        slow, quick = await _connection(door), await _connection(door)
        slow.begin(_head("slow"), b"", slow.abort)
        async with asyncio.timeout(5):
            await inside.wait()
            quick.begin(_head("quick"), b"", quick.abort)
            await quick.head()
            assert quick.load == b"2;1;250"
            assert all(not name.startswith(b"holdfast") for name, _ in quick.headers)
            held.set()
            await slow.head()
        assert slow.load in (b"1;1;250", b"2;1;250")
        for connection in (slow, quick):
            connection.abort()


async def _connection(door: HostDoor) -> Connection:
    loop = asyncio.get_running_loop()
    return await connect(
        lambda: Connection(loop, 5.0, 5.0),
        "127.0.0.1",
        door.port,
        timeout=5.0,
        tls=visitor().tls,
        server_name=name_of_host("h-1"),
    )


def _head(path: str) -> bytes:
    token = ticket("h-1", instance=INSTANCE, fence=1)
    lines = [f"POST /engines/{INSTANCE}/v1/{path} HTTP/1.1", "host: x", f"authorization: Bearer {token}"]
    return "\r\n".join([*lines, "content-length: 0", "", ""]).encode()


async def test_the_watch_over_an_engine_tells_how_full_it_is(world: World) -> None:
    await world.serving()

    def said() -> bytes:
        running = world.supervisor.where(WATCHED)
        return running.last_look.header(4, time.monotonic()) if running is not None else b""

    await eventually(lambda: said() == b"4;0;0", what="its metrics were read")
