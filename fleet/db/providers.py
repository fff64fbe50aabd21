"""Providers as they are kept: their keys sealed, and none taken away that a route needs."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlmodel import Session, select

from fleet.db import registry
from fleet.db.routes import ProviderRow, RouteRow, one_at_a_time, refuse_other_generation, targets_of
from fleet.errors import Conflict, NotFound
from fleet.routes import ProviderSpec, RouteSpec


@dataclass(frozen=True)
class Kept:
    """What a provider is to be."""

    spec: ProviderSpec
    """Its key is not looked at."""
    sealed_key: str
    """Empty: it has none."""


def all_providers(session: Session) -> list[ProviderRow]:
    return list(session.exec(select(ProviderRow)).all())


def existing(session: Session, name: str) -> ProviderRow:
    """Raises NotFound."""
    row = None if "\x00" in name else session.get(ProviderRow, name, populate_existing=True)
    if row is None:
        raise NotFound(f"there is no provider named {name!r}", hint="GET /api/v1/providers lists what there is")
    return row


def create(session: Session, name: str, wanted: Kept, key: str = "") -> ProviderRow:
    """With the same idempotency key as the one that is there: that one, as it is now. Raises Conflict."""
    one_at_a_time(session)
    before = session.get(ProviderRow, name)
    if before is not None and key and before.create_key == key:
        return before
    if before is not None:
        raise Conflict(
            f"a provider named {name!r} exists already",
            field="name",
            hint="choose another name, change the existing one with PATCH, or delete it first",
        )
    now = datetime.now(UTC)
    row = ProviderRow(
        name=name,
        spec=_without_key(wanted.spec),
        sealed_key=wanted.sealed_key,
        create_key=key,
        created_at=now,
        updated_at=now,
    )
    session.add(row)
    registry.bump(session)
    return row


def change(
    session: Session,
    name: str,
    wanted: Callable[[ProviderRow], Kept],
    if_generation: int | None = None,
    key: str = "",
) -> ProviderRow:
    """``wanted``: from the provider to what is to be. The same again, or with the same key as last time, changes
    nothing. Raises NotFound, and PreconditionFailed when its generation is not ``if_generation``."""
    one_at_a_time(session)
    row = existing(session, name)
    if key and row.change_key == key:
        return row
    refuse_other_generation(name, row.generation, if_generation)
    after = wanted(row)
    spec = _without_key(after.spec)
    if (spec, after.sealed_key) == (row.spec, row.sealed_key):
        return row
    row.spec, row.sealed_key, row.change_key = spec, after.sealed_key, key
    row.generation, row.updated_at = row.generation + 1, datetime.now(UTC)
    session.add(row)
    registry.bump(session)
    return row


def delete(session: Session, name: str) -> None:
    """Raises NotFound, and Conflict while routes use it."""
    one_at_a_time(session)
    row = existing(session, name)
    if users := _routes_with(session, name):
        raise Conflict(f"routes use it: {', '.join(users)}", hint="give them other targets, or delete them, first")
    session.delete(row)
    registry.bump(session)


def _routes_with(session: Session, provider: str) -> list[str]:
    rows = session.exec(select(RouteRow.name, RouteRow.spec)).all()
    specs = ((name, RouteSpec.model_validate(spec)) for name, spec in rows)
    return sorted(name for name, spec in specs if any(t.provider == provider for _, t in targets_of(spec)))


def _without_key(spec: ProviderSpec) -> dict[str, object]:
    return spec.model_dump(mode="json", exclude={"api_key"})
