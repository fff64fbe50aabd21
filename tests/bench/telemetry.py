"""What 500 hosts with 8 GPUs cost the relay when each says every ten seconds how it is.

``python -m tests.bench.telemetry`` prints one JSON object a line. The relay is a process of its own, on SQLite; the
hosts are connections of this one, each with its own TLS, and nobody looks at Temporal. The same calls to a gRPC server
that does nothing say how much of it is gRPC's own.
"""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio
import httpx
import psutil
import uvloop
from sqlmodel import Session, col, func, select

from api.relay.certificate import RelayCertificate
from api.relay.server import _OPTIONS as OPTIONS
from fleet.access.authority import RELAY_NAME, new_key, public_key_of
from fleet.access.keys import master_sealer_of
from fleet.access.tickets import sign_pass
from fleet.db import authority
from fleet.db.migrate import upgrade
from fleet.db.session import Database
from fleet.db.tables import GpuRow, HostRow, HostStatusRow
from fleet.inventory import AcceleratorKind, EngineBuild, Gpu, Inventory
from fleet.join import AUTHORIZATION, STATUS
from fleet.settings import Settings
from fleet.states import HostState
from fleet.telemetry import STATUS_EVERY_S, EngineStatus, ForeignProcess, GpuStatus, HostStatus
from tests.unit.gateway.process import free_port, stop_when_input_ends

HOSTS = 500
GPUS = 8
SECONDS = 30.0
TARGET = 0.10
"""Of one core."""
_GIB = 1 << 30
_BOOT = "3f0e9a8c-0000-4000-8000-000000000000"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        settings = _settings(Path(folder))
        upgrade(settings.effective_database_url)
        database = Database(settings.effective_database_url)
        ca = authority.ensure(database, master_sealer_of(settings)).ca.certificate_pem
        key = new_key()
        database.write(lambda s: _add_hosts(s, public_key_of(key)))
        with _relay(settings) as pid:
            relay = _measured(settings, ca, key, pid)
        with _idle_server(settings) as pid:
            alone = _measured(settings, ca, key, pid)
        kept = database.read(lambda s: s.exec(select(func.count()).select_from(HostStatusRow)).one())
        newest = database.read(lambda s: s.exec(select(func.count()).where(col(HostRow.status_at).is_not(None))).one())
        database.close()
    assert newest == HOSTS, f"only {newest} of {HOSTS} hosts were heard"
    _print("cpu_share_of_one_core", relay.share, "1", target=TARGET, silent=relay.silent, grpc_alone=alone.share)
    _print("cpu_per_status", relay.us_each, "us", grpc_alone=alone.us_each)
    _print("status_bytes", relay.size, "B")
    _print("status_p99", relay.slowest * 1000, "ms", grpc_alone=alone.slowest * 1000)
    _print("statuses_kept", kept, "1", sent=relay.statuses)


@dataclass(frozen=True)
class _Measured:
    share: float
    """Of a core."""
    silent: float
    """While all are connected and nobody says anything."""
    statuses: int
    size: float
    """Bytes of each, on average."""
    slowest: float
    """Seconds that 99 of 100 stay below."""

    @property
    def us_each(self) -> float:
        return (self.share - self.silent) * SECONDS / self.statuses * 1e6


def _measured(settings: Settings, ca: str, key: str, pid: int) -> _Measured:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(settings, ca, key, pid))


async def _measure(settings: Settings, ca: str, key: str, pid: int) -> _Measured:
    address = f"127.0.0.1:{settings.relay_port}"
    hosts = [_Host(address, ca, key, number) for number in range(HOSTS)]
    await asyncio.gather(*(host.say() for host in hosts))
    await asyncio.sleep(2)  # the first word of each is news
    silent = await _share(pid, SECONDS / 4)
    began = time.monotonic()
    talking = [asyncio.create_task(host.talk()) for host in hosts]
    await asyncio.sleep(STATUS_EVERY_S)
    for host in hosts:
        host.seconds.clear()
        host.sizes.clear()
    share = await _share(pid, SECONDS)
    for task in talking:
        task.cancel()
    await asyncio.wait(talking)
    seconds = sorted(s for host in hosts for s in host.seconds)
    sizes = [s for host in hosts for s in host.sizes]
    assert time.monotonic() - began < 3 * SECONDS, "this machine is too busy to measure anything"
    await asyncio.gather(*(host.channel.close() for host in hosts))
    return _Measured(share, silent, len(seconds), sum(sizes) / len(sizes), seconds[int(len(seconds) * 0.99)])


async def _share(pid: int, seconds: float) -> float:
    process = psutil.Process(pid)
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    await asyncio.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)


class _Host:
    def __init__(self, address: str, ca: str, key: str, number: int) -> None:
        self.host_id = _name(number)
        self._number = number
        self._key = key
        self._pass, self._signed = "", float("-inf")
        options = (("grpc.ssl_target_name_override", RELAY_NAME), ("grpc.use_local_subchannel_pool", 1))
        self.channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca.encode()), options=options)
        self._status = self.channel.unary_unary(STATUS)
        self.seconds: list[float] = []
        self.sizes: list[int] = []

    async def talk(self) -> None:
        await asyncio.sleep(STATUS_EVERY_S * self._number / HOSTS)
        while True:
            began = time.monotonic()
            await self.say()
            await asyncio.sleep(STATUS_EVERY_S - (time.monotonic() - began))

    async def say(self) -> None:
        if time.monotonic() - self._signed > 300:
            self._pass, self._signed = sign_pass(self._key, self.host_id, _BOOT), time.monotonic()
        body = _status(self.host_id).model_dump_json().encode()
        began = time.perf_counter()
        await self._status(body, metadata=((AUTHORIZATION, f"Bearer {self._pass}"),), timeout=30)
        self.seconds.append(time.perf_counter() - began)
        self.sizes.append(len(body))


def _status(host_id: str) -> HostStatus:
    """What a busy host says: everything moves a little, and somebody's notebook holds memory of one card."""
    held = 700 * (1 << 20) + random.randrange(10 << 20)
    return HostStatus(
        boot_id=_BOOT,
        inventory="fingerprint",
        at=datetime.now(UTC),
        gpus=tuple(
            GpuStatus(
                uuid=_uuid(host_id, number),
                memory_used_bytes=120 * _GIB + random.randrange(_GIB),
                foreign_bytes=held if number == GPUS - 1 else 0,
                utilization=random.random(),
                temperature_c=random.randrange(40, 80),
                power_w=random.uniform(100, 700),
                power_limit_w=700.0,
                ecc_errors=0,
                throttled=False,
            )
            for number in range(GPUS)
        ),
        engines=tuple(
            EngineStatus(
                instance_id=f"chat-{number}/{number}-3f2a9c01",
                fence=number,
                runtime="docker",
                name=f"holdfast-chat-{number}-3f2a9c01-{number}",
                state="running",
                requests=random.randrange(1_000_000),
                in_flight=random.randrange(64),
            )
            for number in range(GPUS)
        ),
        foreign=(ForeignProcess(pid=4711, name="jupyter", gpu_uuid=_uuid(host_id, GPUS - 1), memory_bytes=held),),
        cpu_utilization=random.random(),
        ram_used_bytes=random.randrange(1 << 40),
        disk_free_bytes=random.randrange(1 << 42),
        load=random.uniform(0, 64),
    )


def _add_hosts(session: Session, public_key: str) -> None:
    for number in range(HOSTS):
        host_id = _name(number)
        inventory = _inventory(host_id)
        session.add(
            HostRow(
                id=host_id,
                name=host_id,
                state=HostState.READY,
                credential_hash=host_id,
                public_key=public_key,
                boot_id=_BOOT,
                generation=1,
                inventory=inventory.model_dump(mode="json"),
            )
        )
        for gpu in inventory.gpus:
            kept = gpu.model_dump(include={"uuid", "index", "name", "memory_bytes"})
            session.add(GpuRow(**kept, kind="nvidia", host_id=host_id, allocatable=gpu.memory_bytes, generation=1))


def _inventory(host_id: str) -> Inventory:
    card = Gpu(uuid="", kind=AcceleratorKind.NVIDIA, name="NVIDIA H200", memory_bytes=141 * _GIB, index=0)
    cards = (card.model_copy(update={"uuid": _uuid(host_id, n), "index": n}) for n in range(GPUS))
    return Inventory(
        hostname=host_id,
        machine_id=host_id,
        boot_id=_BOOT,
        os="Linux",
        arch="x86_64",
        cpu_count=192,
        ram_bytes=2048 * _GIB,
        ram_allocatable_bytes=2040 * _GIB,
        disk_bytes=1 << 44,
        disk_free_bytes=1 << 43,
        gpus=tuple(cards),
        engines=(EngineBuild(engine="llama_cpp", version="1"),),
    )


def _name(number: int) -> str:
    return f"gpu-box-{number:03}"


def _uuid(host_id: str, number: int) -> str:
    return f"GPU-5a1e0000-0000-4000-{number:04}-{int(host_id[-3:]):012}"


def _settings(home: Path) -> Settings:
    return Settings(
        home=home,
        relay_port=free_port(),
        relay_internal_port=free_port(),
        temporal_address="127.0.0.1:9",  # nobody is there, and nobody is asked
    )


@contextmanager
def _relay(settings: Settings) -> Iterator[int]:
    """Its process id, once it answers."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
        "HOLDFAST_HOME": str(settings.home),
        "HOLDFAST_RELAY_PORT": str(settings.relay_port),
        "HOLDFAST_RELAY_INTERNAL_PORT": str(settings.relay_internal_port),
        "HOLDFAST_TEMPORAL_ADDRESS": settings.temporal_address,
    }
    command = [sys.executable, "-m", "fleet.cli", "relay"]
    with subprocess.Popen(command, env=environment, cwd=settings.home, stdout=sys.stderr) as process:
        try:
            _until_it_answers(f"{settings.relay_for_gateways}/healthz", process)
            yield process.pid
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def _idle_server(settings: Settings) -> Iterator[int]:
    """Listens where the relay did, with its certificate and options, and answers at once."""
    command = [sys.executable, "-m", "tests.bench.telemetry", "idle", str(settings.home), str(settings.relay_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the gRPC server that does nothing did not start")
        try:
            yield process.pid
        finally:
            process.stdin.close()
            process.wait(20)


async def _answer_at_once(home: Path, port: int) -> None:
    class Door(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
            async def call(_request: bytes, _context: object) -> bytes:
                return b"{}"

            return grpc.unary_unary_rpc_method_handler(call)  # type: ignore[arg-type]

    settings = Settings(home=home)
    keys = authority.ensure(Database(settings.effective_database_url), master_sealer_of(settings))
    server = grpc.aio.server(handlers=[Door()], options=OPTIONS)
    server.add_secure_port(f"127.0.0.1:{port}", RelayCertificate(keys.ca).credentials())
    await server.start()
    print(port, flush=True)
    stop_when_input_ends()
    await server.wait_for_termination()


def _until_it_answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx.get(url, trust_env=False).raise_for_status()
            return
        except httpx.HTTPError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the relay did not start") from error
        time.sleep(0.05)


def _print(metric: str, value: float, unit: str, **vs: float) -> None:
    rounded = {name: round(against, 4) for name, against in vs.items()}
    line = {"bench": "telemetry", "metric": metric, "value": round(value, 4), "unit": unit, "vs": rounded}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["idle"]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as idle, contextlib.suppress(KeyboardInterrupt):
            idle.run(_answer_at_once(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        main()
