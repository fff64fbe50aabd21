"""A relay, and a host with its door and tunnel, as processes of their own with nothing else in them.

``python -m tests.door_process relay|host HOME`` prints what it listens on, and runs until its input ends. The host,
``h-1``, shows one engine as instance ``m/1-a`` under fence 1.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from api.relay import serve
from fleet.access.authority import name_of_host, new_key, public_key_of, signing_request
from fleet.access.keys import master_sealer_of
from fleet.access.sealing import host_sealer
from fleet.access.tickets import TicketReader
from fleet.db.authority import Authority, ensure
from fleet.db.migrate import upgrade
from fleet.db.session import Database
from fleet.db.tables import HostRow
from fleet.join import Identity
from fleet.relay_address import RelayAddress
from fleet.serving import listen
from fleet.settings import Settings
from tests.stack import free_ports
from tests.unit.gateway.process import stop_when_input_ends
from worker_host.engine_log import EngineLogs
from worker_host.link import Link
from worker_host.log_reader import LogReader
from worker_host.proxy import Running
from worker_host.server import HostServer, open_door
from worker_host.tunnel import Tunnel

HOST, INSTANCE, FENCE = "h-1", "m/1-a", 1
_BOOT = "boot"


def prepare(home: Path) -> Authority:
    """A control plane's home with the host in its database."""
    settings = Settings(home=home)
    upgrade(settings.effective_database_url)
    database = Database(settings.effective_database_url)
    keys = ensure(database, master_sealer_of(settings))
    ports = free_ports(2)
    (home / "ports").write_text(" ".join(map(str, ports)))
    identity = _identity(home, keys)
    (home / "identity.json").write_text(identity.model_dump_json())
    row = HostRow(id=HOST, name=HOST, state="ready", credential_hash="x", boot_id=_BOOT, reach="tunnel")
    row.public_key = public_key_of(identity.private_key)
    database.write(lambda s: s.add(row))
    database.close()
    return keys


@contextmanager
def process(kind: str, *arguments: str) -> Iterator[tuple[str, int]]:
    """(base URL, pid)."""
    command = [sys.executable, "-m", "tests.door_process", kind, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        try:
            url = started.stdout.readline().strip()
            assert url, f"{kind} did not start: see what it said above"
            yield url, started.pid
        finally:
            started.stdin.close()
            started.wait(20)


def settings_of(home: Path) -> Settings:
    relay, internal = map(int, (home / "ports").read_text().split())
    return Settings(home=home, relay_port=relay, relay_internal_port=internal, temporal_address="127.0.0.1:1")


def _identity(home: Path, keys: Authority) -> Identity:
    key = new_key()
    certificate = keys.ca.issue_to_host(signing_request(key, name_of_host(HOST)), HOST)
    return Identity(
        host_id=HOST,
        name=HOST,
        server=settings_of(home).relay_for_hosts,
        machine_id="m",
        credential="c",
        private_key=key,
        certificate=certificate,
        ca=keys.ca.certificate_pem,
        namespace="default",
        joined_at=datetime.now(UTC),
    )


async def _host(home: Path, engine: str) -> None:
    identity = Identity.model_validate_json((home / "identity.json").read_text())
    database = Database(Settings(home=home).effective_database_url)
    keys = ensure(database, master_sealer_of(Settings(home=home)))
    database.close()
    running = Running(FENCE, int(engine.rpartition(":")[2]))
    server = HostServer(
        host_id=HOST,
        tickets=TicketReader([keys.tickets.public_key]),
        models=home,
        log_reader=LogReader(EngineLogs(home), host_sealer(HOST)),
        running=lambda instance: running if instance == INSTANCE else None,
        metrics_of=_no_metrics,
        metrics=bytes,
    )
    listening = listen("127.0.0.1", 0)
    port: int = listening.getsockname()[1]
    link = Link(identity, RelayAddress.parse(identity.server), _BOOT)
    async with open_door(server, server.hand_through, listening, _tls(identity), grace_s=1.0):
        tunnel = asyncio.create_task(Tunnel(link, lambda: ("127.0.0.1", port)).run())
        print(f"https://127.0.0.1:{port}", flush=True)
        await _until_told()
        tunnel.cancel()
    await link.aclose()


async def _relay(home: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    print(settings_of(home).relay_for_gateways, flush=True)
    await serve.run(settings_of(home), stop)


async def _no_metrics(_instance: str) -> None:
    return None


async def _until_told() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    await stop.wait()


def _tls(identity: Identity) -> Any:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(identity.certificate + identity.private_key)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _main() -> None:
    stop_when_input_ends()
    kind, home, *rest = sys.argv[1:]
    work = _relay(Path(home)) if kind == "relay" else _host(Path(home), *rest)
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    _main()
