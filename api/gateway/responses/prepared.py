"""What is made of a request before it goes anywhere: the conversation that it goes on with is put in front."""

import time
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from api.gateway.conversion import Document
from api.gateway.refusals import Refusal, shown
from api.gateway.responses import fields
from api.gateway.responses.fields import missing, of_type, refuse
from api.gateway.responses.ids import new_response_id, response_of

_NOT_HERE = {
    "conversation": "Go on with 'previous_response_id'.",
    "prompt": "Send what it says as 'instructions' and 'input'.",
    "moderation": "Ask /v1/moderations.",
}


class Chains(Protocol):
    """Where earlier responses are found."""

    async def load_chain(self, key_id: str, response_id: str) -> list[Document]: ...

    async def find_items(self, key_id: str, response_id: str) -> dict[str, Document]: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request."""

    original: Document
    """As the client sent it."""
    document: Document
    """With the whole conversation in ``input``, to be kept by nobody else."""
    history: int
    """So many items of ``document["input"]`` come from earlier responses."""
    key_id: str
    response_id: str
    created_at: int
    """Unix time."""
    store: bool
    stream: bool

    @property
    def previous_id(self) -> str | None:
        previous: str | None = self.original.get("previous_response_id")
        return previous


async def prepare(document: Document, key_id: str, stored: Chains) -> Prepared:
    """Raises ``Refusal``: 400 naming a field; 503 when the conversation that is asked for cannot be read now."""
    _check(document)
    own = _own_items(document.get("input"))
    previous: str | None = document.get("previous_response_id")
    chain = await stored.load_chain(key_id, previous) if previous is not None else []
    items = await _resolved(own, chain, key_id, stored) if isinstance(own, list) else own
    expanded = {name: value for name, value in document.items() if name != "previous_response_id"}
    expanded["input"] = [*chain, *(items if isinstance(items, list) else [_said(items)])] if chain else items
    expanded["store"] = False
    return Prepared(
        original=document,
        document=expanded,
        history=len(chain),
        key_id=key_id,
        response_id=new_response_id(),
        created_at=int(time.time()),
        store=document.get("store") is not False,
        stream=document.get("stream") is True,
    )


def no_such_previous(response_id: str) -> Refusal:
    return Refusal(
        400,
        f"Previous response with id '{shown(response_id)}' not found. Only responses made with the same key and "
        "'store': true are kept, for a while; send the conversation as 'input' instead.",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def _check(document: Document) -> None:
    try:
        orjson.dumps([[[[document]]]])
    except TypeError as error:
        raise Refusal(400, "The request is nested too deeply.", param="body", code="invalid_value") from error
    for name in ("store", "stream", "background"):
        fields.flag(document.get(name), name, False)
    if document.get("background"):
        refuse("background", "cannot be true: answers are given at once. Leave it out, and stream long ones.")
    for name, remedy in _NOT_HERE.items():
        if document.get(name) is not None:
            refuse(name, f"is not supported. {remedy}", "unsupported_parameter")
    for name in ("instructions", "previous_response_id", "user"):
        fields.text_or_none(document.get(name), name)
    if document.get("truncation") is not None:
        fields.one_of(document["truncation"], "truncation", ("disabled", "auto"))
    for name, value in fields.mapping_or_empty(document.get("metadata"), "metadata").items():
        fields.text(value, f"metadata.{shown(name)}")


def _own_items(value: Any) -> str | list[Any]:
    if value is None:
        missing("input", "It may be a string, or an array of items.")
    if not isinstance(value, str | list):
        of_type("input", "a string or an array of items")
    return value


def _said(text: str) -> Document:
    return {"type": "message", "role": "user", "content": text}


async def _resolved(items: list[Any], chain: list[Document], key_id: str, stored: Chains) -> list[Any]:
    """With what ``item_reference`` means in their places; those that mean nothing here are left as they are."""
    wanted = [item["id"] for item in items if _is_reference(item)]
    if not wanted:
        return items
    known = {item["id"]: item for item in chain if isinstance(item.get("id"), str)}
    for response_id in {found for found in map(response_of, set(wanted) - known.keys()) if found is not None}:
        known |= await stored.find_items(key_id, response_id)
    return [known.get(item["id"], item) if _is_reference(item) else item for item in items]


def _is_reference(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return False
    return item.get("type") == "item_reference" or (item.get("type") is None and set(item) == {"id"})
