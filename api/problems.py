"""Errors as RFC 9457 problem documents that say what to do."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from starlette.exceptions import HTTPException

from fleet.errors import HoldfastError, Unavailable

log = logging.getLogger("holdfast.api")

_RETRY_AFTER_S = "5"
_LONGEST = 1000
_LONGEST_NAME = 100
"""Characters. A message may quote what was sent, and that may be anything."""


class _Problem(JSONResponse):
    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        # What was sent and is quoted may hold half a surrogate pair, which UTF-8 does not know.
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def install(app: FastAPI) -> None:
    app.exception_handler(HoldfastError)(_ours)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(RecursionError)(_too_deep)
    for away in (OperationalError, InterfaceError, NoConnectionFree):
        app.exception_handler(away)(_no_database)


async def _too_deep(_request: Request, _error: RecursionError) -> JSONResponse:
    return problem(400, "Not JSON", "the body is nested too deeply", hint="send a JSON object as /docs describes it")


async def _no_database(request: Request, error: Exception) -> JSONResponse:
    log.warning("the database does not answer: %s", getattr(error, "orig", error))
    return await _ours(
        request,
        Unavailable(
            "the database does not answer now",
            hint="models go on serving; try again in a moment, or see `holdfast doctor`",
        ),
    )


def problem(status: int, title: str, detail: str, **more: Any) -> JSONResponse:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    body |= {key: value for key, value in more.items() if value not in ("", None, [])}
    return _Problem({key: v[:_LONGEST] if isinstance(v, str) else v for key, v in body.items()}, status)


async def _ours(_request: Request, error: HoldfastError) -> JSONResponse:
    answer = problem(error.status, error.title, error.detail, hint=error.hint, field=error.field, **error.extra)
    if isinstance(error, Unavailable):
        answer.headers["retry-after"] = _RETRY_AFTER_S
    if error.status == 401:
        answer.headers["www-authenticate"] = "Bearer"
    return answer


async def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
    return invalid(error.errors())


def invalid(errors: Sequence[Any], prefix: tuple[str, ...] = ()) -> JSONResponse:
    """One problem document for all that pydantic found."""
    if any(e["type"] == "json_invalid" for e in errors):
        return problem(400, "Not JSON", "the body is not valid JSON", hint="send a JSON object")
    found = [{"field": _field(prefix, e["loc"]), "message": _message(e)} for e in errors[:20]]
    first = found[0]
    detail = f"{first['field']}: {first['message']}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    hint = "correct the field; /docs describes what is accepted"
    return problem(422, "Invalid input", detail + more, field=first["field"], hint=hint, errors=found)


async def _http(_request: Request, error: HTTPException) -> JSONResponse:
    hints = {404: "see /docs for the paths that exist", 405: "see /docs for the methods that exist"}
    title = {400: "Not JSON", 404: "Not found", 405: "Method not allowed"}.get(error.status_code, "Error")
    answer = problem(error.status_code, title, str(error.detail), hint=hints.get(error.status_code, ""))
    answer.headers.update(error.headers or {})
    return answer


def _field(prefix: tuple[str, ...], loc: Sequence[Any]) -> str:
    parts = [str(p)[:_LONGEST_NAME] for p in loc]
    if parts and parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:]
    return ".".join([*prefix, *parts]) or "body"


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field; remove it or correct its name"
    return str(error["msg"])[:_LONGEST]
