"""Who did, or tried, what."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session, col, select

from api.management.paging import Cursor, Limit, Page
from api.state import AdminDep, ServicesDep
from fleet.db.tables import AuditRow
from fleet.errors import InvalidInput
from fleet.model import LARGEST

router = APIRouter(prefix="/audit", tags=["audit"])

_NO_NUL = r"^[^\x00]*$"
Actor = Annotated[str | None, Query(max_length=200, pattern=_NO_NUL, description="`key:<id>`, `host:<id>`, `unknown`")]
Action = Annotated[
    str | None, Query(max_length=200, pattern=_NO_NUL, description="e.g. `hosts.patch`; `hosts.` for all of them")
]
Outcome = Annotated[Literal["done", "refused"] | None, Query()]


class AuditView(BaseModel):
    at: datetime
    actor: str
    action: str
    target: str
    outcome: str
    reason: str
    peer: str
    """Network address that it came from."""
    count: int
    """So many alike within a minute."""


@router.get("", summary="Who did, or tried, what; newest first")
async def list_(
    *,
    services: ServicesDep,
    _admin: AdminDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    actor: Actor = None,
    action: Action = None,
    outcome: Outcome = None,
) -> Page[AuditView]:
    """An entry is here about a second after it happened."""
    before = _number(cursor)

    def find(session: Session) -> list[AuditRow]:
        query = select(AuditRow).order_by(col(AuditRow.id).desc()).limit(limit + 1)
        if before is not None:
            query = query.where(col(AuditRow.id) < before)
        if actor is not None:
            query = query.where(AuditRow.actor == actor)
        if action is not None and action.endswith("."):
            query = query.where(col(AuditRow.action).startswith(action, autoescape=True))
        elif action is not None:
            query = query.where(AuditRow.action == action)
        if outcome is not None:
            query = query.where(AuditRow.outcome == outcome)
        return list(session.exec(query).all())

    rows = await services.database.aread(find)
    shown = rows[:limit]
    items = [AuditView(**row.model_dump(include=set(AuditView.model_fields))) for row in shown]
    return Page(items=items, next_cursor=str(shown[-1].id) if len(rows) > limit else None)


def _number(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 20 and int(cursor) <= LARGEST):
        raise InvalidInput("it is no cursor of this list", field="cursor", hint="send `next_cursor` as it was read")
    return int(cursor)
