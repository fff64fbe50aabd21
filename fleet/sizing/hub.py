"""Facts of a model on a hub, from its config and the headers of its files: no weights are fetched."""

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import httpx

from fleet.sizing.facts import ModelFacts, ModelFile
from fleet.sizing.files import ReadError, ReadProblem, Span
from fleet.sizing.hub_http import HubHttp, gone
from fleet.sizing.hubs import Listing, Source, hub_of
from fleet.sizing.json_fields import parse_object
from fleet.sizing.read import read_model

_T = TypeVar("_T")

_AT_ONCE = 8
_MOST_LISTING = 32 << 20
_MOST_FETCHED = 512 << 20
"""Of one model. The headers of the largest take some 20 MB."""
_DEADLINE_S = 60.0


async def read_hub(
    source: Source,
    repo: str,
    revision: str | None,
    file: str | None,
    *,
    http: httpx.AsyncClient,
    token: str = "",
    endpoint: str = "",
    deadline_s: float = _DEADLINE_S,
) -> ModelFacts:
    """``revision``: None for the hub's default. ``file``: of a repository with several models (GGUF).

    The token is shown to the hub alone, not to where it sends us for the files. Raises ReadError.
    """
    files = HubFiles(HubHttp(hub_of(source, repo, endpoint), http, token), revision or "")
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-hub")
    try:
        async with asyncio.timeout(deadline_s):
            return await asyncio.get_running_loop().run_in_executor(pool, _read, files, file)
    except TimeoutError:
        raise ReadError(
            ReadProblem.UNAVAILABLE,
            f"{files.where} could not be read within {deadline_s:g} s",
            "try again, or download the model to a host and name its path",
        ) from None
    finally:
        files.close()
        pool.shutdown(wait=False)


def _read(files: "HubFiles", file: str | None) -> ModelFacts:
    if not file:
        return read_model(files)
    found = next((f for f in files.list() if f.name == file), None)
    if found is None:
        raise gone(f"{files.where} has no file {file!r}")
    return read_model(files, found)


class HubFiles:
    """A repository at one revision. Used by a thread, while its requests run on the loop it was made on."""

    def __init__(self, http: HubHttp, revision: str) -> None:
        self._http = http
        self._asked = revision
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._listing: Listing | None = None
        self._sizes: dict[str, int] = {}
        self._left = _MOST_FETCHED
        self._running: Future[Any] | None = None
        self._closed = False

    @property
    def where(self) -> str:
        return self._http.where + (f" at {self._asked}" if self._asked else "")

    def close(self) -> None:
        """What is under way is given up, and the thread that waits for it ends."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()

    def list(self) -> Sequence[ModelFile]:
        return self._known().files

    def read(self, spans: Sequence[Span]) -> Sequence[bytes]:
        revision = self._known().revision
        self._left -= sum(span.length for span in spans)
        if self._left < 0:
            raise ReadError(
                ReadProblem.TOO_LARGE, f"the headers of {self.where} take more than {_MOST_FETCHED >> 20} MiB", ""
            )
        return self._wait(self._gather(spans, revision))

    def _known(self) -> Listing:
        if self._listing is None:
            answer = self._wait(self._http.fetch(self._http.hub.listing_url(self._asked), self.where, _MOST_LISTING))
            try:
                self._listing = self._http.hub.listing(parse_object(answer, "the list of its files"), self._asked)
            except (ValueError, ReadError) as error:
                raise ReadError(
                    ReadProblem.UNAVAILABLE,
                    f"{self.where}: {self._http.hub.name} answered what is no list of files: {error}",
                    "is the endpoint that of a model hub?",
                ) from error
            self._sizes = {f.name: f.size for f in self._listing.files}
        return self._listing

    async def _gather(self, spans: Sequence[Span], revision: str) -> Sequence[bytes]:
        tasks = [asyncio.ensure_future(self._one(span, revision)) for span in spans]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, span: Span, revision: str) -> bytes:
        size = self._sizes.get(span.name, 0)
        length = min(span.length, max(0, size - span.start))
        if length <= 0:
            return b""
        async with self._room:
            url = self._http.hub.file_url(revision, span.name)
            return await self._http.fetch_range(url, f"{span.name} of {self.where}", span.start, length, size)

    def _wait(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Of the thread."""
        self._running = running = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        if self._closed:
            running.cancel()
        with suppress(CancelledError):
            return running.result()
        raise ReadError(ReadProblem.UNAVAILABLE, f"{self.where} is not read any more", "try again")
