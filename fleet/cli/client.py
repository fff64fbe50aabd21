"""The management API and the gateway, as the command line uses them."""

import ipaddress
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from fleet.errors import HoldfastError
from fleet.settings import Settings

Json = dict[str, Any]

TIMEOUT = httpx.Timeout(60, connect=5)
STREAM_TIMEOUT = httpx.Timeout(None, connect=5)
"""A model may think, and a log may be silent, for as long as it wants."""


class ApiProblem(HoldfastError):
    """The API refused: its problem document, or as much as can be read from another answer."""

    def __init__(self, title: str, status: int, detail: str, *, hint: str = "", field: str = "") -> None:
        super().__init__(detail, hint=hint, field=field)
        self.title = title
        self.status = status


class NoAnswer(HoldfastError):
    title = "No answer"


class Api:
    """One server, one key. Raises ``ApiProblem`` for refusals and ``NoAnswer`` when nothing is there."""

    def __init__(
        self, url: str, key: str | None, *, key_file: Path, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url
        self._key_file = key_file
        self._http = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT,
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not is_loopback(url),
            transport=transport,
        )

    def get(self, path: str, **params: Any) -> Any:
        return self._call("GET", path, params=params)

    def post(self, path: str, body: Json | None = None) -> Any:
        return self._call("POST", path, body=body)

    def patch(self, path: str, body: Json) -> Any:
        return self._call("PATCH", path, body=body)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path)

    def items(self, path: str, **params: Any) -> list[Json]:
        """All items of a list, page by page."""
        found: list[Json] = []
        cursor: str | None = None
        while True:
            page = self.get(path, **params, **({"cursor": cursor} if cursor else {}))
            found += page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return found

    @contextmanager
    def stream(self, method: str, path: str, *, body: Json | None = None, **params: Any) -> Iterator[httpx.Response]:
        with self._said_plainly():
            options: Json = {"params": _given(params), "timeout": STREAM_TIMEOUT}
            if body is not None:
                options["json"] = body
            with self._http.stream(method, path, **options) as response:
                if response.is_error:
                    response.read()
                    raise self._problem(response)
                yield response

    def _call(self, method: str, path: str, *, params: Json | None = None, body: Json | None = None) -> Any:
        with self._said_plainly():
            options: Json = {"params": _given(params or {})}
            if body is not None:
                options["json"] = body
            response = self._http.request(method, path, **options)
        if response.is_error:
            raise self._problem(response)
        try:
            return response.json() if response.content else None
        except ValueError:
            raise NoAnswer(
                f"what answers at {self.url} is not Holdfast: {response.text[:80]!r}",
                hint="set HOLDFAST_SERVER to the URL of the API",
            ) from None

    @contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError:
            raise NoAnswer(
                f"nothing answers at {self.url}",
                hint="start Holdfast with `holdfast up`, or set HOLDFAST_SERVER to the URL of the API",
            ) from None
        except httpx.TimeoutException:
            raise NoAnswer(f"{self.url} did not answer in time", hint="try again; see `holdfast doctor`") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise NoAnswer(
                f"{self.url!r} is not a URL",
                hint="set HOLDFAST_SERVER to something like http://127.0.0.1:8480",
            ) from None
        except httpx.TransportError as error:
            raise NoAnswer(
                f"the connection to {self.url} broke: {error}", hint="try again; see `holdfast doctor`"
            ) from None

    def _problem(self, response: httpx.Response) -> ApiProblem:
        problem = read_problem(response)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            places = f"put a valid key into HOLDFAST_API_KEY or into {self._key_file}"
            problem.hint = f"{problem.hint}; {places}" if problem.hint else places
        return problem


def api_for(settings: Settings) -> Api:
    """The server and the key that the settings name; without a key, the server will say what it wants."""
    return Api(settings.server_url, find_key(settings), key_file=settings.home / "admin_key")


def find_key(settings: Settings) -> str | None:
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    try:
        return (settings.home / "admin_key").read_text().strip() or None
    except OSError:
        return None


def path_of(collection: str, identity: str) -> str:
    """``/api/v1/<collection>/<identity>``; the slash in an instance's id stays."""
    return f"/api/v1/{collection}/{quote(identity, safe='/')}"


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_problem(response: httpx.Response) -> ApiProblem:
    """From a problem document (ours), an OpenAI error (the gateway's) or whatever else came."""
    status, reason = response.status_code, response.reason_phrase
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return ApiProblem(f"{status} {reason}", status, response.text[:500].strip())
    if isinstance(error := body.get("error"), dict):
        title = str(error.get("type") or reason)
        return ApiProblem(title, status, str(error.get("message", "")), field=str(error.get("param") or ""))
    if "title" not in body:
        return ApiProblem(reason, status, json.dumps(body))
    text = {key: str(body.get(key) or "") for key in ("title", "detail", "hint", "field")}
    return ApiProblem(text["title"], status, text["detail"], hint=text["hint"], field=text["field"])


def _given(params: Json) -> Json:
    return {name: value for name, value in params.items() if value is not None}
