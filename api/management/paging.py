"""Lists: a page at a time, in the order of a unique key."""

from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel

T = TypeVar("T")
R = TypeVar("R")

Limit = Annotated[int, Query(ge=1, le=500, description="at most so many")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")]
LabelFilter = Annotated[
    list[str] | None, Query(alias="label", description="`key=value`; may be repeated", max_length=32)
]


class Page(BaseModel, Generic[T]):
    items: list[T]
    next_cursor: str | None = None


def page(rows: Sequence[R], limit: int, cursor: str | None, key: Callable[[R], str], show: Callable[[R], T]) -> Page[T]:
    """A page in the order of ``key``; the cursor is the key of the last one shown."""
    # Sorted here: a database may order text by its own language.
    rest = sorted((row for row in rows if cursor is None or key(row) > cursor), key=key)
    shown = rest[:limit]
    return Page(items=[show(r) for r in shown], next_cursor=key(shown[-1]) if len(rest) > limit else None)


def has_labels(labels: dict[str, str], wanted: list[str] | None) -> bool:
    pairs = (item.partition("=") for item in wanted or [])
    return all(labels.get(key) == value for key, _, value in pairs)
