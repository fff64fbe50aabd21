"""Asking a provider for its models, as little as that takes: is it there, does it take the key, what has it?"""

import asyncio
import json
import time

import httpx
from pydantic import BaseModel

from fleet.routes import ProviderSpec

MOST_MODELS = 100
_WITHIN_S = 10.0
_MOST_BYTES = 4 << 20
_LONGEST_NAME = 256
_VERSION = "2023-06-01"
"""Of Anthropic's API; it answers nobody who names none."""
_NO_KEY = "it wants a key: `holdfast providers set NAME --key-file FILE`"
_REMEDIES = {
    403: "the key is not allowed to list models; requests may work all the same",
    404: "no models there: is base_url right, with the version (…/v1)?",
    429: "it wants no more requests now; try again later",
}


class ProviderCheck(BaseModel):
    ok: bool
    status: int | None = None
    """Of its answer; none: it gave none."""
    latency_ms: float | None = None
    """Until the head of its answer, with the time to connect."""
    models: list[str] = []
    """The first 100."""
    problem: str = ""
    """What is wrong, and the remedy."""


async def ask(
    spec: ProviderSpec, key: str, *, within_s: float = _WITHIN_S, transport: httpx.AsyncBaseTransport | None = None
) -> ProviderCheck:
    """``key``: opened; empty for none. Never raises for what the provider does, and is done in ``within_s`` seconds."""
    try:
        async with asyncio.timeout(within_s):
            return await _ask(spec, key, transport)
    except TimeoutError:
        return ProviderCheck(ok=False, problem=f"{spec.base_url} did not answer within {within_s:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        said = str(error) or type(error).__name__
        return ProviderCheck(ok=False, problem=f"{spec.base_url} cannot be asked: {said}")


async def _ask(spec: ProviderSpec, key: str, transport: httpx.AsyncBaseTransport | None) -> ProviderCheck:
    # Neither proxies of the environment nor redirects: gateways follow none either.
    client = httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False, timeout=None)  # noqa: S113 (the caller's)
    started = time.monotonic()
    async with client, client.stream("GET", _url(spec), headers=_headers(spec, key)) as answer:
        latency = round((time.monotonic() - started) * 1000, 1)
        body = await _read(answer)
    checked = ProviderCheck(ok=False, status=answer.status_code, latency_ms=latency)
    if not answer.is_success:
        return checked.model_copy(update={"problem": _why(answer, key)})
    if isinstance(models := _models(body), str):
        return checked.model_copy(update={"problem": models})
    return checked.model_copy(update={"ok": True, "models": models})


def _url(spec: ProviderSpec) -> str:
    return f"{spec.base_url}/models" + (f"?limit={MOST_MODELS}" if spec.kind == "anthropic" else "")


def _headers(spec: ProviderSpec, key: str) -> dict[str, str]:
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    if spec.kind == "anthropic":
        headers |= {"anthropic-version": _VERSION} | ({"x-api-key": key} if key else {})
    elif key:
        headers["authorization"] = f"Bearer {key}"
    return headers | spec.headers


async def _read(answer: httpx.Response) -> bytes | None:
    """None: too much. Compressed or not, no more than so much is looked at."""
    body = bytearray()
    async for piece in answer.aiter_raw(1 << 16):
        body += piece
        if len(body) > _MOST_BYTES:
            return None
    return bytes(body)


def _why(answer: httpx.Response, key: str) -> str:
    status = answer.status_code
    if status == httpx.codes.UNAUTHORIZED:
        remedy = "it does not take the key" if key else _NO_KEY
    elif answer.is_redirect:
        where = answer.headers.get("location", "")[:_LONGEST_NAME]
        remedy = f"it points elsewhere ({where!r}): set base_url to where it is"
    else:
        remedy = _REMEDIES.get(status, "see what its status page says")
    return f"it answered {status}: {remedy}"


def _models(body: bytes | None) -> list[str] | str:
    """Their names, or what is wrong."""
    if body is None:
        return f"its answer is larger than {_MOST_BYTES >> 20} MiB"
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "its answer is not JSON: is base_url that of an API?"
    listed = document.get("data") if isinstance(document, dict) else document
    if not isinstance(listed, list):
        return "its answer is no list of models: is base_url that of an API of its kind?"
    names = (model.get("id") for model in listed if isinstance(model, dict))
    return [_plain(name) for name in names if isinstance(name, str)][:MOST_MODELS]


def _plain(name: str) -> str:
    return name[:_LONGEST_NAME].encode(errors="replace").decode()
