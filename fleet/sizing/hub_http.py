"""Bounded requests to a model hub, and what its refusals mean."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from fleet.sizing.files import ReadError, ReadProblem
from fleet.sizing.hubs import Hub

_MOST_REDIRECTS = 5
_MOST_SKIPPED = 64 << 20
"""Of a server that knows no ranges, so much is read and thrown away."""
_TIMEOUT = httpx.Timeout(15.0, connect=10.0)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_LATER = "try again later, or download the model to a host and name its path"


class HubHttp:
    """For one repository."""

    def __init__(self, hub: Hub, http: httpx.AsyncClient, token: str) -> None:
        self.hub = hub
        self._http = http
        self._token = token

    @property
    def where(self) -> str:
        """The repository, for people."""
        return self.hub.page.split("://", 1)[-1]

    async def fetch(self, url: str, what: str, most: int) -> bytes:
        """``what``: for people. Raises ReadError."""
        async with self._get(url, what, {}) as answer:
            data = await _read(answer, 0, most + 1)
            if len(data) > most:
                raise ReadError(ReadProblem.TOO_LARGE, f"the list of files of {what} has more than {most:,} bytes", "")
            return data

    async def fetch_range(self, url: str, what: str, start: int, length: int, size: int) -> bytes:
        """``size``: of the whole file, as the hub lists it. Less than ``length`` where the answer breaks off. Raises
        ReadError."""
        async with self._get(url, what, {"range": f"bytes={start}-{start + length - 1}"}) as answer:
            if answer.status_code == 206:
                _check_range(answer, what, start, size)
                return await _read(answer, 0, length)
            if start > _MOST_SKIPPED:
                raise _unavailable(f"{what}: the server sends files only whole")
            return await _read(answer, start, length)

    @asynccontextmanager
    async def _get(self, url: str, what: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """The open answer of whoever has it. The token goes to the hub alone."""
        home = at = httpx.URL(url)
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                own = self.hub.headers(self._token) if _same_origin(at, home) else {}
                sent = {"accept-encoding": "identity", **headers, **own}
                async with self._http.stream(
                    "GET", at, headers=sent, follow_redirects=False, timeout=_TIMEOUT
                ) as answer:
                    if not answer.has_redirect_location:
                        self._check(answer, what)
                        yield answer
                        return
                    at = _next(at, answer, what)
        except httpx.TimeoutException as error:
            raise _unavailable(f"{what}: {self.hub.name} did not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error)[:200] or type(error).__name__
            raise _unavailable(f"{what}: {self.hub.name} cannot be reached: {reason}") from error
        raise _unavailable(f"{what}: {self.hub.name} sends in circles")

    def _check(self, answer: httpx.Response, what: str) -> None:
        status, code = answer.status_code, answer.headers.get("x-error-code", "")
        if status in (401, 403):
            raise self._gated(what, code)
        if status == 404:
            raise gone(_missing(what, code))
        if status == 416:
            raise _changed(what)
        if status not in (200, 206):
            limited = status == 429
            said = "allows no more requests now" if limited else f"answered {status}"
            raise _unavailable(f"{what}: {self.hub.name} {said}", self._token_hint() if limited else _LATER)
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise _unavailable(f"{what}: the server packs what it was asked for as it is")

    def _gated(self, what: str, code: str) -> ReadError:
        if code == "GatedRepo":
            message = f"{what}: its owner wants terms accepted first"
        else:
            message = f"{what}: it is not for everybody, or does not exist"
        return ReadError(
            ReadProblem.GATED,
            message,
            f"accept the licence at {self.hub.page}, then set {self.hub.token_setting} to a token of that account",
        )

    def _token_hint(self) -> str:
        return _LATER if self._token else f"set {self.hub.token_setting}: those who are known may ask more often"


def gone(message: str) -> ReadError:
    return ReadError(ReadProblem.MISSING, message, "check model.repo, model.revision and model.file")


def _missing(what: str, code: str) -> str:
    reasons = {
        "RevisionNotFound": "there is no such revision",
        "EntryNotFound": "there is no such file",
        "RepoNotFound": "there is no such repository",
    }
    return f"{what}: {reasons.get(code, 'there is no such repository, revision or file')}"


def _next(at: httpx.URL, answer: httpx.Response, what: str) -> httpx.URL:
    to = at.join(answer.headers["location"])
    if to.scheme not in ("http", "https") or (at.scheme == "https" and to.scheme != "https"):
        raise _unavailable(f"{what}: the server sends us to where nothing is encrypted ({to.host})")
    return to


def _same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


async def _read(answer: httpx.Response, skip: int, length: int) -> bytes:
    """At most ``length`` bytes after the first ``skip``."""
    found = bytearray()
    async for chunk in answer.aiter_raw(64 << 10):
        found += chunk[skip:] if skip < len(chunk) else b""
        skip = max(0, skip - len(chunk))
        if len(found) >= length:
            break
    return bytes(found[:length])


def _check_range(answer: httpx.Response, what: str, start: int, size: int) -> None:
    said = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if said is None or int(said[1]) != start:
        raise _unavailable(f"{what}: the server sends another part than it was asked for")
    if said[3] not in ("*", str(size)):
        raise _changed(what)


def _changed(what: str) -> ReadError:
    return ReadError(ReadProblem.UNAVAILABLE, f"{what} has another size than the hub lists", "try again in a moment")


def _unavailable(message: str, hint: str = _LATER) -> ReadError:
    return ReadError(ReadProblem.UNAVAILABLE, message, hint)
