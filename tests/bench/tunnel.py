"""What the way to an engine costs: through the door of its host (TLS, ticket, proxy), and through a relay's tunnel.

``python -m tests.bench.tunnel`` prints one JSON object a line. The engine costs next to nothing; host, relay, engine
and load are processes of their own. Compare only inside one run: ``vs`` has what the direct way takes.
"""

import asyncio
import json
import ssl
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fleet.access.authority import name_of_host
from fleet.access.visitor import Visitor
from tests.bench.load import Sample, Straight, Streams, Way, chat, measure, percentile
from tests.bench.mock_engine import CHUNKS, mock_engine
from tests.door_process import FENCE, HOST, INSTANCE, prepare, process

CLIENTS = 32
STREAMS = 16
STREAM_SECONDS = 4.0
_READY_WITHIN_S = 20.0


@dataclass(frozen=True)
class Tunnelled:
    """Inside a tunnel of the relay, as gateways go."""

    relay: str
    visitor: Visitor

    async def open(self) -> Streams:
        host, port = self.relay.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        ticket = self.visitor.tunnel(HOST)
        lines = (f"CONNECT {HOST}:443 HTTP/1.1", f"Host: {HOST}:443", f"Proxy-Authorization: Bearer {ticket}", "", "")
        writer.write("\r\n".join(lines).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head:
            raise ConnectionRefusedError(head.decode())
        await writer.start_tls(self.visitor.tls, server_hostname=name_of_host(HOST))
        return reader, writer


@dataclass(frozen=True)
class Target:
    way: Way
    request: Callable[[bool], bytes]
    """By whether its answer is streamed."""
    pids: dict[str, int]
    """Of the processes on the way, the engine left out."""


def main() -> None:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        keys = prepare(home)
        visitor = Visitor(keys.ca.certificate_pem, keys.tickets)
        engine, engine_pid = stack.enter_context(mock_engine())
        relay, relay_pid = stack.enter_context(process("relay", str(home)))
        host, host_pid = stack.enter_context(process("host", str(home), engine))
        tunnel = Tunnelled(relay, visitor)
        asyncio.run(_until_open(tunnel))
        ticketed = (f"/engines/{INSTANCE}", f"Authorization: Bearer {visitor.engine(HOST, INSTANCE, FENCE)}")
        targets = {
            "direct": Target(Straight(engine), _asking(""), {"engine": engine_pid}),
            "proxy": Target(_to(host, visitor.tls), _asking(*ticketed), {"host": host_pid}),
            "tunnel": Target(tunnel, _asking(*ticketed), {"host": host_pid, "relay": relay_pid}),
        }
        _report_plain({name: _measure(target, 1) for name, target in targets.items()}, 1)
        _report_plain({name: _measure(target, CLIENTS) for name, target in targets.items()}, CLIENTS)
        _report_streams({name: _measure(target, STREAMS, stream=True) for name, target in targets.items()})


def _to(host: str, tls: ssl.SSLContext) -> Straight:
    return Straight(host, tls, name_of_host(HOST))


def _asking(prefix: str, *lines: str) -> Callable[[bool], bytes]:
    return lambda stream: chat(f"{prefix}/v1/chat/completions", *lines, stream=stream, clock=stream)


async def _until_open(tunnel: Tunnelled) -> None:
    """The host has called the relay."""
    deadline = time.monotonic() + _READY_WITHIN_S
    while True:
        try:
            _, writer = await tunnel.open()
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.transport.abort()
            return


def _measure(target: Target, clients: int, *, stream: bool = False) -> Sample:
    pids = list(target.pids.values())
    seconds = STREAM_SECONDS if stream else 2.0
    return measure(target.way, target.request(stream), pids, clients, stream=stream, seconds=seconds)


def _report_plain(samples: dict[str, Sample], clients: int) -> None:
    direct = samples["direct"]
    for name, sample in samples.items():
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            against = percentile(direct.seconds, share)
            _print(f"{name}_latency_{label}_c{clients}", percentile(sample.seconds, share), "ms", direct=against)
        _print(f"{name}_cpu_per_request_c{clients}", sample.cpu_ms, "ms", cpu_of_engine=sample.cpu_ms / direct.cpu_ms)


def _report_streams(samples: dict[str, Sample]) -> None:
    direct = samples["direct"]
    for name, sample in samples.items():
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            first, chunk = percentile(direct.seconds, share), percentile(direct.chunks, share)
            _print(f"{name}_first_event_{label}", percentile(sample.seconds, share), "ms", direct=first)
            _print(f"{name}_event_{label}", percentile(sample.chunks, share), "ms", direct=chunk)
        _print(
            f"{name}_cpu_per_event", sample.cpu_ms / CHUNKS * 1000, "us", cpu_of_engine=sample.cpu_ms / direct.cpu_ms
        )
    for name in ("proxy", "tunnel"):
        first = samples[name].p50_ms - direct.p50_ms
        event = percentile(samples[name].chunks, 0.5) - percentile(direct.chunks, 0.5)
        _print(f"{name}_added_first_event_p50", first, "ms", wanted_at_most=2.0)
        _print(f"{name}_added_event_p50", event, "ms", wanted_at_most=2.0)


def _print(metric: str, value: float, unit: str, **vs: float) -> None:
    rounded = {name: round(against, 3) for name, against in vs.items()}
    print(json.dumps({"bench": "tunnel", "metric": metric, "value": round(value, 4), "unit": unit, "vs": rounded}))


if __name__ == "__main__":
    main()
