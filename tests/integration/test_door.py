"""Nobody gets to an engine past the door of its host: scanned from another network namespace, tried with every kind of
bad ticket, and what was tried is counted and in the audit log."""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from fleet.access.authority import name_of_host, new_key
from fleet.access.keys import master_sealer_of
from fleet.access.tickets import Scope, Ticket, TicketSigner
from fleet.access.visitor import Visitor
from fleet.db.authority import Authority, ensure
from fleet.db.session import Database
from fleet.db.tables import EndpointRow, HostRow
from tests.faults.netns import Network, NetworkOfHost, StackOnNetwork, new_network, why_not
from tests.stack import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_SCAN = """
import socket, sys
found = []
for port in range(1, 65536):
    with socket.socket() as probe:
        probe.settimeout(5)
        if probe.connect_ex((sys.argv[1], port)) == 0:
            found.append(port)
print(found)
"""


@dataclass
class Site:
    """A host ``a`` in a namespace, with one engine, and a namespace beside it that is nobody's."""

    stack: StackOnNetwork
    way: NetworkOfHost
    elsewhere: NetworkOfHost
    keys: Authority
    host_id: str
    port: int
    instance: str
    fence: int

    def sign(self, signer: TicketSigner | None = None, *, ago: float = 0.0, **changes: Any) -> str:
        """A ticket for the engine, but for ``changes``."""
        good: dict[str, Any] = {
            "host_id": self.host_id,
            "scope": Scope.ENGINE,
            "instance_id": self.instance,
            "fence": self.fence,
        }
        return (signer or self.keys.tickets).sign(Ticket(**good | changes), time.time() - ago)

    def ask(self, path: str, token: str, method: str = "POST") -> httpx.Response:
        visitor = Visitor(self.keys.ca.certificate_pem, self.keys.tickets)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        name = {"sni_hostname": name_of_host(self.host_id)}
        body = {"model": "smol", "prompt": "One, two,", "max_tokens": 2} if method == "POST" else None
        with httpx.Client(verify=visitor.tls, trust_env=False, timeout=30) as http:
            url = f"https://{self.way.address}:{self.port}{path}"
            return http.request(method, url, json=body, headers=headers, extensions=name)

    @property
    def engine_port(self) -> int:
        [pid] = self.stack.engine_pids()
        command = psutil.Process(pid).cmdline()
        return int(command[command.index("--port") + 1])


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(f"left out: a port scan from another network ({reason})")
    with new_network() as made:
        yield made


@pytest.fixture(scope="module")
def site(
    network: Network, engines_folder: Path, small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    stack = StackOnNetwork(tmp_path_factory.mktemp("stack"), engines=engines_folder, network=network)
    try:
        stack.start()
        way = network.add()
        stack.add_host_on(way, "a")
        stack.deploy("smol", str(small_model))
        stack.until_ready("smol")
        database = Database(stack.settings.effective_database_url)
        keys = ensure(database, master_sealer_of(stack.settings))
        host = database.read(lambda s: s.get_one(HostRow, stack.host("a")["id"]))
        instance = stack.instances("smol")[0]
        endpoint = database.read(lambda s: s.get_one(EndpointRow, instance["id"]))
        database.close()
        assert (host.address, endpoint.host_id) == (way.address, host.id)
        yield Site(stack, way, network.add(), keys, host.id, host.http_port, instance["id"], endpoint.fence)
    finally:
        stack.stop()


def test_a_scan_from_another_network_finds_the_door_and_nothing_else(site: Site) -> None:
    assert scan(site.elsewhere, site.way.address) == [site.port]
    assert site.engine_port in scan(site.way, "127.0.0.1"), "the same scan sees the engine from inside"


def test_the_door_speaks_tls_only_and_is_known_by_its_certificate(site: Site) -> None:
    with socket.create_connection((site.way.address, site.port), 5) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.settimeout(5)
        assert b"HTTP" not in plain.recv(1000)
    tls = Visitor(site.keys.ca.certificate_pem, site.keys.tickets).tls
    with (
        socket.create_connection((site.way.address, site.port), 5) as connection,
        tls.wrap_socket(connection, server_hostname=name_of_host(site.host_id)) as wrapped,
    ):
        assert wrapped.version() in ("TLSv1.2", "TLSv1.3")


def test_who_has_no_ticket_for_just_this_is_turned_away_counted_and_in_the_audit_log(site: Site) -> None:
    path = f"/engines/{site.instance}/v1/completions"
    tries = {
        "no_ticket": (401, ""),
        "expired": (401, site.sign(ago=10_000)),
        "invalid": (401, site.sign(TicketSigner(new_key()))),
        "other_host": (403, site.sign(host_id="another")),
        "other_instance": (403, site.sign(instance_id="smol/9-zzzzzz")),
        "stale_fence": (403, site.sign(fence=site.fence - 1)),
        "scope": (403, site.sign(scope=Scope.HOST)),
    }
    assert site.ask(path, site.sign()).status_code == 200
    before = refused(site)
    for reason, (status, token) in tries.items():
        for _ in range(2):
            answer = site.ask(path, token)
            assert (answer.status_code, answer.headers["holdfast-refused"]) == (status, reason)
    assert {reason: count - before[reason] for reason, count in refused(site).items()} == dict.fromkeys(tries, 2.0)
    eventually(partial(audited, site, set(tries)), within=40, what="all of them are in the audit log")


def test_people_read_logs_and_metrics_through_the_door_and_nobody_else_does(site: Site) -> None:
    stack = site.stack
    logs = stack.http.get(f"/instances/{site.instance}/logs", params={"tail": 5})
    assert (logs.status_code, bool(logs.text)) == (200, True)
    assert "llamacpp:" in stack.http.get(f"/instances/{site.instance}/metrics").text
    for path in ("/metrics", f"/engines/{site.instance}/log", f"/engines/{site.instance}/metrics", "/files?path=/x"):
        assert site.ask(path, site.sign(), "GET").status_code == 403, "a gateway's ticket is for the engine"
        assert site.ask(path, "", "GET").status_code == 401
    assert site.ask(f"/engines/{site.instance}/v1/../metrics", site.sign(), "GET").status_code in (403, 404)


def test_the_engine_is_shown_to_people_at_the_door(site: Site) -> None:
    [instance] = site.stack.instances("smol")
    assert instance["endpoint"] == f"https://{site.way.address}:{site.port}/engines/{site.instance}"


def scan(way: NetworkOfHost, address: str) -> list[int]:
    """The ports that are open at ``address``, seen from there."""
    command = [*way.prefix, sys.executable, "-c", _SCAN, address]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return list(json.loads(found.stdout))


def refused(site: Site) -> dict[str, float]:
    token = site.sign(scope=Scope.HOST, instance_id="", fence=0)
    text = site.ask("/metrics", token, "GET").text
    return {r: float(n) for r, n in re.findall(r'holdfast_host_refused_total\{reason="(\w+)"\} (\S+)', text)}


def audited(site: Site, reasons: set[str]) -> bool:
    entries = site.stack.ok(site.stack.http.get("/audit", params={"outcome": "refused", "limit": 200}))["items"]
    here = {e["reason"]: e for e in entries if e["actor"] == f"host:{site.host_id}" or site.instance in e["target"]}
    assert reasons <= set(here), sorted(here)
    assert all(here[reason]["count"] >= 2 and here[reason]["peer"] for reason in reasons), here
    return True
