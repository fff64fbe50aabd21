"""What the gateway costs: CPU per request, and the latency that it adds, against an engine that costs next to nothing.

``python -m tests.bench.gateway`` prints one JSON object a line. Compare only inside one run, by ratio (``vs``):
absolute values move with whatever else the machine does. Gateway, engine and load are processes of their own.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.bench.load import Sample, Straight, chat, measure
from tests.bench.mock_engine import CHUNKS, mock_engine
from tests.unit.gateway.process import free_port, gateway_process, new_database
from tests.unit.gateway.world import KEY, World

CLIENTS = 32
STREAMS = 64


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        engine, engine_pid = stack.enter_context(mock_engine())
        gateway, gateway_pid = stack.enter_context(gateway_process(_database(folder, engine)))
        targets = {"direct": (engine, engine_pid), "gateway": (gateway, gateway_pid)}
        binary = shutil.which("nginx")
        if binary is None:
            _print("nginx", None, "", left_out="nginx is not on PATH")
        else:
            targets["nginx"] = stack.enter_context(_nginx(binary, folder, engine))
        _report_plain({name: _measure(target, 1) for name, target in targets.items()}, 1)
        _report_plain({name: _measure(target, CLIENTS) for name, target in targets.items()}, CLIENTS)
        _report_streams({name: _measure(target, STREAMS, stream=True) for name, target in targets.items()})
        memory = psutil.Process(gateway_pid).memory_full_info().pss / 2**20
        _print("memory_pss", memory, "MiB")


def _measure(target: tuple[str, int], clients: int, *, stream: bool = False) -> Sample:
    base, pid = target
    request = chat("/v1/chat/completions", f"Authorization: Bearer {KEY}", stream=stream)
    return measure(Straight(base), request, [pid], clients, stream=stream)


def _report_plain(samples: dict[str, Sample], clients: int) -> None:
    direct, gateway = samples["direct"], samples["gateway"]
    _print(f"added_latency_p50_c{clients}", gateway.p50_ms - direct.p50_ms, "ms", direct=direct.p50_ms)
    _print(f"requests_per_second_c{clients}", gateway.requests / gateway.elapsed, "1/s")
    _print(f"cpu_per_request_c{clients}", gateway.cpu_ms, "ms", **_ratios(samples))


def _report_streams(samples: dict[str, Sample]) -> None:
    direct, gateway = samples["direct"], samples["gateway"]
    _print("stream_added_first_event_p50", gateway.p50_ms - direct.p50_ms, "ms", direct=direct.p50_ms)
    _print(f"cpu_per_stream_of_{CHUNKS}", gateway.cpu_ms, "ms", **_ratios(samples))
    _print("cpu_per_chunk", gateway.cpu_ms / CHUNKS * 1000, "us", **_ratios(samples))
    _print("stream_chunks_per_second", gateway.requests * CHUNKS / gateway.elapsed, "1/s")


def _ratios(samples: dict[str, Sample]) -> dict[str, float]:
    """The gateway's CPU as a multiple of nginx's, and of the mock engine's own."""
    cpu = samples["gateway"].cpu_ms
    ratios = {"cpu_of_engine": cpu / samples["direct"].cpu_ms}
    if "nginx" in samples:
        ratios["cpu_of_nginx"] = cpu / samples["nginx"].cpu_ms
    return ratios


def _print(metric: str, value: float | None, unit: str, **vs: float | str) -> None:
    rounded = {name: against if isinstance(against, str) else round(against, 3) for name, against in vs.items()}
    shown = None if value is None else round(value, 4)
    line = {"bench": "gateway", "metric": metric, "value": shown, "unit": unit, "vs": rounded}
    print(json.dumps(line), flush=True)


def _database(folder: Path, engine: str) -> str:
    database = new_database(f"sqlite:///{folder / 'db'}")
    world = World(database)
    world.add_key(KEY)
    world.serve("m", engine, capacity=4 * STREAMS)
    database.close()
    return str(database.url)


@contextmanager
def _nginx(binary: str, folder: Path, engine: str) -> Iterator[tuple[str, int]]:
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, engine=engine.removeprefix("http://")))
    command = [binary, "-p", str(folder), "-e", str(folder / "nginx.log"), "-c", str(config)]
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        try:
            asyncio.run(_until_open(port))
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait(10)


async def _until_open(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream engine {{ server {engine}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


if __name__ == "__main__":
    main()
