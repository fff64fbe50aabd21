"""What requests used, summed up."""

import base64
import binascii
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session, col, select

from api.management.paging import Cursor, Limit, Page
from api.state import AdminDep, ServicesDep
from fleet.db import usage
from fleet.db.tables import ApiKeyRow
from fleet.db.usage import Dimension, UsageSum
from fleet.errors import InvalidInput

router = APIRouter(prefix="/usage", tags=["usage"])

By = Annotated[list[Dimension] | None, Query(max_length=6, description="what to tell apart by; may be repeated")]
Begin = Annotated[
    datetime | None, Query(alias="from", description="requests that came then or later (UTC if not said)")
]
End = Annotated[datetime | None, Query(alias="to", description="requests that came before")]
Only = Annotated[str | None, Query(max_length=256, pattern=r"^[^\x00]*$", description="only requests with it")]


class UsageView(BaseModel):
    """Requests that have the values of ``group`` in common."""

    group: dict[str, str]
    """By what was asked for; a day as `2026-11-30`, an hour as `2026-11-30T04:00Z`."""
    key_name: str | None
    """Where keys are told apart; null: it is not there any more."""
    requests: int
    failed: int
    """Answered with an error, or the client left."""
    estimated: int
    """Of these the engine did not say what they used."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt's."""
    completion_tokens: int
    reasoning_tokens: int
    """Of the completion's."""
    audio_seconds: float
    images: int


@router.get("", summary="What requests used")
async def read(
    *,
    services: ServicesDep,
    _admin: AdminDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    by: By = None,
    begin: Begin = None,
    end: End = None,
    key: Only = None,
    route: Only = None,
    deployment: Only = None,
    operation: Only = None,
) -> Page[UsageView]:
    """A request is here about a second after its end. Without `by`: one sum over all."""
    dimensions = list(dict.fromkeys(by or []))
    after = _group_of(cursor, len(dimensions))
    chosen: dict[Dimension, str | None] = {"key": key, "route": route, "deployment": deployment, "operation": operation}
    only = [(dimension, value) for dimension, value in chosen.items() if value is not None]

    def find(session: Session) -> tuple[list[UsageSum], dict[str, str]]:
        times = {"begin": _utc(begin), "end": _utc(end)}
        found = usage.sums(session, dimensions, **times, after=after, limit=limit + 1, only=only)
        if "key" not in dimensions:
            return found, {}
        ids = {total.group[dimensions.index("key")] for total in found}
        names = session.exec(select(ApiKeyRow.id, ApiKeyRow.name).where(col(ApiKeyRow.id).in_(ids)))
        return found, dict(names.all())

    found, names = await services.database.aread(find)
    shown = found[:limit]
    items = [_view(total, dimensions, names) for total in shown]
    return Page(items=items, next_cursor=_cursor(shown[-1].group) if len(found) > limit else None)


def _view(total: UsageSum, dimensions: list[Dimension], names: dict[str, str]) -> UsageView:
    group: dict[str, str] = dict(zip(dimensions, total.group, strict=True))
    numbers = {name: value for name, value in asdict(total).items() if name != "group"}
    return UsageView(group=group, key_name=names.get(group.get("key", "")), **numbers)


def _utc(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _cursor(group: tuple[str, ...]) -> str:
    return base64.urlsafe_b64encode(json.dumps(group).encode()).decode()


def _group_of(cursor: str | None, dimensions: int) -> list[str] | None:
    if cursor is None:
        return None
    try:
        group = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (binascii.Error, ValueError, RecursionError):
        group = None
    if not isinstance(group, list) or len(group) != dimensions or not all(map(_is_text, group)) or not group:
        raise InvalidInput(
            "it is no cursor of this list", field="cursor", hint="send `next_cursor` as it was read, with the same `by`"
        )
    return group


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\x00" not in value and value.isprintable()
