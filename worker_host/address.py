"""By which address others reach this host: as set, or the one from which it reaches the relay."""

import contextlib
import ipaddress
import logging
import socket
from pathlib import Path

from fleet.relay_address import RelayAddress
from fleet.serving import CannotListen, listen
from fleet.settings import Settings
from worker_host.files import write_atomically

log = logging.getLogger("holdfast.host")

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_EVERYWHERE = {4: "0.0.0.0", 6: "::"}  # noqa: S104


class HostAddress:
    def __init__(self, settings: Settings, relay: RelayAddress) -> None:
        """Blocks for a moment: names are looked up."""
        self._settings = settings
        self._relay = relay
        self.current = settings.host_address or self._found() or _LOOPBACK[4]

    def look(self) -> bool:
        """Whether it has changed. Blocks for a moment. Without a network it stays."""
        found = self._settings.host_address or self._found() or self.current
        changed = found != self.current
        if changed:
            log.info("this host is reached at %s now, no longer at %s", found, self.current)
        self.current = found
        return changed

    def bind(self) -> str:
        """Where the host's own server listens: as set, else only on loopback if nobody else need reach it there."""
        if self._settings.host_bind:
            return self._settings.host_bind
        family = 6 if ":" in self.current else 4
        within = self._settings.host_reach == "tunnel" or (is_loopback(self.current) and self._relay_is_here())
        return (_LOOPBACK if within else _EVERYWHERE)[family]

    def _relay_is_here(self) -> bool:
        """Else the address is loopback only because there is no network yet."""
        return bool(self._settings.host_address) or is_loopback(self._found())

    def _found(self) -> str:
        """Nothing is sent: the system only says which way it would go."""
        try:
            family, kind, _, _, relay = socket.getaddrinfo(self._relay.host, self._relay.port, type=socket.SOCK_DGRAM)[
                0
            ]
            with socket.socket(family, kind) as probe:
                probe.connect(relay)
                return str(probe.getsockname()[0])
        except OSError:
            return ""


def listen_again(bind: str, port: int, memory: Path) -> socket.socket:
    """A listening socket; for ``port`` 0 on the port of the last time, in ``memory``, if that is free: then nobody has
    to hear of another one. Raises CannotListen."""
    try:
        before = int(memory.read_text())
        listening = listen(bind, port or before)
    except (OSError, ValueError, OverflowError, CannotListen):
        listening = listen(bind, port)
    with contextlib.suppress(OSError):  # a full disk: next time it is another one
        write_atomically(memory, str(listening.getsockname()[1]))
    return listening


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def door(bind: str, port: int) -> tuple[str, int]:
    """How this machine itself reaches what listens on ``bind``."""
    local = {address: _LOOPBACK[family] for family, address in _EVERYWHERE.items()}
    return local.get(bind, bind), port
