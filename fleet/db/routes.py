"""Routes and providers as they are kept: each public name is given once, and what a route names exists."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, Session, SQLModel, col, select

from fleet.db import registry
from fleet.db.tables import DeploymentRow, RegistryRow, RevisionRow, UtcDateTime
from fleet.errors import Conflict, InvalidInput, NotFound, PreconditionFailed
from fleet.routes import Fallbacks, RouteCreate, RouteSpec, Target

_NAMES = "see `holdfast routes` and `holdfast deployments`"


class RouteRow(SQLModel, table=True):
    __tablename__ = "route"

    name: str = Field(primary_key=True)
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    spec: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """``fleet.routes.RouteSpec``"""
    generation: int = 1
    """Grows with each change."""
    create_key: str = ""
    change_key: str = ""
    """Idempotency keys: of what made it, and of its last change."""
    created_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)


class ProviderRow(SQLModel, table=True):
    __tablename__ = "provider"

    name: str = Field(primary_key=True)
    spec: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """``fleet.routes.ProviderSpec`` without its key."""
    sealed_key: str = ""
    """With the master key; empty: it has none."""
    generation: int = 1
    create_key: str = ""
    change_key: str = ""
    created_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)


def one_at_a_time(session: Session) -> None:
    """Until the transaction ends, nobody else changes routes or providers: two at once could both take one name."""
    session.exec(select(RegistryRow.id).where(RegistryRow.id == 1).with_for_update()).one()


def all_routes(session: Session) -> list[RouteRow]:
    return list(session.exec(select(RouteRow)).all())


def existing(session: Session, name: str) -> RouteRow:
    """Raises NotFound."""
    row = None if "\x00" in name else session.get(RouteRow, name, populate_existing=True)
    if row is None:
        raise NotFound(f"there is no route named {name!r}", hint="GET /api/v1/routes lists what there is")
    return row


def create(session: Session, wanted: RouteCreate, key: str = "") -> RouteRow:
    """With the same idempotency key as the one that is there: that one, as it is now.

    Raises Conflict when a name is taken, InvalidInput when something that it names is not there.
    """
    one_at_a_time(session)
    before = session.get(RouteRow, wanted.name)
    if before is not None and key and before.create_key == key:
        return before
    if before is not None:
        raise Conflict(
            f"a route named {wanted.name!r} exists already",
            field="name",
            hint="choose another name, change the existing one with PATCH, or delete it first",
        )
    _check(session, wanted, None)
    now = datetime.now(UTC)
    spec = wanted.spec.model_dump(mode="json")
    row = RouteRow(name=wanted.name, labels=wanted.labels, spec=spec, create_key=key, created_at=now, updated_at=now)
    session.add(row)
    registry.bump(session)
    return row


def change(
    session: Session,
    name: str,
    wanted: Callable[[RouteRow], RouteCreate],
    if_generation: int | None = None,
    key: str = "",
) -> RouteRow:
    """``wanted``: from the route to what is to be. The same again, or with the same key as last time, changes nothing.

    Only what a change touches is checked: weights can be changed while a deployment that was deleted is among the
    targets. Raises NotFound, PreconditionFailed when its generation is not ``if_generation``, and as ``create``.
    """
    one_at_a_time(session)
    row = existing(session, name)
    if key and row.change_key == key:
        return row
    refuse_other_generation(name, row.generation, if_generation)
    after = wanted(row)
    spec = after.spec.model_dump(mode="json")
    if (after.labels, spec) == (row.labels, row.spec):
        return row
    _check(session, after, RouteSpec.model_validate(row.spec))
    row.labels, row.spec, row.change_key = after.labels, spec, key
    row.generation, row.updated_at = row.generation + 1, datetime.now(UTC)
    session.add(row)
    registry.bump(session)
    return row


def delete(session: Session, name: str) -> None:
    """Raises NotFound. Other routes may go on naming it as a fallback; it is passed over there."""
    one_at_a_time(session)
    session.delete(existing(session, name))
    registry.bump(session)


def refuse_other_generation(name: str, generation: int, wanted: int | None) -> None:
    if wanted is not None and wanted != generation:
        raise PreconditionFailed(
            f"{name} is at generation {generation}, not {wanted}", hint="read it again and repeat the change"
        )


def refuse_alias(session: Session, name: str) -> None:
    """Raises Conflict when a route has the alias ``name``, which a deployment of that name would hide behind."""
    owner = next((route for route, aliases in _aliases(session) if name in aliases), None)
    if owner is not None:
        raise Conflict(
            f"{name!r} is an alias of route {owner!r}", field="name", hint="choose another name, or remove the alias"
        )


def targets_of(spec: RouteSpec) -> Iterator[tuple[str, Target]]:
    """(field, target)."""
    for number, target in enumerate(spec.targets):
        yield f"spec.targets.{number}", target


def _check(session: Session, wanted: RouteCreate, before: RouteSpec | None) -> None:
    _check_names(session, wanted, set(before.aliases) if before else set())
    old = [_place(target) for _, target in targets_of(before)] if before else []
    _check_targets(session, [(field, t) for field, t in targets_of(wanted.spec) if _place(t) not in old])
    _check_fallbacks(session, wanted, before.fallbacks if before else Fallbacks())


def _place(target: Target) -> tuple[object, ...]:
    return (target.deployment, target.revision, target.adapter, target.provider)


# -- names -------------------------------------------------------------------------------------------------------------


def _check_names(session: Session, wanted: RouteCreate, had: set[str]) -> None:
    taken: dict[str, str] = {}
    for name, aliases in _aliases(session):
        if name != wanted.name:
            taken[name] = f"the name of a route {name!r}"
            taken |= dict.fromkeys(aliases, f"an alias of route {name!r}")
    named = [("name", wanted.name)] + [(f"spec.aliases.{n}", a) for n, a in enumerate(wanted.spec.aliases)]
    _refuse_repeated(named)
    for field, name in named:
        if name in taken:
            raise Conflict(f"{name!r} is {taken[name]} already", field=field, hint="choose another name")
    _refuse_deployments(session, {a: field for field, a in named[1:] if a not in had})


def _refuse_repeated(named: list[tuple[str, str]]) -> None:
    seen: set[str] = set()
    for field, name in named:
        if name in seen:
            raise InvalidInput(f"{name!r} is a name of this route already", field=field, hint="leave it out")
        seen.add(name)


def _refuse_deployments(session: Session, aliases: dict[str, str]) -> None:
    """``aliases``: with their fields."""
    hidden = session.exec(select(DeploymentRow.name).where(col(DeploymentRow.name).in_(list(aliases)))).first()
    if hidden is not None:
        raise Conflict(
            f"{hidden!r} is the name of a deployment",
            field=aliases[hidden],
            hint="choose another alias; a route of that name would replace what the deployment's name leads to",
        )


def _aliases(session: Session) -> Iterable[tuple[str, list[str]]]:
    return ((n, a or []) for n, a in session.exec(select(RouteRow.name, col(RouteRow.spec)["aliases"])).all())


# -- what it names -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """A deployment that a target names."""

    revision: int
    adapters: dict[int, set[str]]
    """By revision; of those that are kept."""


def _check_targets(session: Session, targets: list[tuple[str, Target]]) -> None:
    deployments = _deployments(session, {t.deployment for _, t in targets if t.deployment is not None})
    named = {t.provider for _, t in targets if t.provider is not None}
    providers = set(session.exec(select(ProviderRow.name).where(col(ProviderRow.name).in_(named))).all())
    for field, target in targets:
        if target.deployment is not None:
            _check_deployment(field, target, deployments.get(target.deployment))
        elif target.provider not in providers:
            raise InvalidInput(
                f"there is no provider {target.provider!r}",
                field=f"{field}.provider",
                hint="make it first: POST /api/v1/providers, or `holdfast providers add`",
            )


def _check_deployment(field: str, target: Target, known: _Known | None) -> None:
    name = target.deployment
    if known is None:
        hint = "deploy it first; `holdfast deployments` lists what there is"
        raise InvalidInput(f"there is no deployment {name!r}", field=f"{field}.deployment", hint=hint)
    revision = target.revision or known.revision
    if revision not in known.adapters:
        hint = f"`holdfast revisions {name}` lists those that are kept"
        raise InvalidInput(f"deployment {name!r} has no revision {revision}", field=f"{field}.revision", hint=hint)
    if target.adapter is not None and target.adapter not in known.adapters[revision]:
        has = ", ".join(sorted(known.adapters[revision])) or "none"
        raise InvalidInput(
            f"deployment {name!r} has no adapter {target.adapter!r}",
            field=f"{field}.adapter",
            hint=f"its adapters (spec.lora) are: {has}",
        )


def _deployments(session: Session, names: set[str]) -> dict[str, _Known]:
    query = select(DeploymentRow.name, DeploymentRow.revision, col(DeploymentRow.spec)["lora"])
    known = {
        name: _Known(revision, {revision: _adapters(lora)})
        for name, revision, lora in session.exec(query.where(col(DeploymentRow.name).in_(names))).all()
    }
    kept = select(RevisionRow.deployment, RevisionRow.revision, col(RevisionRow.spec)["lora"])
    for name, revision, lora in session.exec(kept.where(col(RevisionRow.deployment).in_(set(known)))).all():
        known[name].adapters.setdefault(revision, _adapters(lora))
    return known


def _adapters(lora: Any) -> set[str]:
    return {adapter["name"] for adapter in lora or []}


def _check_fallbacks(session: Session, wanted: RouteCreate, before: Fallbacks) -> None:
    added = [
        (f"spec.fallbacks.{kind}.{number}", name)
        for kind in Fallbacks.model_fields
        for number, name in enumerate(getattr(wanted.spec.fallbacks, kind))
        if name not in getattr(before, kind)
    ]
    if not added:
        return
    names = _public_names(session) | {wanted.name, *wanted.spec.aliases}
    for field, name in added:
        if name not in names:
            raise InvalidInput(f"there is no route or deployment {name!r}", field=field, hint=_NAMES)


def _public_names(session: Session) -> set[str]:
    names: set[str] = set()
    for route, aliases in _aliases(session):
        names |= {route, *aliases}
    for deployment, lora in session.exec(select(DeploymentRow.name, col(DeploymentRow.spec)["lora"])).all():
        names |= {deployment, *_adapters(lora)}
    return names
