"""Hosts that can be cut off: each in a network namespace, behind one bridge that the control plane listens on.

A host is cut off by taking its cable out of the bridge. Nothing is told to anybody: packets vanish, as they do when a
switch dies. Neighbours are entered by hand, so that not even a missing answer to ARP gives it away.
"""

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.stack import Process, Stack

_OURS = re.compile(r"\bhft(\d+)[bnv]\d*\b")
"""Names carry the process id of the test run, by which what a dead one has left is found."""


class Network:
    """A bridge and the namespaces on it. ``close`` leaves nothing."""

    def __init__(self) -> None:
        self._name = f"hft{os.getpid()}"
        self._bridge = f"{self._name}b"
        self._subnet = _free_subnet()
        self._hosts: list[NetworkOfHost] = []
        self.address = f"{self._subnet}.1"
        """Where hosts reach the control plane."""
        # An address of its own: else it is that of one of its ports, and changes when that one is taken out.
        _ip("link", "add", self._bridge, "address", _any_hardware_address(), "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def add(self) -> "NetworkOfHost":
        number = len(self._hosts) + 2
        host = NetworkOfHost(f"{self._name}n{number}", f"{self._name}v{number}", f"{self._subnet}.{number}")
        self._hosts.append(host)
        _ip("netns", "add", host.namespace)
        _ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for name in ("lo", "eth0"):
            _ip("-n", host.namespace, "link", "set", name, "up")
        _ip("link", "set", host.cable, "up")
        self.heal(host)
        inside = _hardware_address(_ip("-n", host.namespace, "-o", "link", "show", "eth0"))
        outside = _hardware_address(_ip("-o", "link", "show", self._bridge))
        _ip("neigh", "replace", host.address, "lladdr", inside, "nud", "permanent", "dev", self._bridge)
        neighbour = ("neigh", "replace", self.address, "lladdr", outside, "nud", "permanent", "dev", "eth0")
        _ip("-n", host.namespace, *neighbour)
        return host

    def partition(self, host: "NetworkOfHost") -> None:
        _ip("link", "set", host.cable, "nomaster")

    def heal(self, host: "NetworkOfHost") -> None:
        _ip("link", "set", host.cable, "master", self._bridge)

    def close(self) -> None:
        """After the processes in it have ended."""
        for host in self._hosts:
            _ip("netns", "del", host.namespace)  # and with it the cable
        _ip("link", "del", self._bridge)


@dataclass(frozen=True)
class NetworkOfHost:
    namespace: str
    cable: str
    """Its end in the bridge."""
    address: str

    @property
    def prefix(self) -> list[str]:
        """Executes a command in there."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]


class StackOnNetwork(Stack):
    """API and relay listen on the network's address; Temporal and the database are out of the hosts' sight."""

    def __init__(self, folder: Path, *, engines: Path, network: Network, env: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, engines=engines, env={**(env or {}), "HOLDFAST_BIND": network.address})

    def set_command_line(self, module: str) -> None:
        """Run all of ours as ``python -m module``; before ``start``."""
        self.command_line = module
        self.controller, self.api, self.relay = (self._ours(name) for name in ("controller", "api", "relay"))

    def add_host_on(self, network: NetworkOfHost, name: str, **env: str) -> Process:
        return self.add_host(name, prefix=network.prefix, **env)


def why_not() -> str:
    """Why no such network can be made here; empty: it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [program for program in ("ip", "nsenter") if shutil.which(program) is None]:
        return f"network namespaces need {' and '.join(missing)} (packages iproute2 and util-linux)"
    _remove_leftovers()
    try:
        network = Network()
        network.add()
    except subprocess.CalledProcessError as error:
        _remove_leftovers(of=os.getpid())
        return f"this machine makes no network namespaces: {error.stderr.strip()}"
    network.close()
    return ""


@contextmanager
def new_network() -> Iterator[Network]:
    network = Network()
    try:
        yield network
    finally:
        network.close()


def _remove_leftovers(of: int | None = None) -> None:
    """Of test runs that do not live any more (or of the one with the process id ``of``)."""
    for namespace, pid in _ours("netns", "list"):
        if pid == of or not psutil.pid_exists(pid):
            for inhabitant in _ip("netns", "pids", namespace).split():
                psutil.Process(int(inhabitant)).kill()
            _ip("netns", "del", namespace)
    for interface, pid in _ours("-o", "link", "show", "type", "bridge"):
        if pid == of or not psutil.pid_exists(pid):
            _ip("link", "del", interface)


def _ours(*listing: str) -> list[tuple[str, int]]:
    return [(found[0], int(found[1])) for found in _OURS.finditer(_ip(*listing))]


def _free_subnet() -> str:
    """First three numbers of one that no interface of this machine is in."""
    taken = _ip("-o", "-4", "addr", "show")
    start = os.getpid()
    candidates = (f"10.{211 + n // 256 % 16}.{n % 256}" for n in range(start, start + 4096))
    return next(subnet for subnet in candidates if f" {subnet}." not in taken)


def _any_hardware_address() -> str:
    """Locally administered, of one machine."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *secrets.token_bytes(5)))


def _hardware_address(link: str) -> str:
    found = re.search(r"link/ether ([0-9a-f:]{17})", link)
    assert found is not None, link
    return found[1]


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
