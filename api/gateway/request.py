"""What the gateway reads of a request: a few headers, and what the body names: its model, and whether to stream."""

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple

import orjson

from api.gateway import refusals
from api.gateway.form import FormField, read_form
from api.gateway.operation import ModelIn, Operation

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGone(Exception):
    """The client left before it had sent its whole request."""


class Head(NamedTuple):
    authorization: bytes | None
    """With its scheme; of Anthropic's clients, what is in ``x-api-key``."""
    content_length: bytes | None
    content_type: bytes
    forwarded: bytes
    """Header lines that the engine gets, each ended by CRLF."""


_FORWARDED = frozenset({b"accept", b"traceparent", b"tracestate", b"x-request-id"})
_READ = _FORWARDED | {b"authorization", b"content-length", b"content-type", b"x-api-key"}
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LONGEST_NUMBER = 18
"""Digits; a longer length is over any limit."""


def read_head(headers: Iterable[tuple[bytes, bytes]]) -> Head:
    """Raises ``Refusal`` when two lengths are given that differ."""
    authorization = content_length = None
    content_type = forwarded = b""
    for name, value in headers:
        if name not in _READ:
            continue
        if name == b"authorization":
            authorization = authorization or value
        elif name == b"content-length":
            if content_length is not None and value != content_length:
                raise refusals.bad_length()
            content_length = value
        elif name == b"content-type":
            content_type = value
        elif name == b"x-api-key":
            authorization = authorization or b"Bearer " + value
        elif not _UNSAFE.search(value):
            forwarded += b"%b: %b\r\n" % (name, value)
    return Head(authorization, content_length, content_type, forwarded)


def bearer_token(authorization: bytes | None) -> str:
    """Raises ``Refusal`` when there is none."""
    if authorization is None or authorization[:7].lower() != b"bearer ":
        raise refusals.no_key()
    # Keys are ASCII; whatever else was sent only has to become some string that no key is.
    return authorization[7:].strip().decode("latin-1")


async def read_body(receive: Receive, content_length: bytes | None, limit: int) -> bytes:
    """The whole body. Raises ``Refusal`` once it is known to be too large, ``ClientGone`` when cut off."""
    if content_length is not None:
        _check_length(content_length, limit)
    message = await receive()
    if message["type"] != "http.request":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > limit:
            raise refusals.too_large(limit, unread=False)
        return body
    return await _read_rest(receive, body, limit)


async def _read_rest(receive: Receive, first: bytes, limit: int) -> bytes:
    parts = [first]
    size = len(first)
    more = True
    while more:
        if size > limit:
            raise refusals.too_large(limit, unread=True)
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        more = message.get("more_body", False)
    if size > limit:
        raise refusals.too_large(limit, unread=False)
    return b"".join(parts)


def _check_length(content_length: bytes, limit: int) -> None:
    if not content_length.isdigit():
        raise refusals.bad_length()
    if len(content_length) > _LONGEST_NUMBER or int(content_length) > limit:
        raise refusals.too_large(limit, unread=True)


class Asked(NamedTuple):
    """What a body asks for."""

    model: str
    stream: bool
    document: dict[str, Any] | None
    """None: it is a form."""


def read_asked(operation: Operation, body: bytes, content_type: bytes) -> Asked:
    """Raises ``Refusal`` naming what is wrong with the body."""
    if operation.model_in is ModelIn.FORM:
        fields = read_form(body, content_type)
        model = fields.get("model")
        if model is None:
            raise refusals.no_model()
        return Asked(model.value, _yes(fields.get("stream")), None)
    document = read_document(body)
    return Asked(model_of(document), document.get("stream") is True, document)


def _yes(field: FormField | None) -> bool:
    return field is not None and field.value.lower() in ("true", "1")


def read_document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise refusals.not_json(str(error)) from error
    if not isinstance(document, dict):
        raise refusals.not_an_object()
    return document


def model_of(document: dict[str, Any]) -> str:
    model = document.get("model")
    if isinstance(model, str):
        return model
    raise refusals.no_model() if model is None else refusals.model_not_a_string()
