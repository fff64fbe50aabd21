"""The host's one port: the way to its engines, and what only this host can see. Only ``/healthz`` takes no ticket."""

import asyncio
import contextlib
import functools
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fleet.access.tickets import Scope, TicketReader
from fleet.http.passage import NotPassed, Passage, UpgradeRequest, plain_answer
from fleet.http.server import BoundedHttp
from fleet.inventory import EngineRef
from fleet.serving import serving
from fleet.telemetry import Refusal
from worker_host.guard import Guard, NotAdmitted
from worker_host.log_reader import LogReader, NoLog
from worker_host.model_reader import ModelReader
from worker_host.proxy import EngineProxy, Load, Receive, Running, Send, authorization_of, peer_of, refuse

App = Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]

_MOST_TAIL = 100_000
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_KEEP_IDLE_S = 75
"""Longer than gateways keep a connection, so that it is they who close it."""
_VANISHED_S = 330
"""Longer than a gateway lets a client not read."""

_TO_ENGINE = re.compile(rb"/engines/([A-Za-z0-9][A-Za-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9.-]*)(/v1/.*)", re.DOTALL)
_UPGRADES = frozenset({b"/v1/realtime"})
_OF_ENGINE = re.compile(r"/engines/(.+)/(?:log|metrics)", re.DOTALL)


class HostServer:
    """ASGI 3."""

    def __init__(
        self,
        *,
        host_id: str,
        tickets: TicketReader,
        models: Path,
        log_reader: LogReader,
        running: Callable[[str], Running | None],
        metrics_of: Callable[[str], Awaitable[str | None]],
        metrics: Callable[[], bytes],
    ) -> None:
        """``tickets``: of any host, so that one for another can be told from one that is no good.

        ``running``: the engine of an instance, if one runs here. ``metrics_of``: what it says of itself; None when it
        runs here no more or does not answer. ``metrics``: what the host says of itself, in Prometheus' format; blocks.
        """
        self._models = models
        self._reader = ModelReader()
        self._log_reader = log_reader
        self._metrics_of = metrics_of
        self._metrics_of_host = metrics
        self._registry = CollectorRegistry()
        self._guard = Guard(host_id, tickets, self._registry)
        self._proxy = EngineProxy(self._guard, running, self._registry)
        self._rest = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/files", self._file),
                Route("/engines/{instance:path}/log", self._log),
                Route("/engines/{instance:path}/metrics", self._engine_metrics),
                Route("/metrics", self._metrics),
            ]
        )

    def take_refusals(self) -> tuple[Refusal, ...]:
        """Whom the door has turned away since the last time. May be called from any thread."""
        return self._guard.take_refusals()

    def loads(self) -> dict[EngineRef, Load]:
        """What engines were asked through the proxy. May be called from any thread."""
        return self._proxy.loads()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        to_engine = _TO_ENGINE.fullmatch(scope["raw_path"])
        if to_engine is not None and not _climbs(to_engine[2]):
            await self._proxy.serve(to_engine[1].decode(), to_engine[2], scope, receive, send)
            return
        try:
            self._admit(scope)
        except NotAdmitted as refusal:
            await refuse(send, refusal.reason, str(refusal))
            return
        await self._rest(scope, receive, send)  # type: ignore[arg-type]

    async def hand_through(self, request: UpgradeRequest, passage: Passage) -> None:
        """A connection that is to become a websocket. Raises NotPassed."""
        to_engine = _TO_ENGINE.fullmatch(request.path)
        if to_engine is None or to_engine[2] not in _UPGRADES:
            raise NotPassed(plain_answer(404))
        await self._proxy.hand_through(to_engine[1].decode(), to_engine[2], request, passage)

    def _admit(self, scope: Mapping[str, Any]) -> None:
        """Raises NotAdmitted."""
        path: str = scope["path"]
        if path == "/healthz":
            return
        of_engine = _OF_ENGINE.fullmatch(path)
        instance_id = of_engine[1] if of_engine is not None else ""
        self._guard.admit(authorization_of(scope["headers"]), peer_of(scope), Scope.HOST, instance_id)

    async def _healthz(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _file(self, request: Request) -> Response:
        path = request.query_params.get("path", "")
        if not path or "\x00" in path:
            return JSONResponse({"detail": "path is missing"}, 400)
        facts = await self._reader.facts(self._models / path)  # an absolute path replaces the folder
        return Response(facts.model_dump_json(), media_type="application/json")

    async def _log(self, request: Request) -> Response:
        instance = request.path_params["instance"]
        tail = min(_number(request, "tail", 1000), _MOST_TAIL)
        follow = request.query_params.get("follow", "").lower() in ("1", "true", "yes")
        try:
            text = self._log_reader.read(instance, _number(request, "attempt", 0) or None, tail, follow=follow)
        except NoLog as error:
            return JSONResponse({"detail": str(error)}, 404)
        return StreamingResponse(text, media_type="text/plain; charset=utf-8")

    async def _engine_metrics(self, request: Request) -> Response:
        instance = request.path_params["instance"]
        text = await self._metrics_of(instance)
        if text is None:
            return JSONResponse({"detail": f"no engine of {instance} answers on this host"}, 404)
        return PlainTextResponse(text, media_type=_PROMETHEUS)

    async def _metrics(self, _request: Request) -> Response:
        text = await asyncio.to_thread(self._metrics_of_host)
        return PlainTextResponse(text + generate_latest(self._registry), media_type=_PROMETHEUS)


@contextlib.asynccontextmanager
async def open_door(
    app: App,
    hand_through: Callable[[UpgradeRequest, Passage], Awaitable[None]],
    listening: socket.socket,
    tls: ssl.SSLContext,
    *,
    grace_s: float,
) -> AsyncIterator[None]:
    """Serve inside the block; open requests get ``grace_s`` to finish at its end."""
    _notice_who_vanishes(listening)
    async with serving(
        app,
        listening,
        tls=tls,
        grace_s=grace_s,
        lifespan="off",
        http=BoundedHttp,
        ws=functools.partial(Passage, hand_through),
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_IDLE_S,
    ):
        yield


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default


def _climbs(path: bytes) -> bool:
    """Whether it has segments that would lead elsewhere."""
    if b"/." not in path and b"%" not in path:
        return False
    return any(segment in (b".", b"..") for segment in unquote_to_bytes(path).split(b"/"))


def _notice_who_vanishes(listening: socket.socket) -> None:
    """Connections inherit this. The other end may hold us back for long, so silence alone says nothing."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": _VANISHED_S * 1000}
    for name, value in seconds.items():
        if (option := getattr(socket, name, None)) is not None:  # some are Linux only
            listening.setsockopt(socket.IPPROTO_TCP, option, value)
