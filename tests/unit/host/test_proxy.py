"""The way through the host's door to its engines, with real TLS and engines that misbehave."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.access.authority import name_of_host
from fleet.access.tickets import Scope
from fleet.inventory import EngineRef
from tests.doors import HostDoor, ticket, visitor
from tests.unit.gateway.engines import (
    Exchange,
    RawEngine,
    Reply,
    echo,
    raw_engine,
    stands_still,
    until,
    unused_port,
)

INSTANCE = "chat/1-a"
CHAT = f"/engines/{INSTANCE}/v1/chat/completions"


def good() -> str:
    """A ticket for the engine, made now: one that is made while tests are collected would have ended before them."""
    return ticket("h-1", Scope.ENGINE, INSTANCE, 1)


@asynccontextmanager
async def engine(door: HostDoor, reply: Reply = echo) -> AsyncIterator[RawEngine]:
    async with raw_engine(reply) as made:
        door.runs(INSTANCE, made.url)
        yield made


@pytest.fixture
async def http(door: HostDoor) -> AsyncIterator[httpx.AsyncClient]:
    base = f"https://127.0.0.1:{door.port}"
    async with httpx.AsyncClient(trust_env=False, verify=visitor().tls, base_url=base, timeout=10) as client:
        yield client


async def ask(
    http: httpx.AsyncClient, path: str = CHAT, *, method: str = "POST", token: str | None = None, **options: Any
) -> httpx.Response:
    token = good() if token is None else token
    headers = {"authorization": f"Bearer {token}"} if token else {}
    headers |= options.pop("headers", {})
    name = {"sni_hostname": name_of_host("h-1")}
    return await http.request(method, path, headers=headers, extensions=name, **options)


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    assert answer.json()["detail"]
    return answer.status_code, answer.headers["holdfast-refused"]


def in_flight(door: HostDoor) -> int:
    return sum(load.in_flight for load in door.server.loads().values())


# -- who may ask ---------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[int, Callable[[], str]]] = {
    "no_ticket": (401, lambda: ""),
    "invalid": (401, lambda: good()[:-2]),
    "expired": (401, lambda: ticket("h-1", Scope.ENGINE, INSTANCE, 1, now=1_000_000_000)),
    "other_host": (403, lambda: ticket("h-2", Scope.ENGINE, INSTANCE, 1)),
    "other_instance": (403, lambda: ticket("h-1", Scope.ENGINE, "chat/2-b", 1)),
    "stale_fence": (403, lambda: ticket("h-1", Scope.ENGINE, INSTANCE, 2)),
    "scope": (403, lambda: ticket("h-1", Scope.HOST, INSTANCE, 1)),
}


@pytest.mark.parametrize("reason", BAD)
async def test_an_engine_takes_a_ticket_for_just_this_engine(
    door: HostDoor, http: httpx.AsyncClient, reason: str
) -> None:
    status, make = BAD[reason]
    token = make()
    async with engine(door) as behind:
        assert refused(await ask(http, token=token, content=b"{}")) == (status, reason)
        assert behind.connections == 0
        [told] = door.server.take_refusals()
        assert (told.reason, told.instance_id, told.peer, told.count) == (reason, INSTANCE, "127.0.0.1", 1)
        assert (await ask(http, content=b"{}")).status_code == 200


async def test_a_ticket_is_good_until_its_end(door: HostDoor, http: httpx.AsyncClient) -> None:
    async with engine(door):
        assert (await ask(http, content=b"{}")).status_code == 200
        now = door.now()
        door.now = lambda: now + 1000
        assert refused(await ask(http, content=b"{}")) == (401, "expired")


async def test_a_new_fence_shuts_out_the_old_one(door: HostDoor, http: httpx.AsyncClient) -> None:
    async with engine(door) as behind:
        assert (await ask(http, content=b"{}")).status_code == 200
        door.runs(INSTANCE, behind.url, fence=2)
        assert refused(await ask(http, content=b"{}")) == (403, "stale_fence")
        assert (await ask(http, content=b"{}", token=ticket("h-1", Scope.ENGINE, INSTANCE, 2))).status_code == 200
        assert door.server.loads() == {EngineRef(instance_id=INSTANCE, fence=2): door.server.loads().popitem()[1]}


async def test_refusals_are_told_apart_up_to_a_bound(door: HostDoor, http: httpx.AsyncClient) -> None:
    for n in range(250):
        await ask(http, f"/engines/chat/{n}/v1/models", token="")
    told = door.server.take_refusals()
    assert len(told) == 201
    assert sum(r.count for r in told) == 250
    assert [r.count for r in told if not r.instance_id] == [50]


@pytest.mark.parametrize(
    "path",
    [
        f"/engines/{INSTANCE}/v1/../../../metrics",
        f"/engines/{INSTANCE}/v1/%2e%2e/metrics",
        f"/engines/{INSTANCE}/v1/%2E./metrics",
        f"/engines/{INSTANCE}/metrics",
        f"/engines/{INSTANCE}/v1",
        f"/engines/{INSTANCE}/v2/models",
        "/engines/chat/v1/models",
        "/engines/a/b/c/v1/models",
        "/v1/models",
        "/engines/%63hat/1-a/v1/models",
    ],
)
async def test_only_what_is_under_v1_of_an_engine_is_reached(door: HostDoor, path: str) -> None:
    async with engine(door) as behind:
        async with Raw(door) as raw:
            await raw.send(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {good()}\r\n\r\n".encode())
            assert (await raw.reader.readline()).split()[1] in (b"401", b"403", b"404")
        assert behind.connections == 0


@pytest.mark.parametrize(
    "endless",
    [b"x: " + b"y" * 10_000, b"x: y\r\n" * 1000, b"POST /" + b"y" * 10_000, b"x" * 10_000],
    ids=["value", "headers", "path", "noise"],
)
async def test_who_sends_a_head_without_end_is_cut_off_before_anybody_knows_him(door: HostDoor, endless: bytes) -> None:
    async with Raw(door) as raw:
        sent = 0
        with contextlib.suppress(ConnectionError):
            if not endless.startswith(b"POST"):
                await raw.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" if endless[1:2] == b":" else b"")
            while not raw.reader.at_eof() and sent < 1 << 24:
                await raw.send(endless.removeprefix(b"x: ") if sent and len(endless) == 10_003 else endless)
                sent += len(endless)
                await asyncio.sleep(0)
        assert sent < 1 << 22


async def test_a_body_in_chunks_may_be_of_any_size_but_not_what_follows_it(door: HostDoor) -> None:
    async with engine(door), Raw(door) as raw:
        await raw.send(raw.head("transfer-encoding: chunked"))
        for _ in range(100):
            await raw.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            await raw.send(b"0\r\nx: ")
            while not raw.reader.at_eof() and sent < 1 << 24:
                await raw.send(b"y" * 10_000)
                sent += 10_000
                await asyncio.sleep(0)
        assert sent < 1 << 22
    await until(lambda: in_flight(door) == 0)


# -- there and back ------------------------------------------------------------------------------------------------


async def test_requests_and_answers_pass_as_they_are(door: HostDoor, http: httpx.AsyncClient) -> None:
    async with engine(door) as behind:
        sent = json.dumps({"model": "m", "n": 1}).encode()
        answer = await ask(http, f"{CHAT}?a=b%20c", content=sent, headers={"x-request-id": "7", "cookie": "c=1"})
        assert (answer.status_code, answer.content) == (200, sent)
        head = behind.requests[0]
        assert head.startswith(b"POST /v1/chat/completions?a=b%20c HTTP/1.1\r\n")
        assert f"host: {behind.url.removeprefix('http://')}\r\n".encode() in head
        assert b"x-request-id: 7\r\n" in head
        for hidden in (b"authorization", b"cookie", b"Bearer", b"connection:"):
            assert hidden not in head


async def test_what_concerns_one_connection_only_stays_there(door: HostDoor, http: httpx.AsyncClient) -> None:
    async def talkative(exchange: Exchange) -> None:
        own = "Server: x\r\nSet-Cookie: a=b\r\nKeep-Alive: timeout=5\r\nX-Mine: 1\r\n"
        own += "Holdfast-Refused: gone\r\nHoldfast-Load: 99\r\n"
        await exchange.answer(b"{}", headers=own)

    async with engine(door, talkative) as behind:
        answer = await ask(http, content=b"{}", headers={"connection": "x-hop", "x-hop": "1", "te": "trailers"})
        assert b"x-hop" not in behind.requests[0]
        assert b"te: " not in behind.requests[0]
        passed = {"content-type": "application/json", "content-length": "2", "x-mine": "1"}
        assert dict(answer.headers) == passed | {"holdfast-load": "1"}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
async def test_any_method_passes(door: HostDoor, http: httpx.AsyncClient, method: str) -> None:
    async def name_it(exchange: Exchange) -> None:
        name = exchange.head.split(b" ", 1)[0]
        if name == b"HEAD":
            await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        else:
            await exchange.answer(name)

    async with engine(door, name_it):
        for _ in range(2):
            answer = await ask(http, f"/engines/{INSTANCE}/v1/models", method=method)
            assert (answer.status_code, answer.content) == (200, b"" if method == "HEAD" else method.encode())


async def test_errors_of_the_engine_are_its_own(door: HostDoor, http: httpx.AsyncClient) -> None:
    async with engine(door, lambda e: e.answer(b"no such model", status="404 Not Found")):
        answer = await ask(http, content=b"{}")
        assert (answer.status_code, answer.content) == (404, b"no such model")
        assert "holdfast-refused" not in answer.headers


async def test_connections_to_the_engine_are_used_again_and_closed_before_it_would(
    door: HostDoor, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_host.proxy._KEEP_IDLE_S", 0.1)
    async with engine(door) as behind:
        for _ in range(5):
            assert (await ask(http, content=b"{}")).status_code == 200
        await until(lambda: behind.open_connections == 0)
        assert behind.connections < 5


async def test_a_large_body_passes_in_parts_and_whole(door: HostDoor, http: httpx.AsyncClient) -> None:
    body = bytes(range(256)) * 40_000

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    async def measure(exchange: Exchange) -> None:
        received = exchange.body
        if b"chunked" in exchange.head:
            received = b""
            while size := int(await exchange.reader.readline(), 16):
                received += await exchange.reader.readexactly(size)
                await exchange.reader.readline()
            await exchange.reader.readline()
        await exchange.answer(b"same" if received == body else b"other")

    async with engine(door, measure) as behind:
        assert (await ask(http, content=body)).content == b"same"
        assert (await ask(http, content=parts())).content == b"same"
        assert (await ask(http, content=body)).content == b"same"
        assert behind.connections == 1, "whole requests leave the connection in order"


async def test_an_engine_that_does_not_read_holds_its_client_back(door: HostDoor) -> None:
    may_read = asyncio.Event()
    total = 64 << 20

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await may_read.wait()
        left = total
        while left:
            left -= len(await reader.read(1 << 20))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    door.runs(INSTANCE, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with server, Raw(door) as raw:
        await raw.send(raw.head(f"content-length: {total}"))
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            while sent < total:
                await raw.send(b"x" * (1 << 16))
                sent += 1 << 16

        sending = asyncio.create_task(send_all())
        await stands_still(lambda: sent)
        assert sent < total * 0.5
        may_read.set()
        await sending
        assert b" 200 " in await raw.reader.readline()


async def test_an_engine_that_answers_before_it_has_read_everything_is_heard(
    door: HostDoor, http: httpx.AsyncClient
) -> None:
    heads: list[bytes] = []

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 413 Too Much\r\nContent-Length: 2\r\n\r\nno")

    server = await asyncio.start_server(hasty, "127.0.0.1", 0)
    door.runs(INSTANCE, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with server:
        async with Raw(door) as raw:
            await raw.send(raw.head("content-length: 1000000") + b"x" * 1000)
            assert b" 413 " in await raw.reader.readline()
            assert (await ask(http, method="GET")).status_code == 413, "over a connection of its own"
        assert [head.split(b" ")[0] for head in heads] == [b"POST", b"GET"]


async def test_events_pass_one_by_one(door: HostDoor, http: httpx.AsyncClient) -> None:
    step = asyncio.Semaphore(0)

    async def stream(exchange: Exchange) -> None:
        await exchange.start_events()
        for n in range(5):
            await step.acquire()
            await exchange.chunk(b"data: %d\n\n" % n)
        await exchange.end_chunks()

    async with engine(door, stream), Raw(door) as raw:
        await raw.send(raw.head("content-length: 0"))
        for n in range(5):
            step.release()
            await asyncio.wait_for(raw.reader.readuntil(b"data: %d\n\n" % n), 5)
        await raw.reader.readuntil(b"0\r\n\r\n")
        assert in_flight(door) == 0


async def test_a_client_that_does_not_read_holds_the_engine_back(door: HostDoor) -> None:
    sent, total = 0, 4000

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.start_events()
        for _ in range(total):
            await exchange.chunk(b"x" * 16_000)
            sent += 1
        await exchange.end_chunks()

    async with engine(door, flood), Raw(door, limit=1 << 14) as raw:
        await raw.send(raw.head("content-length: 0"))
        await stands_still(lambda: sent)
        assert 0 < sent < total * 0.5
        received = 0
        while not (await raw.reader.read(1 << 20)).endswith(b"0\r\n\r\n"):
            received += 1
        assert sent == total


# -- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_stops_its_engine_at_once(door: HostDoor, begun: bool) -> None:
    async def stream(exchange: Exchange) -> None:
        if begun:
            await exchange.start_events()
            await exchange.chunk(b"data: 1\n\n")
        await exchange.gone()

    async with engine(door, stream) as behind:
        async with Raw(door) as raw:
            await raw.send(raw.head("content-length: 0"))
            await until(lambda: len(behind.requests) == 1)
            if begun:
                await raw.reader.readuntil(b"data: 1\n\n")
            assert in_flight(door) == 1
        await until(lambda: behind.open_connections == 0 and in_flight(door) == 0, within=1.0)


async def test_a_client_that_leaves_in_the_middle_of_its_request_is_forgotten(door: HostDoor) -> None:
    async with engine(door) as behind:
        async with Raw(door) as raw:
            await raw.send(raw.head("content-length: 1000000") + b"x" * 200_000)
            await until(lambda: behind.open_connections == 1)
        await until(lambda: behind.open_connections == 0 and in_flight(door) == 0, within=1.0)
        assert behind.requests == []


async def test_an_engine_that_dies_in_the_middle_of_a_stream_breaks_it_off(door: HostDoor) -> None:
    async def die(exchange: Exchange) -> None:
        await exchange.start_events()
        await exchange.chunk(b"data: 1\n\n")
        exchange.writer.close()

    async with engine(door, die), Raw(door) as raw:
        await raw.send(raw.head("content-length: 0"))
        received = await raw.reader.read()
        assert b"data: 1\n\n" in received
        assert not received.endswith(b"0\r\n\r\n")


async def hang_up(exchange: Exchange) -> None:
    exchange.hang_up()


async def torso(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    exchange.writer.close()


DEATHS: dict[str, Reply] = {
    "died": hang_up,
    "broke_off": torso,
    "bad_reply": lambda e: e.write(b"this is not HTTP\r\n\r\n"),
}


@pytest.mark.parametrize("reason", DEATHS)
async def test_an_engine_that_fails_before_it_has_answered_is_a_problem_with_its_reason(
    door: HostDoor, http: httpx.AsyncClient, reason: str
) -> None:
    async with engine(door, DEATHS[reason]) as behind:
        assert refused(await ask(http, content=b"{}")) == (502, reason)
        assert len(behind.requests) == 1, "whether it is asked again is for the gateway to say"
        assert in_flight(door) == 0
        assert door.server.take_refusals() == ()


async def test_an_engine_that_ends_a_used_connection_is_told_from_one_that_dies(
    door: HostDoor, http: httpx.AsyncClient
) -> None:
    async def once(exchange: Exchange) -> None:
        await (echo if exchange.number == 1 else hang_up)(exchange)

    async with engine(door, once):
        assert (await ask(http, content=b"{}")).status_code == 200
        assert refused(await ask(http, content=b"{}")) == (502, "hung_up")
        assert (await ask(http, content=b"{}")).status_code == 200


async def test_an_engine_that_is_not_there_is_a_problem_with_its_reason(
    door: HostDoor, http: httpx.AsyncClient
) -> None:
    assert refused(await ask(http, content=b"{}")) == (404, "gone")
    door.runs(INSTANCE, f"http://127.0.0.1:{await unused_port()}")
    assert refused(await ask(http, content=b"{}")) == (502, "unreachable")


async def test_requests_that_came_at_once_get_connections_of_their_own(door: HostDoor, http: httpx.AsyncClient) -> None:
    async with engine(door):
        answers = await asyncio.gather(*(ask(http, content=b"%d" % n) for n in range(30)))
        assert [a.content for a in answers] == [b"%d" % n for n in range(30)]
        assert in_flight(door) == 0


async def test_what_went_through_is_counted(door: HostDoor, http: httpx.AsyncClient) -> None:
    async with engine(door) as behind:
        for _ in range(3):
            await ask(http, content=b"12345")
        async with Raw(door) as raw:
            door.runs(INSTANCE, behind.url)
            await raw.send(raw.head("content-length: 5") + b"12")
            await until(lambda: in_flight(door) == 1)
            token = ticket("h-1", Scope.HOST)
            text = (await ask(http, "/metrics", method="GET", token=token)).text
            assert f'holdfast_host_in_flight{{instance="{INSTANCE}"}} 1.0' in text
            load = door.server.loads()[EngineRef(instance_id=INSTANCE, fence=1)]
            assert (load.requests, load.in_flight) == (4, 1)
        await until(lambda: in_flight(door) == 0)
        text = (await ask(http, "/metrics", method="GET", token=token)).text
        assert f'holdfast_host_requests_total{{code="200",instance="{INSTANCE}"}} 3.0' in text
        assert f'holdfast_host_requests_total{{code="499",instance="{INSTANCE}"}} 1.0' in text
        assert f'holdfast_host_request_bytes_total{{instance="{INSTANCE}"}} 17.0' in text
        assert f'holdfast_host_response_bytes_total{{instance="{INSTANCE}"}} 15.0' in text


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.binary(min_size=1, max_size=70_000), max_size=5),
    st.lists(st.binary(min_size=1, max_size=70_000), max_size=5),
    st.booleans(),
)
async def test_bytes_come_out_as_they_went_in_however_they_are_cut(
    door: HostDoor, up: list[bytes], down: list[bytes], framed: bool
) -> None:
    got: list[bytes] = []

    async def stream(exchange: Exchange) -> None:
        got.append(exchange.body)
        await exchange.start_events()
        for part in down:
            await exchange.chunk(part)
        await exchange.end_chunks()

    async def parts() -> AsyncIterator[bytes]:
        for part in up:
            yield part

    async def whole(exchange: Exchange) -> None:
        body = b""
        if b"transfer-encoding: chunked" in exchange.head:
            while size := int(await exchange.reader.readline(), 16):
                body += await exchange.reader.readexactly(size)
                await exchange.reader.readline()
            await exchange.reader.readline()
            exchange.body = body
        await stream(exchange)

    base = f"https://127.0.0.1:{door.port}"
    async with engine(door, whole), httpx.AsyncClient(trust_env=False, verify=visitor().tls, base_url=base) as http:
        answer = await ask(http, content=b"".join(up) if framed else parts())
        assert answer.content == b"".join(down)
        assert got == [b"".join(up)]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["GET", "POST", "BREW"]),
    st.one_of(
        st.text(st.characters(codec="latin-1", exclude_characters="\r\n \x00"), max_size=40),
        st.sampled_from([CHAT, "/metrics", "/files", f"/engines/{INSTANCE}/log", "//", "/engines//v1/"]),
    ),
    st.one_of(st.binary(max_size=200), st.builds(good).map(lambda token: f"Bearer {token}".encode())),
    st.binary(max_size=100),
)
async def test_whatever_is_sent_there_is_an_answer_and_never_a_5xx(
    door: HostDoor, method: str, path: str, authorization: bytes, body: bytes
) -> None:
    authorization = authorization.replace(b"\r", b"").replace(b"\n", b"")
    async with engine(door), Raw(door) as raw:
        head = f"{method} /{path.lstrip('/')} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\nauthorization: "
        await raw.send(head.encode("latin-1") + authorization + b"\r\n\r\n" + body)
        status = int((await asyncio.wait_for(raw.reader.readline(), 5)).split()[1])
        assert status < 500
        assert in_flight(door) == 0


class Raw:
    """A client whose every byte is ours."""

    def __init__(self, door: HostDoor, limit: int = 1 << 16) -> None:
        self._door = door
        self._limit = limit

    async def __aenter__(self) -> "Raw":
        tls: ssl.SSLContext = visitor().tls
        self.reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._door.port, ssl=tls, server_hostname=name_of_host("h-1"), limit=self._limit
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    def head(self, *lines: str) -> bytes:
        text = "\r\n".join((f"POST {CHAT} HTTP/1.1", "host: x", f"authorization: Bearer {good()}", *lines, "", ""))
        return text.encode()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
