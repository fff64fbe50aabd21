"""What a target is sent for a call: the body as the client wrote it, unless something must be said differently."""

from typing import Any, Literal, NamedTuple

import orjson

from api.gateway import refusals
from api.gateway.anthropic import ChatToMessages, CountTokensToChat, MessagesToChat
from api.gateway.call import Call
from api.gateway.conversion import Conversion
from api.gateway.destination import Destination
from api.gateway.form import read_form
from api.gateway.operation import CHAT, COUNT_TOKENS, MESSAGES, PROXIED, Shape
from api.gateway.rerank import CohereRerank
from api.gateway.usage_request import inject, injections

_JSON = b"application/json"
_CONTROL = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""They change the engine for everybody."""
_CONVERTIBLE = (MESSAGES, COUNT_TOKENS)
_NAMES = {CHAT.path: CHAT.name, MESSAGES.path: MESSAGES.name}


class Prepared(NamedTuple):
    """One request, for one target."""

    method: str
    path: str
    body: bytes
    lines: bytes
    """Header lines about the body, and those of client and route that the target gets; each ended by CRLF."""
    conversion: Conversion | None
    """The answer goes through it."""
    operation: str
    """That the target is asked (``Operation.name``)."""
    injected: dict[str, Any] | None
    """Fields that make the engine say what it uses, and whose effect the client must not see."""


def prepare(call: Call, destination: Destination) -> Prepared:
    """Raises ``Refusal`` when the target cannot be asked for this."""
    name = call.operation.name
    document = call.document
    if document is None:
        if call.operation is PROXIED and not destination.provider:
            _check_path(call)
        body = _renamed_form(call, destination)
        return _prepared(call, call.path, body, name)
    conversion = conversion_for(call, destination)
    path = call.path
    if conversion is not None:
        document, path = conversion.request(document), conversion.path
        name = _NAMES.get(path, name)
    changes = _changes(destination, document)
    injected = injections(destination.engine, name, document)
    if conversion is not None:
        body = orjson.dumps({**document, **changes})
    else:
        body = with_changes(call.body, document, changes)
    if injected:
        body = inject(body, {**document, **changes} if changes else document, injected)
    return _prepared(call, path, body, name, conversion, injected=injected)


def conversion_for(call: Call, destination: Destination) -> Conversion | None:
    """How to say it to a target that does not speak it; None: as it is."""
    operation = call.operation
    if operation.shape is Shape.COHERE:
        return CohereRerank(call.request_id)
    if destination.speaks(call.path):
        return None
    if destination.speaks(CHAT.path):
        dialect: Literal["engine", "openai"] = "openai" if destination.provider else "engine"
        if operation is MESSAGES:
            return MessagesToChat(dialect)
        if operation is COUNT_TOKENS:
            return CountTokensToChat(dialect)
    elif operation is CHAT and destination.speaks(MESSAGES.path):
        return ChatToMessages()
    return None


def convertible(call: Call) -> bool:
    return call.operation in _CONVERTIBLE


def with_changes(body: bytes, document: dict[str, Any], changes: dict[str, Any]) -> bytes:
    """``body`` with fields set. What the client wrote stays as it is, byte by byte, where only fields are added."""
    if not changes:
        return body
    if any(name in document for name in changes):
        return orjson.dumps({**document, **changes})
    begin = body.index(b"{") + 1
    comma = b"," if document else b""
    return body[:begin] + orjson.dumps(changes)[1:-1] + comma + body[begin:]


def _changes(destination: Destination, document: dict[str, Any]) -> dict[str, Any]:
    """Fields to be set."""
    changes: dict[str, Any] = {}
    if destination.model and document.get("model") != destination.model:
        changes["model"] = destination.model
    if destination.adapters:
        scales = range(destination.adapters)
        changes["lora"] = [{"id": n, "scale": float(n == destination.adapter)} for n in scales]
    return changes


def _check_path(call: Call) -> None:
    """Of the generic proxy to an engine of ours. Raises ``Refusal``."""
    path = call.path.partition("?")[0]
    if not path.startswith("/v1/"):
        raise refusals.beyond_the_door(path)
    if path in _CONTROL and call.key.scope != "admin":
        raise refusals.for_admins(path)


def _renamed_form(call: Call, destination: Destination) -> bytes:
    model = destination.model
    if not model or not call.content_type.startswith(b"multipart/"):
        return call.body
    field = read_form(call.body, call.content_type).get("model")
    if field is None or field.value == model:
        return call.body
    return call.body[: field.begin] + model.encode() + call.body[field.end :]


def _lines(call: Call) -> bytes:
    kind = call.content_type if call.document is None and call.content_type else _JSON
    rules = call.route.spec.headers
    if rules.set or rules.forward:
        return b"content-type: %b\r\n%b%b" % (kind, call.forwarded, _ruled(call))
    return b"content-type: %b\r\n%b" % (kind, call.forwarded)


def _prepared(
    call: Call,
    path: str,
    body: bytes,
    name: str,
    conversion: Conversion | None = None,
    *,
    injected: dict[str, Any] | None = None,
) -> Prepared:
    lines = b"%bcontent-length: %d\r\n" % (_lines(call), len(body))
    return Prepared(call.method, path, body, lines, conversion, name, injected)


def _ruled(call: Call) -> bytes:
    rules = call.route.spec.headers
    wanted = {name.encode() for name in rules.forward} - {name.encode() for name in rules.set}
    lines = [b"%b: %b\r\n" % (name, value) for name, value in call.headers if name in wanted]
    lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in rules.set.items()]
    return b"".join(lines)
