"""The host's own HTTP server: what only this host can see. Every call carries a ticket of the control plane."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fleet.access import tickets
from fleet.access.secrets import digest
from fleet.host_client import FileFacts
from fleet.join import Identity
from worker_host.log_reader import LogReader, NoLog

_MOST_TAIL = 100_000
_GGUF_MAGIC = b"GGUF"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class HostServer:
    identity: Identity
    models: Path
    log_reader: LogReader
    running: Callable[[], int]
    """How many engines this host answers for."""
    metrics_of: Callable[[str], Awaitable[str | None]]
    """What an engine says of itself, by instance id; None when it runs here no more or does not answer."""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/files", self._guarded(self._file)),
                Route("/engines/{instance:path}/log", self._guarded(self._log)),
                Route("/engines/{instance:path}/metrics", self._guarded(self._engine_metrics)),
                Route("/metrics", self._guarded(self._metrics)),
            ]
        )

    def _guarded(self, handler: Handler) -> Handler:
        key = digest(self.identity.credential)

        async def guarded(request: Request) -> Response:
            ticket = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not tickets.verify(ticket, key, self.identity.host_id):
                return JSONResponse({"detail": "no valid ticket of the control plane"}, 401)
            return await handler(request)

        return guarded

    async def _healthz(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _file(self, request: Request) -> Response:
        path = request.query_params.get("path", "")
        if not path or "\x00" in path:
            return JSONResponse({"detail": "path is missing"}, 400)
        facts = await asyncio.to_thread(file_facts, self.models / path)  # an absolute path replaces the folder
        return JSONResponse(facts.model_dump())

    async def _log(self, request: Request) -> Response:
        instance = request.path_params["instance"]
        tail = min(_number(request, "tail", 1000), _MOST_TAIL)
        follow = request.query_params.get("follow", "").lower() in ("1", "true", "yes")
        try:
            text = self.log_reader.read(instance, _number(request, "attempt", 0) or None, tail, follow=follow)
        except NoLog as error:
            return JSONResponse({"detail": str(error)}, 404)
        return StreamingResponse(text, media_type="text/plain; charset=utf-8")

    async def _engine_metrics(self, request: Request) -> Response:
        instance = request.path_params["instance"]
        text = await self.metrics_of(instance)
        if text is None:
            return JSONResponse({"detail": f"no engine of {instance} answers on this host"}, 404)
        return PlainTextResponse(text, media_type=_PROMETHEUS)

    async def _metrics(self, _request: Request) -> Response:
        registry = CollectorRegistry()
        ram = psutil.virtual_memory()
        for name, text, value in (
            ("holdfast_host_engines", "Engines that this host answers for", self.running()),
            ("holdfast_host_ram_bytes", "RAM of the machine", ram.total),
            ("holdfast_host_ram_available_bytes", "RAM that is available", ram.available),
        ):
            Gauge(name, text, registry=registry).set(value)
        return PlainTextResponse(generate_latest(registry), media_type=_PROMETHEUS)


def file_facts(path: Path) -> FileFacts:
    resolved = Path(os.path.realpath(path))  # unlike ``resolve``, it has an answer for a link to itself
    try:
        if not resolved.is_file():  # a pipe would keep us waiting
            return FileFacts(path=str(resolved), exists=resolved.exists())
        with resolved.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
            size = file.seek(0, 2)
    except OSError as error:
        return FileFacts(path=str(resolved), exists=error.errno != errno.ENAMETOOLONG)
    return FileFacts(path=str(resolved), exists=True, readable=True, size_bytes=size, is_gguf=magic == _GGUF_MAGIC)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default
