"""A small stand-in for the API, served for real on a loopback port."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "hf-key-test"
WORKFLOW_URL = "http://127.0.0.1:8233/namespaces/default/workflows/x"

Json = dict[str, Any]


def deployment(name: str = "smollm2", **status: Any) -> Json:
    return {
        "name": name,
        "labels": {"team": "a"},
        "spec": {"model": {"source": "local", "path": "m.gguf"}, "engine": "auto", "replicas": 1},
        "created_at": "2026-11-20T10:00:00Z",
        "status": {
            "phase": "ready",
            "ready_replicas": 1,
            "desired_replicas": 1,
            "revision": 1,
            "generation": 1,
            "message": "1 of 1 replicas ready",
            "hint": "",
            "conditions": [],
            "workflow_url": WORKFLOW_URL,
            **status,
        },
    }


def instance(**changes: Any) -> Json:
    return {
        "id": "smollm2/1-3f2a9c01",
        "deployment": "smollm2",
        "revision": 1,
        "state": "ready",
        "host_id": "host-1",
        "gpu_uuids": [],
        "endpoint": "http://127.0.0.1:9999",
        "fence": 1,
        "restarts": 0,
        "message": "",
        "hint": "",
        "progress": None,
        "pid": 4711,
        "workflow_url": WORKFLOW_URL,
        "created_at": "2026-11-20T10:00:00Z",
        "updated_at": "2026-11-20T10:00:00Z",
        **changes,
    }


def host(**changes: Any) -> Json:
    return {
        "id": "host-1",
        "name": "alpha",
        "state": "ready",
        "message": "",
        "address": "127.0.0.1",
        "version": "0.1.0",
        "labels": {},
        "inventory": {
            "cpu_count": 2,
            "ram_bytes": 24 << 30,
            "engines": [{"engine": "llama_cpp", "version": "1"}],
        },
        "ram_allocatable_bytes": 20 << 30,
        "ram_used_bytes": 1 << 30,
        "gpus": [],
        "maintenance": "none",
        "maintenance_message": "",
        "lost_at": None,
        "replacement_paused": False,
        "joined_at": "2026-11-20T10:00:00Z",
        "workflow_url": WORKFLOW_URL,
        **changes,
    }


@dataclass
class FakeApi:
    """Set what it answers; read what it was asked."""

    url: str = ""
    deployments: list[Json] = field(default_factory=list)
    """Served one after the other to ``GET /deployments/{name}``; the last one again and again."""
    instances: list[Json] = field(default_factory=list)
    hosts: list[Json] = field(default_factory=list)
    gpus: list[Json] = field(default_factory=list)
    revisions: list[Json] = field(default_factory=list)
    keys: list[Json] = field(default_factory=list)
    tokens: list[Json] = field(default_factory=list)
    audit: list[Json] = field(default_factory=list)
    usage: list[Json] = field(default_factory=list)
    defragmentations: list[Json] = field(default_factory=list)
    batches: list[Json] = field(default_factory=list)
    routes: list[Json] = field(default_factory=list)
    providers: list[Json] = field(default_factory=list)
    checked: Json = field(default_factory=dict)
    """What asking a provider brings."""
    evaluation: Json = field(default_factory=dict)
    note: str = ""
    """Of join tokens."""
    gone_after: dict[str, int] = field(default_factory=dict)
    """So often an instance or host is still there when asked for by its id."""
    lost: Json = field(default_factory=lambda: {"deployments": [], "hosts": []})
    """What Temporal does not know any more."""
    resynced: Json = field(default_factory=dict)
    problem: tuple[int, Json] | None = None
    """Answered to everything under /api/v1 and /v1 instead."""
    database: bool = True
    temporal: bool = True
    is_holdfast: bool = True
    page_size: int = 100
    chunks: list[str] = field(default_factory=lambda: ["Pa", "ris."])
    ends_properly: bool = True
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    """(method, path with query, body)."""

    def app(self) -> Starlette:
        everything = ["GET", "POST", "PATCH", "DELETE"]
        return Starlette(
            routes=[
                Route("/healthz", self._health),
                Route("/readyz", self._ready),
                Route("/version", self._version),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/api/v1/{rest:path}", self._management, methods=everything),
            ]
        )

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": "0.1.0"}) if self.is_holdfast else Response("<html>Welcome to nginx</html>")

    async def _ready(self, _: Request) -> Response:
        if not self.database:
            return JSONResponse({"status": "down", "database": "locked", "temporal": self.temporal}, status_code=503)
        status = "ok" if self.temporal else "degraded"
        return JSONResponse({"status": status, "database": True, "temporal": self.temporal})

    async def _refusal(self, request: Request) -> Response | None:
        body = await request.body()
        query = f"?{request.url.query}" if request.url.query else ""
        record = (request.method, request.url.path + query, json.loads(body) if body else None)
        self.requests.append(record)
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"title": "Not authenticated", "detail": "the key is not known"}, status_code=401)
        if self.problem:
            return JSONResponse(self.problem[1], status_code=self.problem[0])
        return None

    async def _chat(self, request: Request) -> Response:
        if refusal := await self._refusal(request):
            return refusal

        def events() -> Iterator[str]:
            yield 'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
            for text in self.chunks:
                yield f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n"
            if self.ends_properly:
                yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _management(self, request: Request) -> Response:
        if refusal := await self._refusal(request):
            return refusal
        path, method = request.path_params["rest"], request.method
        collections = {"instances": self.instances, "hosts": self.hosts, "gpus": self.gpus, "api-keys": self.keys}
        collections |= {"join-tokens": self.tokens, "audit": self.audit, "defragmentations": self.defragmentations}
        collections |= {"usage": self.usage, "batches": self.batches}
        named = {"routes": self.routes, "providers": self.providers}
        collections |= named
        if path == "deployments" and method == "GET":
            return self._page(request, self.deployments)
        if path in collections and method == "GET":
            return self._page(request, collections[path])
        if path.partition("/")[0] in named:
            return self._named(named[path.partition("/")[0]], path.partition("/")[2], method, path)
        if path.endswith("/approve-retry"):
            return JSONResponse({"instances": [i["id"] for i in self.instances]}, status_code=202)
        if path.startswith("gpus/"):
            return JSONResponse(self.gpus[0])
        if path == "evaluations" and method == "POST":
            return JSONResponse(self.evaluation)
        if path.startswith("defragmentations"):
            return JSONResponse(self.defragmentations[0], status_code=202)
        if path.startswith("batches/"):
            return JSONResponse(self.batches[0])
        if path == "system/lost":
            return JSONResponse(self.lost)
        if path == "system/resync" and method == "POST":
            return JSONResponse(self.resynced)
        if path.endswith("/revisions"):
            return self._page(request, self.revisions)
        if path.endswith("/logs"):
            return Response("line 1\nline 2\n", media_type="text/plain")
        return self._one(path, method)

    def _named(self, known: list[Json], name: str, method: str, path: str) -> Response:
        if name.endswith("/check"):
            return JSONResponse(self.checked)
        if method == "POST":
            return JSONResponse(known[-1], status_code=201)
        if method == "DELETE":
            return Response(status_code=204)
        found = next((one for one in known if one["name"] == name), None)
        missing = {"title": "Not found", "detail": f"no {path}"}
        return JSONResponse(missing, status_code=404) if found is None else JSONResponse(found)

    def _one(self, path: str, method: str) -> Response:
        collection, _, identity = path.partition("/")
        if method == "DELETE":
            return Response(status_code=202)
        if collection == "api-keys":
            return JSONResponse({"id": "key-1", "key": "hf-key-new"}, status_code=201)
        if collection == "join-tokens":
            made = {
                "id": "join-1",
                "token": "hf-join-x",
                "expires_at": "2026-11-20T11:00:00Z",
                "command": "run me",
                "commands": {
                    "process": "run me",
                    "container": "docker run me",
                    "systemd": "install me",
                    "cloud_init": "#cloud-config",
                },
                "note": self.note,
            }
            return JSONResponse(made, status_code=201)
        if collection == "deployments" and self.deployments:
            return JSONResponse(self.deployments.pop(0) if len(self.deployments) > 1 else self.deployments[0])
        if path == "hosts/approve-replacement":
            return JSONResponse({"hosts": [h["id"] for h in self.hosts]}, status_code=202)
        identity = identity.removesuffix("/drain").removesuffix("/resume").removesuffix("/approve-replacement")
        identity = identity.removesuffix("/revoke")
        if identity in self.gone_after:
            self.gone_after[identity] -= 1
            if self.gone_after[identity] < 0:
                return JSONResponse({"title": "Not found", "detail": f"no {path}"}, status_code=404)
        for ones in (self.instances, self.hosts):
            for n, one in enumerate(ones):
                if one["id"] == identity:
                    # As with deployments: of several with one id, the last one is served again and again.
                    return JSONResponse(ones.pop(n) if any(o["id"] == identity for o in ones[n + 1 :]) else one)
        return JSONResponse({"title": "Not found", "detail": f"no {path}"}, status_code=404)

    def _page(self, request: Request, items: list[Json]) -> Response:
        start = int(request.query_params.get("cursor", "0"))
        end = start + self.page_size
        more = str(end) if end < len(items) else None
        return JSONResponse({"items": items[start:end], "next_cursor": more})


@contextmanager
def serving(fake: FakeApi) -> Iterator[FakeApi]:
    config = uvicorn.Config(fake.app(), port=0, log_level="critical", ws="none")
    socket = config.bind_socket()
    socket.listen()  # else whoever is quicker than the thread below is refused
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    fake.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join()
        socket.close()
