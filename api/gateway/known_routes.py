"""Public names and providers, as a gateway knows them: what each name that clients may ask for leads to."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Text, cast
from sqlalchemy import select as sa_select
from sqlmodel import Session, col

from fleet.access.sealing import CannotOpen
from fleet.db.routes import ProviderRow, RouteRow
from fleet.routes import ProviderSpec, RouteSpec, Target

_log = logging.getLogger(__name__)

OpenSealed = Callable[[str], str]
"""Opens what was sealed with the master key. Raises CannotOpen."""

_MOST_TARGETS = 32
_REMEMBERED = 8192


@dataclass(frozen=True, slots=True)
class KnownRoute:
    name: str
    """Its own; it may have been asked for by an alias."""
    created_at: int
    """Seconds since 1970, as OpenAI's ``created``."""
    spec: RouteSpec
    """The same object in each table until it changes."""
    implicit: bool = False
    """Nobody made it: it is the name of a deployment, or of a LoRA adapter."""


@dataclass(frozen=True, slots=True)
class KnownProvider:
    name: str
    kind: str
    """``openai`` or ``anthropic``."""
    base_url: str
    """With the version, without a slash at the end."""
    api_key: str = field(repr=False)
    """Empty: none is sent."""
    headers: Mapping[str, str]
    """Sent with every request."""
    in_flight: int
    """Requests that one gateway process gives it at a time."""


@dataclass(frozen=True, slots=True)
class Served:
    """A deployment, as far as names go."""

    name: str
    created_at: int
    adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters of its current spec."""


def by_public_name(routes: Iterable[KnownRoute], deployments: Iterable[Served]) -> dict[str, KnownRoute]:
    """Whatever the order: names of routes before aliases, these before deployments, these before adapters."""
    routes = sorted(routes, key=lambda route: route.name)
    deployments = sorted(deployments, key=lambda deployment: deployment.name)
    names = {route.name: route for route in routes}
    for route in routes:
        for alias in route.spec.aliases:
            names.setdefault(alias, route)
    for deployment in deployments:
        _add_implicit(names, deployment.name, [deployment], None)
    for adapter, holders in _holders(deployments).items():
        _add_implicit(names, adapter, holders, adapter)
    return dict(sorted(names.items()))


def load_routes(session: Session, deployments: Iterable[Served]) -> dict[str, KnownRoute]:
    """All public names. A row that this version cannot read is left out, with a line in the log."""
    rows = session.execute(sa_select(col(RouteRow.name), col(RouteRow.created_at), cast(col(RouteRow.spec), Text)))
    routes = []
    for name, created_at, text in rows.all():
        try:
            routes.append(KnownRoute(name, int(created_at.timestamp()), _route(text)))
        except ValidationError as error:
            _log.error("route %s is left out: %s", name, _said(error))
    return by_public_name(routes, deployments)


def load_providers(session: Session, open_sealed: OpenSealed | None) -> dict[str, KnownProvider]:
    """By name. One whose key cannot be opened is left out, too: without it, it would refuse all requests."""
    query = sa_select(col(ProviderRow.name), cast(col(ProviderRow.spec), Text), col(ProviderRow.sealed_key))
    providers = {}
    for name, text, sealed in session.execute(query.order_by(col(ProviderRow.name))).all():
        try:
            providers[name] = _known(name, _provider(text), _opened(sealed, open_sealed))
        except ValidationError as error:
            _log.error("provider %s is left out: %s", name, _said(error))
        except CannotOpen as error:
            _log.error("provider %s is left out: %s; set its key again, or start with the right one", name, error)
    return providers


def adapters_of(lora: Any) -> tuple[str, ...]:
    """From ``spec.lora`` of a deployment, as it is kept: the position is by which llama.cpp knows an adapter."""
    return tuple(str(adapter["name"]) for adapter in lora or ())


def _holders(deployments: list[Served]) -> dict[str, list[Served]]:
    holders: dict[str, list[Served]] = {}
    for deployment in deployments:
        for adapter in dict.fromkeys(deployment.adapters):
            holders.setdefault(adapter, []).append(deployment)
    return holders


def _add_implicit(names: dict[str, KnownRoute], name: str, holders: list[Served], adapter: str | None) -> None:
    if name in names:
        return
    try:
        spec = _implicit(tuple(holder.name for holder in holders[:_MOST_TARGETS]), adapter)
    except ValidationError as error:
        _log.error("the name %s leads nowhere: %s", name, _said(error))
        return
    names[name] = KnownRoute(name, min(holder.created_at for holder in holders), spec, implicit=True)


# Tables are loaded with every change in the fleet, while routes hardly change: the same text is parsed once.


@lru_cache(_REMEMBERED)
def _route(text: str) -> RouteSpec:
    return RouteSpec.model_validate_json(text)


@lru_cache(_REMEMBERED)
def _provider(text: str) -> ProviderSpec:
    return ProviderSpec.model_validate_json(text)


@lru_cache(_REMEMBERED)
def _implicit(deployments: tuple[str, ...], adapter: str | None) -> RouteSpec:
    return RouteSpec(targets=[Target(deployment=deployment, adapter=adapter) for deployment in deployments])


def _known(name: str, spec: ProviderSpec, key: str) -> KnownProvider:
    return KnownProvider(name, spec.kind, spec.base_url, key, spec.headers, spec.in_flight)


def _opened(sealed: str, open_sealed: OpenSealed | None) -> str:
    if not sealed:
        return ""
    if open_sealed is None:
        raise CannotOpen("there is no master key to open its API key with")
    return open_sealed(sealed)


def _said(error: ValidationError) -> str:
    """The first complaint, without the values."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
