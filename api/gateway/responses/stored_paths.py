"""``/v1/responses/{id}`` and what is below it: answered here, without an engine."""

from typing import Any
from urllib.parse import parse_qs

import orjson

from api.gateway import refusals
from api.gateway.refusals import Refusal
from api.gateway.responses.fields import one_of, refuse
from api.gateway.responses.store import StoredResponses

PREFIX = "/v1/responses/"
_MOST, _USUAL = 100, 20


async def answer_stored(
    stored: StoredResponses, method: str, path: str, query: bytes, key_id: str
) -> tuple[int, bytes]:
    """Status and JSON. ``path``: decoded, begins with ``PREFIX``. Does not raise."""
    try:
        return 200, await _answer(stored, method, path, query.decode("latin-1"), key_id)
    except Refusal as refusal:
        return refusal.status, refusal.body


async def _answer(stored: StoredResponses, method: str, path: str, query: str, key_id: str) -> bytes:
    response_id, _, below = path[len(PREFIX) :].partition("/")
    allowed = {"": ("GET", "DELETE"), "input_items": ("GET",), "cancel": ("POST",)}.get(below)
    if not response_id or allowed is None:
        raise refusals.unknown_url(method, path)
    if method not in allowed:
        raise refusals.wrong_method(method, path, " or ".join(allowed))
    options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    if below == "cancel":
        await stored.get(key_id, response_id)
        raise _not_in_background()
    if below:
        return _page(await stored.input_items(key_id, response_id), options)
    if method == "DELETE":
        await stored.delete(key_id, response_id)
        return orjson.dumps({"id": response_id, "object": "response", "deleted": True})
    if options.get("stream", "").lower() == "true":
        refuse("stream", "cannot be true here: only answers in the background can be streamed again.")
    return await stored.get(key_id, response_id)


def _page(items: list[Any], options: dict[str, str]) -> bytes:
    """The newest first, unless ``order`` is ``asc``."""
    limit = _limit(options.get("limit"))
    if one_of(options.get("order", "desc"), "order", ("asc", "desc")) == "desc":
        items = items[::-1]
    if (after := options.get("after")) is not None:
        places = [i for i, item in enumerate(items) if item["id"] == after]
        if not places:
            refuse("after", "names no item of this response. Use 'last_id' of the page before.")
        items = items[places[0] + 1 :]
    data = items[:limit]
    ends = {"first_id": data[0]["id"] if data else "", "last_id": data[-1]["id"] if data else ""}
    return orjson.dumps({"object": "list", "data": data, **ends, "has_more": len(items) > limit})


def _limit(said: str | None) -> int:
    if said is None:
        return _USUAL
    if not said.isascii() or not said.isdigit() or len(said) > 3 or not 1 <= int(said) <= _MOST:
        refuse("limit", f"must be a whole number from 1 to {_MOST}.")
    return int(said)


def _not_in_background() -> Refusal:
    return Refusal(
        400,
        "Only responses that are made in the background can be cancelled, and none are here. "
        "To stop one, close the connection that it is read from.",
        code="cannot_cancel",
    )
