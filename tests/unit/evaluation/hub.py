"""A model hub in small: it holds checkpoints of their real size as files with holes."""

import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from fleet.hub_facts import HubAccess, HubFacts
from tests.unit.sizing.checkpoints import checkpoint_of, write

COMMIT = "a" * 40


class FakeHub:
    """Speaks as Hugging Face does. ``requests``: what it was asked, in order."""

    def __init__(self, *repos: str) -> None:
        self.requests: list[str] = []
        self.hold: Callable[[], Awaitable[None]] | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._files = {repo: self._written(repo) for repo in repos}

    def facts(self, **options: float) -> HubFacts:
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        access = {"huggingface": HubAccess("http://hub.test"), "modelscope": HubAccess("http://scope.test")}
        return HubFacts(access, http=client, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        self._folder.cleanup()

    def _written(self, repo: str) -> Path:
        folder = Path(self._folder.name) / repo.replace("/", "--")
        folder.mkdir()
        return write(checkpoint_of(repo), folder)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(str(request.url))
        if self.hold is not None:
            await self.hold()
        parts = request.url.path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._listing("/".join(parts[2:4]))
        return self._part(self._files.get("/".join(parts[:2])), parts[-1], request.headers.get("range", ""))

    def _listing(self, repo: str) -> httpx.Response:
        if repo not in self._files:
            return httpx.Response(404)
        siblings = [{"rfilename": f.name, "size": f.stat().st_size} for f in self._files[repo].iterdir()]
        said = json.dumps({"sha": COMMIT, "siblings": siblings}).encode()
        return httpx.Response(200, stream=httpx.ByteStream(said))

    def _part(self, folder: Path | None, name: str, wanted: str) -> httpx.Response:
        path = folder / name if folder else None
        if path is None or not path.is_file():
            return httpx.Response(404)
        first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(first)
            data = file.read(min(last, size - 1) - first + 1)
        said = {"content-range": f"bytes {first}-{first + len(data) - 1}/{size}"}
        return httpx.Response(206, stream=httpx.ByteStream(data), headers=said)
