"""Whether the ports we want are free, and if not, whose they are."""

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleet.errors import HoldfastError

if TYPE_CHECKING:
    from fleet.settings import Settings

COMMAND_SHOWN = 120


@dataclass(frozen=True)
class Port:
    purpose: str
    address: str
    number: int
    setting: str


class PortsTaken(HoldfastError):
    title = "Port not free"


def wanted(settings: "Settings") -> list[Port]:
    internal = settings.relay_internal_bind
    ports = [
        Port("the API", settings.bind, settings.port, "HOLDFAST_PORT"),
        Port("the relay", settings.relay_bind or settings.bind, settings.relay_port, "HOLDFAST_RELAY_PORT"),
        Port("the relay's tunnels", internal, settings.relay_internal_port, "HOLDFAST_RELAY_INTERNAL_PORT"),
    ]
    if settings.embedded_temporal:
        ports += [
            Port("Temporal", "127.0.0.1", settings.temporal_port, "HOLDFAST_TEMPORAL_PORT"),
            Port("the Temporal UI", "127.0.0.1", settings.temporal_ui_port, "HOLDFAST_TEMPORAL_UI_PORT"),
        ]
    if settings.host_port:
        ports.append(Port("the host", settings.host_bind, settings.host_port, "HOLDFAST_HOST_PORT"))
    return ports


def check(ports: Sequence[Port]) -> None:
    """Raises ``PortsTaken`` with each that is not free, its owner and the setting that changes it."""
    complaints = [c for port in ports if (c := _complaint(port))]
    for n, port in enumerate(ports):
        for other in ports[:n]:
            if other.number == port.number:
                complaints.append(f"{port.number} is wanted for {other.purpose} and for {port.purpose}")
    if complaints:
        settings = " or ".join(dict.fromkeys(p.setting for p in ports if _named(p, complaints)))
        raise PortsTaken("; ".join(complaints), hint=f"end its owner, or choose another port with {settings}")


def _named(port: Port, complaints: list[str]) -> bool:
    return any(c.startswith(f"{port.number} ") for c in complaints)


def _complaint(port: Port) -> str:
    try:
        _bind(port)
    except OSError as error:
        what = f"{port.number} (for {port.purpose}, {port.setting})"
        if error.errno == errno.EADDRINUSE:
            return f"{what} is taken by {owner(port.number) or 'another process'}"
        return f"{what} cannot be used on {port.address}: {error.strerror or error}"
    return ""


def _bind(port: Port) -> None:
    """As a server does: connections in TIME_WAIT do not stand in the way."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        port.address, port.number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def owner(number: int) -> str:
    """``pid 4711 (python -m http.server)`` for who listens there; empty if the system does not tell."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if not (connection.laddr and connection.pid):
                continue
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == number:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                shown = command if len(command) <= COMMAND_SHOWN else f"{command[:COMMAND_SHOWN]}…"
                return f"pid {connection.pid} ({shown})" if shown else f"pid {connection.pid}"
    except psutil.Error:
        pass
    return ""
