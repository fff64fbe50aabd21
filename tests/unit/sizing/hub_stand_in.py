"""A stand-in for model hubs, with the ways of real ones: large files lie elsewhere, some want tokens, some lie."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from fleet.serving import listen, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_PIECE = 256 << 10


@dataclass
class Repo:
    """One, of files in a folder, as both hubs show it."""

    folder: Path
    name: str = "acme/small"
    ranges: bool = True
    token: str = ""
    """Without which there is 403 (401 for those who show none)."""
    gated: bool = False
    status: int = 0
    """Of all answers."""
    slow: bool = False
    """Never answers."""
    sizes: dict[str, int] = field(default_factory=dict)
    """That are listed, instead of the true ones."""
    circles: bool = False
    listing: bytes | None = None
    cdn: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(path, range, authorization), of the hub and of where it sends."""
    sent: int = 0
    """Bytes of files."""
    busy: int = 0
    busiest: int = 0

    async def hub(self, request: Request) -> Response:
        self._note(request)
        if self.slow:
            await asyncio.Event().wait()
        if self.status:
            return Response(status_code=self.status)
        shown = request.headers.get("authorization", "")
        if self.token and shown != f"Bearer {self.token}":
            headers = {"x-error-code": "GatedRepo"} if self.gated else {}
            return Response(status_code=403 if shown else 401, headers=headers)
        return self._answer(request)

    async def storage(self, request: Request) -> Response:
        """Where large files are."""
        self._note(request)
        if self.circles:
            return RedirectResponse(str(request.url), 302)
        return self._part(request, self.folder / request.path_params["file"])

    def _answer(self, request: Request) -> Response:
        path = request.url.path
        if path.startswith(f"/api/models/{self.name}") or path == f"/api/v1/models/{self.name}/repo/files":
            return self._list(request)
        if path == f"/api/v1/models/{self.name}/repo":
            return self._file(request, request.query_params["FilePath"])
        for revision in (COMMIT, "main"):
            if path.startswith(start := f"/{self.name}/resolve/{revision}/"):
                return self._file(request, path.removeprefix(start))
        return Response(status_code=404, headers={"x-error-code": "RepoNotFound"})

    def _list(self, request: Request) -> Response:
        if self.listing is not None:
            return Response(self.listing, media_type="application/json")
        revision = request.url.path.partition("/revision/")[2] or request.query_params.get("Revision", "")
        if revision not in ("", "main", "master", COMMIT):
            return Response(status_code=404, headers={"x-error-code": "RevisionNotFound"})
        there = {p.name: self.sizes.get(p.name, p.stat().st_size) for p in sorted(self.folder.iterdir())}
        if "/v1/" in request.url.path:
            files = [{"Name": n, "Path": n, "Type": "blob", "Size": s} for n, s in there.items()]
            return JSONResponse({"Code": 200, "Data": {"Files": [{"Path": "d", "Type": "tree", "Size": 0}, *files]}})
        siblings = [{"rfilename": n, "size": s, "blobId": "b"} for n, s in there.items()]
        return JSONResponse({"id": self.name, "sha": COMMIT, "siblings": siblings})

    def _file(self, request: Request, name: str) -> Response:
        path = self.folder / name
        if not path.is_file():
            return Response(status_code=404, headers={"x-error-code": "EntryNotFound"})
        if name.endswith((".safetensors", ".gguf")):
            headers = {"x-repo-commit": COMMIT, "x-linked-size": str(path.stat().st_size), "x-linked-etag": '"e"'}
            return RedirectResponse(f"{self.cdn}/{name}", 302, headers)
        return self._part(request, path)

    def _part(self, request: Request, path: Path) -> Response:
        size = path.stat().st_size
        asked = request.headers.get("range", "") if self.ranges else ""
        start, _, end = asked.removeprefix("bytes=").partition("-")
        first, last = int(start or 0), min(int(end or size), size - 1)
        headers = {
            "content-length": str(last - first + 1),
            "etag": '"e"',
            "x-repo-commit": COMMIT,
            "accept-ranges": "bytes",
        }
        if asked:
            headers["content-range"] = f"bytes {first}-{last}/{size}"
        if request.method == "HEAD":
            return Response(headers=headers)
        return StreamingResponse(self._bytes(path, first, last + 1), 206 if asked else 200, headers)

    async def _bytes(self, path: Path, start: int, end: int) -> AsyncIterator[bytes]:
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            with path.open("rb") as file:
                file.seek(start)
                while start < end:
                    piece = file.read(min(_PIECE, end - start))
                    start += len(piece)
                    self.sent += len(piece)
                    yield piece
                    await asyncio.sleep(0)
        finally:
            self.busy -= 1

    def _note(self, request: Request) -> None:
        headers = request.headers
        self.asked.append((request.url.path, headers.get("range", ""), headers.get("authorization", "")))


@asynccontextmanager
async def open_hub(repo: Repo) -> AsyncIterator[str]:
    """Its URL."""
    app = Starlette(routes=[Route("/{path:path}", repo.hub, methods=["GET", "HEAD"])])
    storage = Starlette(routes=[Route("/{file:path}", repo.storage, methods=["GET", "HEAD"])])
    hub_socket, storage_socket = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    repo.cdn = f"http://127.0.0.1:{storage_socket.getsockname()[1]}"
    async with (
        serving(storage, storage_socket, grace_s=0.1, lifespan="off"),
        serving(app, hub_socket, grace_s=0.1, lifespan="off"),
    ):
        yield f"http://127.0.0.1:{hub_socket.getsockname()[1]}"
