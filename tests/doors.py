"""Hosts' doors as they are in production: TLS with an installation's own certificates, tickets, a real web server."""

import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fleet.access.authority import CertificateAuthority, name_of_host, new_key, signing_request
from fleet.access.sealing import host_sealer
from fleet.access.tickets import Scope, Ticket, TicketReader, TicketSigner
from fleet.access.visitor import Visitor
from fleet.db.authority import Authority
from fleet.host_client import HostAddress
from fleet.http.passage import Passage, UpgradeRequest
from fleet.serving import listen
from worker_host.engine_log import EngineLogs
from worker_host.log_reader import LogReader
from worker_host.proxy import Running
from worker_host.server import HostServer, open_door


@cache
def authority() -> Authority:
    """The same for all tests of a process."""
    return Authority(CertificateAuthority.create(), TicketSigner(new_key()))


def visitor(of: Authority | None = None) -> Visitor:
    of = of or authority()
    return Visitor(of.ca.certificate_pem, of.tickets)


def ticket(host: str, scope: Scope = Scope.ENGINE, instance: str = "", fence: int = 0, **when: float) -> str:
    return authority().tickets.sign(Ticket(host, scope, instance, fence), **when)


def server_tls(host: str, of: Authority | None = None) -> ssl.SSLContext:
    """For the web server of that host."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_certificate(context, host, of)
    return context


def load_certificate(context: ssl.SSLContext, host: str, of: Authority | None = None) -> None:
    key = new_key()
    certificate = (of or authority()).ca.issue_to_host(signing_request(key, name_of_host(host)), host)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(certificate + key)
        file.flush()
        context.load_cert_chain(file.name)


@dataclass
class HostDoor:
    """The door of one host, and what is behind it: change that at any time."""

    host: str
    folder: Path
    port: int = 0
    engines: dict[str, Running] = field(default_factory=dict)
    engine_metrics: dict[str, str] = field(default_factory=dict)
    own_metrics: bytes = b"holdfast_host_ram_bytes 1.0\n"
    now: Callable[[], float] = time.time
    """What the host takes for the time."""
    tls: ssl.SSLContext = field(init=False)
    server: HostServer = field(init=False)

    def __post_init__(self) -> None:
        self.tls = server_tls(self.host)
        self.begin(self.folder)

    def begin(self, folder: Path) -> None:
        """A new process, with nothing behind the door, that keeps its things in ``folder``."""
        self.engines, self.engine_metrics, self.now = {}, {}, time.time
        self.folder, self.models, self.logs = folder, folder / "models", EngineLogs(folder / "logs")
        self.models.mkdir(parents=True, exist_ok=True)
        keys = [authority().tickets.public_key]
        self.server = HostServer(
            host_id=self.host,
            tickets=TicketReader(keys, clock=self._clock),
            models=self.models,
            log_reader=LogReader(self.logs, host_sealer("the host's credential")),
            running=self._running,
            metrics_of=self._metrics_of,
            metrics=lambda: self.own_metrics,
        )

    def runs(self, instance: str, url: str, fence: int = 1) -> None:
        """An engine that listens at ``url``, on loopback."""
        self.engines[instance] = Running(fence, int(url.rpartition(":")[2]))

    @property
    def address(self) -> HostAddress:
        return HostAddress(self.host, "127.0.0.1", self.port)

    def _clock(self) -> float:
        return self.now()

    def _running(self, instance: str) -> Running | None:
        return self.engines.get(instance)

    async def _metrics_of(self, instance: str) -> str | None:
        return self.engine_metrics.get(instance)

    async def hand_through(self, request: UpgradeRequest, passage: Passage) -> None:
        await self.server.hand_through(request, passage)

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await self.server(scope, receive, send)


@asynccontextmanager
async def host_door(host: str, folder: Path, *, port: int = 0, grace_s: float = 1.0) -> AsyncIterator[HostDoor]:
    door = HostDoor(host, folder)
    listening = listen("127.0.0.1", port)
    door.port = listening.getsockname()[1]
    async with open_door(door, door.hand_through, listening, door.tls, grace_s=grace_s):
        yield door
