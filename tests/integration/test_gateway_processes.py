"""``holdfast gateway`` with several workers: reloads, deaths and ends, under clients that forgive nothing."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fleet.db.session import Database
from tests.unit.gateway.engines import Exchange, RawEngine, raw_engine
from tests.unit.gateway.process import free_port, new_database
from tests.unit.gateway.world import KEY, World

pytestmark = pytest.mark.slow

WITHIN_S = 60.0
CHUNK = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@dataclass
class Engine:
    """Streams ``chunks`` of them to whom asks for a stream, until it is let go; answers others at once."""

    raw: RawEngine
    go: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made: list[Engine] = []

    async def reply(exchange: Exchange) -> None:
        if b'"stream":true' not in exchange.body:
            await exchange.answer(b'{"choices":[]}')
            return
        await exchange.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        while not made[0].go.is_set():
            await exchange.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(made[0].go.wait(), 0.05)
        await exchange.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))

    async with raw_engine(reply) as raw:
        made.append(Engine(raw))
        yield made[0]


@dataclass
class Gateway:
    """The parent process."""

    process: subprocess.Popen[bytes]
    port: int
    home: Path
    log: Path

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def says(self, text: str, times: int = 1) -> bool:
        return self.log.read_text().count(text) >= times


@pytest.fixture
def world(tmp_path: Path, engine: Engine) -> World:
    world = World(new_database(f"sqlite:///{tmp_path / 'db'}"))
    world.add_key(KEY)
    world.serve("m", engine.raw.url)
    return world


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    started: list[Gateway] = []

    def start(database_url: str, workers: int = 2, **settings: str) -> Gateway:
        port, home, log = free_port(), tmp_path / "home", tmp_path / "gateway.log"
        home.mkdir(exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")} | {
            "HOLDFAST_HOME": str(home),
            "HOLDFAST_PORT": str(port),
            **({"HOLDFAST_DATABASE_URL": database_url} if database_url else {}),
            **settings,
        }
        command = [sys.executable, "-m", "fleet.cli", "gateway", "--workers", str(workers)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        started.append(Gateway(process, port, home, log))
        return started[-1]

    yield start
    for gateway in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(gateway.process.pid).children():
                child.kill()
        gateway.process.kill()
        gateway.process.wait()
        print(gateway.log.read_text())


async def until(check: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not check():
        assert time.monotonic() < deadline, f"{what} not within {WITHIN_S} s"
        await asyncio.sleep(0.02)


class Client:
    """One connection at a time, as strict as can be: whatever is not a whole answer is an error."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.answers = self.farewells = 0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._open is None:
            self._open = await asyncio.open_connection("127.0.0.1", self._port)
        return self._open

    def request(self, *, stream: bool = False) -> bytes:
        body = b'{"model":"m","messages":[],"stream":true}' if stream else b'{"model":"m","messages":[]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    async def ask(self, request: bytes = b"") -> tuple[int, bytes]:
        """(status, body). Leaves the connection as the answer says."""
        reader, writer = await self.connect()
        writer.write(request or self.request())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await _body(reader, head)
        self.answers += 1
        if b"\r\nconnection: close" in head:
            self.farewells += 1
            assert await reader.read() == b""
            self.close()
        return int(head.split()[1]), body

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head:
        return await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return body


async def answers(gateway: Gateway) -> bool:
    client = Client(gateway.port)
    try:
        return (await client.ask())[0] == 200
    except (OSError, asyncio.IncompleteReadError):
        return False
    finally:
        client.close()


async def until_serving(gateway: Gateway) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not await answers(gateway):
        assert gateway.process.poll() is None, gateway.log.read_text()
        assert time.monotonic() < deadline, gateway.log.read_text()
        await asyncio.sleep(0.05)


async def test_reloads_break_nothing_off(world: World, engine: Engine, start: Callable[..., Gateway]) -> None:
    gateway = start(str(world.database.url))
    await until_serving(gateway)
    await until(lambda: len(gateway.workers()) == 2, "two workers")
    first = gateway.workers()
    clients = [Client(gateway.port) for _ in range(8)]
    streams = [Client(gateway.port) for _ in range(8)]
    idle = [Client(gateway.port) for _ in range(8)]
    reloaded = asyncio.Event()

    async def keep_asking(client: Client) -> None:
        while not reloaded.is_set():
            assert (await client.ask())[0] == 200
            await asyncio.sleep(0.01)

    for client in idle:
        assert (await client.ask())[0] == 200
    asking = [asyncio.create_task(keep_asking(client)) for client in clients]
    streaming = [asyncio.create_task(client.ask(client.request(stream=True))) for client in streams]
    await until(lambda: len(engine.raw.requests) >= 16, "streams run")
    os.kill(gateway.process.pid, signal.SIGHUP)
    await until(lambda: gateway.says("reloading"), "a reload begins")
    os.kill(gateway.process.pid, signal.SIGHUP)  # in the middle of the first
    await until(lambda: gateway.says("holdfast.gateway: reloaded", 2), "both reloads")
    assert not gateway.workers() & first or all(not task.done() for task in streaming)
    for client in idle:  # they were left open, and get an answer, which is their last there
        assert (await client.ask())[0] == 200
        assert client.farewells == 1
    seen = sum(client.answers for client in clients)
    await until(lambda: sum(client.answers for client in clients) > seen + 100, "new workers answer")
    reloaded.set()
    await asyncio.gather(*asking)
    assert all(1 <= client.farewells <= 2 for client in clients)
    assert not any(task.done() for task in streaming)
    engine.go.set()
    for status, body in await asyncio.gather(*streaming):
        assert status == 200
        assert body.endswith(DONE)
    await until(lambda: len(gateway.workers()) == 2, "old workers are gone")
    assert not gateway.workers() & first
    for client in clients:
        client.close()


async def test_a_worker_that_dies_is_replaced_and_refuses_nobody_new(
    world: World, start: Callable[..., Gateway]
) -> None:
    gateway = start(str(world.database.url))
    await until_serving(gateway)
    await until(lambda: len(gateway.workers()) == 2, "two workers")
    first = gateway.workers()
    os.kill(min(first), signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(min(first)), "it is gone")
    clients = [Client(gateway.port) for _ in range(32)]
    for status, _ in await asyncio.gather(*(client.ask() for client in clients)):
        assert status == 200
    await until(lambda: len(gateway.workers() - first) == 1, "another one")
    for client in clients:
        client.close()


async def test_streams_finish_when_it_is_told_to_end(
    world: World, engine: Engine, start: Callable[..., Gateway]
) -> None:
    gateway = start(str(world.database.url))
    await until_serving(gateway)
    client = Client(gateway.port)
    streaming = asyncio.create_task(client.ask(client.request(stream=True)))
    await until(lambda: len(engine.raw.requests) == 2, "the stream runs")
    gateway.process.terminate()
    await until_refused(gateway)
    assert not streaming.done()
    engine.go.set()
    status, body = await streaming
    assert (status, body.endswith(DONE)) == (200, True)
    assert await asyncio.to_thread(gateway.process.wait, WITHIN_S) == 0


async def test_a_second_signal_ends_it_at_once(world: World, engine: Engine, start: Callable[..., Gateway]) -> None:
    gateway = start(str(world.database.url))
    await until_serving(gateway)
    client = Client(gateway.port)
    streaming = asyncio.create_task(client.ask(client.request(stream=True)))
    await until(lambda: len(engine.raw.requests) == 2, "the stream runs")
    gateway.process.terminate()
    await until_refused(gateway)
    began = time.monotonic()
    gateway.process.terminate()
    assert await asyncio.to_thread(gateway.process.wait, WITHIN_S) == 0
    assert time.monotonic() - began < 8
    with pytest.raises((asyncio.IncompleteReadError, OSError, ValueError, AssertionError)):
        await streaming


async def until_refused(gateway: Gateway) -> None:
    deadline = time.monotonic() + WITHIN_S
    while True:
        assert time.monotonic() < deadline
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.close()
        except ConnectionRefusedError:
            return
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("toml", ['database_url = "nonsense://x"', "drain_s = -1", "]"], ids=["dies", "wrong", "none"])
async def test_a_reload_that_fails_leaves_the_old_workers(
    world: World, start: Callable[..., Gateway], toml: str
) -> None:
    gateway = start("", workers=1)
    (gateway.home / "holdfast.toml").write_text(f'database_url = "{world.database.url}"')
    await until_serving(gateway)
    workers = gateway.workers()
    (gateway.home / "holdfast.toml").write_text(toml)
    os.kill(gateway.process.pid, signal.SIGHUP)
    await until(lambda: gateway.says("not reloaded"), "it says so")
    await until(lambda: gateway.workers() == workers, "the new ones are gone")
    assert await answers(gateway)
    (gateway.home / "holdfast.toml").write_text(f'database_url = "{world.database.url}"')
    os.kill(gateway.process.pid, signal.SIGHUP)
    await until(lambda: gateway.says("holdfast.gateway: reloaded"), "the next one works")
    assert await answers(gateway)


async def test_it_starts_without_a_database_and_serves_once_there_is_one(
    tmp_path: Path, engine: Engine, start: Callable[..., Gateway]
) -> None:
    url = f"sqlite:///{tmp_path / 'late.db'}"
    Database(url).close()
    gateway = start(url, workers=1)
    client = Client(gateway.port)

    async def status() -> int:
        try:
            return (await client.ask())[0]
        except OSError:
            return 0

    deadline = time.monotonic() + WITHIN_S
    while (said := await status()) != 503:
        assert said == 0
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    late = World(new_database(url))
    late.add_key(KEY)
    late.serve("m", engine.raw.url)
    while await status() != 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    client.close()


async def test_workers_do_not_outlive_their_parent(world: World, start: Callable[..., Gateway]) -> None:
    gateway = start(str(world.database.url))
    await until_serving(gateway)
    await until(lambda: len(gateway.workers()) == 2, "two workers")
    workers = gateway.workers()
    gateway.process.kill()
    gateway.process.wait()
    await until(lambda: not any(map(psutil.pid_exists, workers)), "they are gone")


async def test_a_port_that_is_taken_is_said(world: World, start: Callable[..., Gateway]) -> None:
    gateway = start(str(world.database.url))
    await until_serving(gateway)
    second = start(str(world.database.url), HOLDFAST_PORT=str(gateway.port))
    assert await asyncio.to_thread(second.process.wait, WITHIN_S) == 1
    assert second.says("HOLDFAST_PORT")
