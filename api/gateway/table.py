"""What a gateway knows by heart (keys, names, deployments, endpoints), as one table, and what keeps it fresh."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import select as sa_select
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from api.gateway.known_engines import Engines, load_engines
from api.gateway.known_routes import KnownProvider, KnownRoute, OpenSealed, load_providers, load_routes
from fleet.access.sealing import CannotOpen
from fleet.db import registry
from fleet.db.session import Database
from fleet.db.tables import ApiKeyRow, DeploymentRow, EndpointRow, HostRow, InstanceRow
from fleet.specs import AutoscalingSpec
from fleet.states import EndpointState, HostState

_log = logging.getLogger(__name__)

_NO_AUTOSCALING = AutoscalingSpec()

EngineKey = tuple[str, int]
"""Instance id and fence."""


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    scope: str
    expires_at: datetime | None = None

    def expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class KnownDeployment:
    name: str
    phase: str
    desired_replicas: int
    created_at: int
    """Seconds since 1970, as OpenAI's ``created``."""
    traffic: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Weights by launch; empty: requests are spread over all replicas."""
    autoscaling: AutoscalingSpec = _NO_AUTOSCALING
    stopped: bool = False
    """By a person: no request wakes it."""
    message: str = ""
    """How it is, for people."""


@dataclass(frozen=True, slots=True)
class Host:
    """How to get to the one port of a host."""

    id: str
    address: str
    port: int
    tunnel_only: bool = False
    """Only by the tunnel that a relay holds."""
    tunnel_url: str = ""
    """Internal URL of that relay; empty: none holds one now."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An engine that takes requests, under the fence that is current."""

    instance_id: str
    fence: int
    deployment: str
    url: str
    """Without ``/v1``; may have a path. Not looked at when there is a ``host``."""
    capacity: int
    """Requests that it works on at a time; 0: not known."""
    launch: int = 0
    """Which launch of its deployment it belongs to."""
    suspect: bool = False
    """It, or its host, was not heard of for a moment: asked only when no other replica is left."""
    host: Host | None = None
    """Behind whose proxy it is; None: nobody's."""
    revision: int = 0
    """Of its deployment; 0: not known."""
    engine: str = ""
    """``vllm``, ``sglang``, ``llama_cpp`` or ``custom``."""
    adapters: tuple[str, ...] = ()
    """Its LoRA adapters: the position is by which llama.cpp knows one, all others know them by name."""
    provider: KnownProvider | None = None
    """It is none of ours."""


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """One consistent view of the database. A new one replaces it; nothing in it ever changes."""

    version: int
    keys: Mapping[str, Key] = field(default_factory=lambda: MappingProxyType({}))
    """By SHA-256 of the key. Revoked keys are not in it; expired ones may be."""
    deployments: Mapping[str, KnownDeployment] = field(default_factory=lambda: MappingProxyType({}))
    endpoints: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """By deployment; those that take new requests."""
    draining: frozenset[EngineKey] = frozenset()
    """Those that finish what they have. What is neither here nor in ``endpoints`` is gone."""
    routes: Mapping[str, KnownRoute] = field(default_factory=lambda: MappingProxyType({}))
    """By public name, in their order: names of routes, aliases, deployments and LoRA adapters. What a route names may
    be gone."""
    providers: Mapping[str, KnownProvider] = field(default_factory=lambda: MappingProxyType({}))


def load(session: Session, open_sealed: OpenSealed | None = None) -> RoutingTable:
    """``open_sealed``: for the keys of providers; without it, those that have one are left out."""
    # The version first: what is written after it was read makes the next look at it load again.
    version = registry.version(session)
    engines = load_engines(session)
    return RoutingTable(
        version=version,
        keys=MappingProxyType(_keys(session)),
        deployments=MappingProxyType(_deployments(session)),
        endpoints=MappingProxyType(_endpoints(session, engines)),
        draining=_draining(session),
        routes=MappingProxyType(load_routes(session, engines.served)),
        providers=MappingProxyType(load_providers(session, open_sealed)),
    )


def _keys(session: Session) -> dict[str, Key]:
    rows = session.exec(
        select(ApiKeyRow.key_hash, ApiKeyRow.id, ApiKeyRow.scope, ApiKeyRow.expires_at).where(
            col(ApiKeyRow.revoked_at).is_(None)
        )
    )
    return {key_hash: Key(id_, scope, expires_at) for key_hash, id_, scope, expires_at in rows}


def _deployments(session: Session) -> dict[str, KnownDeployment]:
    rows = session.execute(
        sa_select(
            col(DeploymentRow.name),
            col(DeploymentRow.phase),
            col(DeploymentRow.desired_replicas),
            col(DeploymentRow.created_at),
            col(DeploymentRow.traffic),
            col(DeploymentRow.spec)["autoscaling"],
            col(DeploymentRow.stopped),
            col(DeploymentRow.message),
        ).order_by(col(DeploymentRow.name))
    ).all()
    return {
        name: KnownDeployment(
            name, phase, desired, int(created_at.timestamp()), _weights(traffic), _autoscaling(spec), stopped, message
        )
        for name, phase, desired, created_at, traffic, spec, stopped, message in rows
    }


def _autoscaling(spec: dict[str, Any] | None) -> AutoscalingSpec:
    return AutoscalingSpec.model_validate(spec) if spec else _NO_AUTOSCALING


def _weights(traffic: Mapping[str, int]) -> Mapping[int, int]:
    return MappingProxyType({int(launch): weight for launch, weight in traffic.items()})


def _endpoints(session: Session, engines: Engines) -> dict[str, tuple[Endpoint, ...]]:
    host = (HostRow.state, HostRow.id, HostRow.address, HostRow.http_port, HostRow.tunnel_only, HostRow.tunnel_url)
    rows = session.execute(
        sa_select(EndpointRow, col(InstanceRow.revision), *map(col, host))
        .join(HostRow, col(HostRow.id) == EndpointRow.host_id, isouter=True)
        .join(InstanceRow, col(InstanceRow.id) == EndpointRow.instance_id, isouter=True)
        .where(col(EndpointRow.state) != EndpointState.DRAINING)
        .order_by(col(EndpointRow.instance_id))
    ).all()
    by_deployment: dict[str, list[Endpoint]] = {}
    for row, revision, host_state, *where in rows:
        known = Host(*where) if host_state is not None else None
        if (wrong := _unusable(row, known)) is not None:
            _log.error("the endpoint of instance %s is left out: %s", row.instance_id, wrong)
            continue
        suspect = row.state == EndpointState.SUSPECT or host_state not in (None, HostState.READY)
        endpoint = _endpoint(row, suspect, known, revision or 0, engines)
        by_deployment.setdefault(row.deployment, []).append(endpoint)
    return {deployment: tuple(endpoints) for deployment, endpoints in by_deployment.items()}


def _endpoint(row: EndpointRow, suspect: bool, host: Host | None, revision: int, engines: Engines) -> Endpoint:
    engine = engines.of(row.deployment, revision)
    return Endpoint(
        instance_id=row.instance_id,
        fence=row.fence,
        deployment=row.deployment,
        url=row.url,
        capacity=row.capacity,
        launch=row.launch,
        suspect=suspect,
        host=host,
        revision=revision,
        engine=engine.kind,
        adapters=engine.adapters,
    )


def _unusable(row: EndpointRow, host: Host | None) -> str | None:
    """Why no request can be sent there; None: one can."""
    if row.host_id is None:
        return None if _is_url(row.url) else f"{row.url!r} is no http(s) URL"
    if host is None:
        return f"its host {row.host_id} was forgotten"
    if not host.tunnel_only and not (host.address and 0 < host.port < 1 << 16):
        return f"host {host.id} has not said where it is"
    return None


def _draining(session: Session) -> frozenset[EngineKey]:
    rows = session.exec(
        select(EndpointRow.instance_id, EndpointRow.fence).where(EndpointRow.state == EndpointState.DRAINING)
    )
    return frozenset((instance_id, fence) for instance_id, fence in rows)


def _is_url(url: str) -> bool:
    """Whether requests can be sent there, and the URL can be written into their first lines."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


_CATCH_UP_EVERY_S = 0.02
_CATCH_UP_AT_MOST_S = 0.5


class Refresher:
    """Keeps handing on the newest table. While the database is down, the last one stays in force."""

    def __init__(
        self,
        database: Database,
        adopt: Callable[[RoutingTable], None],
        *,
        poll_interval: float,
        reload_interval: float,
        prepare: Callable[[], Awaitable[None]],
        open_sealed: OpenSealed | None = None,
    ) -> None:
        """``adopt`` is called in the event loop, with every table that was loaded.

        ``prepare`` comes before each look, and may raise what a database that is down raises. ``open_sealed``: as for
        ``load``.
        """
        self._open_sealed = open_sealed
        self._prepare = prepare
        self._database = database
        self._adopt = adopt
        self._poll_interval = poll_interval
        self._reload_interval = reload_interval
        self._version: int | None = None
        self._loaded_at = 0.0
        self._down = False
        self.confirmed_at: float | None = None
        """When the table was last known to be current (monotonic); None: never."""
        self._one_at_a_time = asyncio.Lock()
        self._catching_up: asyncio.Task[None] | None = None

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval)
            await self.refresh()

    async def refresh(self) -> None:
        """Look once, and load if there is something new. Does not raise when the database is down."""
        async with self._one_at_a_time:  # an older table must not be handed on after a newer one
            await self._refresh()

    async def catch_up(self) -> None:
        """Look before something is refused that may have come to be since the last poll.

        All who ask meanwhile share one look, at most one every 20 ms, and none waits longer than half a second: a
        flood of bad requests costs next to nothing, and a database that is down delays nobody for long.
        """
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(self._look_soon())
        await asyncio.wait({self._catching_up}, timeout=_CATCH_UP_AT_MOST_S)

    async def _look_soon(self) -> None:
        since = time.monotonic() - (self.confirmed_at or 0.0)
        await asyncio.sleep(max(0.0, _CATCH_UP_EVERY_S - since))
        await self.refresh()

    async def _refresh(self) -> None:
        try:
            await self._prepare()
            table = await self._database.aread(self._load_if_due)
        except (SQLAlchemyError, OSError, CannotOpen) as error:
            self._note_down(error)
            return
        if self._down:
            self._down = False
            _log.info("the database answers again")
        self.confirmed_at = time.monotonic()
        if table is not None:
            self._version = table.version
            self._loaded_at = self.confirmed_at
            self._adopt(table)

    def _load_if_due(self, session: Session) -> RoutingTable | None:
        fresh = time.monotonic() - self._loaded_at < self._reload_interval
        if self._version is not None and fresh and registry.version(session) == self._version:
            return None
        return load(session, self._open_sealed)

    def _note_down(self, error: Exception) -> None:
        if not self._down:
            self._down = True
            if isinstance(error, CannotOpen):
                _log.error("%s: HOLDFAST_MASTER_KEY, or <home>/master_key, must be that of the API", error)
            else:
                _log.warning("the database does not answer, the last table stays in force: %s", error)
