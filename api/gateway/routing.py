"""Public names at run time: routes, their targets, and the pools of replicas that targets have."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from api.gateway.destination import PROVIDER, Destination
from api.gateway.known_routes import KnownProvider, KnownRoute
from api.gateway.options import Options
from api.gateway.pool import Pool
from api.gateway.route import Route
from api.gateway.table import Endpoint, RoutingTable
from api.gateway.upstream import Upstream, Upstreams
from fleet.access.visitor import Visitor
from fleet.db.traffic import Sums
from fleet.routes import Target

_Key = tuple[str, int, Target]
"""Route, which of its targets, and what it was then."""
_NO_LIMIT = 100_000
"""Requests in one replica: as good as none."""
_COUNTS_ADAPTERS = "llama_cpp"


class _New(NamedTuple):
    """What is taken over."""

    table: RoutingTable
    upstreams: Mapping[str, Sequence[Upstream]]
    before: Mapping[_Key, Destination]
    now: float


class Routing:
    """A new table changes it; what stays keeps its counts, queues and connections."""

    def __init__(self, options: Options) -> None:
        self.upstreams = Upstreams(options)
        self._by_name: dict[str, Route] = {}
        """By every public name; aliases lead to the same route."""
        self._routes: dict[str, Route] = {}
        self._destinations: dict[_Key, Destination] = {}

    @property
    def visitor(self) -> Visitor | None:
        return self.upstreams.visitor

    @visitor.setter
    def visitor(self, visitor: Visitor) -> None:
        self.upstreams.visitor = visitor

    def get(self, name: str) -> Route | None:
        return self._by_name.get(name)

    def destinations(self) -> Iterator[Destination]:
        return iter(self._destinations.values())

    def sums(self) -> list[Sums]:
        return self.upstreams.sums()

    def adopt(self, table: RoutingTable, now: float) -> set[str]:
        """Names of deployments that have a usable replica now."""
        endpoints = [e for name in table.deployments for e in table.endpoints.get(name, ())]
        endpoints += [_endpoint_of(provider) for provider in table.providers.values()]
        upstreams = self.upstreams.adopt(endpoints, table.draining)
        before, self._destinations = self._destinations, {}
        new = _New(table, upstreams, before, now)
        routes, self._routes = self._routes, {}
        for known in {route.name: route for route in table.routes.values()}.values():
            route = self._routes[known.name] = routes.get(known.name) or Route(known.name)
            targets = enumerate(known.spec.targets)
            route.update(known.spec, [self._destination(known, n, target, new) for n, target in targets])
        self._by_name = {name: self._routes[known.name] for name, known in table.routes.items()}
        for key, gone in before.items():
            if key not in self._destinations:
                gone.pool.close()  # requests on their way find nothing to be sent to again
        self.upstreams.give_up(upstreams)
        return {name for name in upstreams if not name.startswith(PROVIDER)}

    def loads(self) -> Iterator[tuple[str, int, int]]:
        """Of every route: its name, requests in engines, and requests that wait here."""
        for route in self._routes.values():
            pools = [d.pool for d in route.destinations]
            yield route.name, sum(p.in_flight for p in pools), sum(p.waiting for p in pools)

    def sweep(self, now: float) -> None:
        self.upstreams.sweep(now)
        for destination in self._destinations.values():
            destination.pool.sweep(now)

    def close(self) -> None:
        self.upstreams.close()

    def _destination(self, known: KnownRoute, number: int, target: Target, new: "_New") -> Destination:
        key = (known.name, number, target)
        label, replicas, traffic = _replicas(target, new.table, new.upstreams)
        destination = new.before.get(key) or Destination(target, Pool(), label, "")
        spec = known.spec
        # While requests are shared out by weight, the shares come before waiting for the replica that is free first.
        queue = spec.queue.model_copy(update={"in_flight": _NO_LIMIT}) if traffic else spec.queue
        destination.pool.update(replicas, new.now, traffic=traffic, balancing=spec.balancing, queue=queue)
        _describe(destination, known, new.table)
        self._destinations[key] = destination
        return destination


def _replicas(
    target: Target, table: RoutingTable, upstreams: Mapping[str, Sequence[Upstream]]
) -> tuple[str, Sequence[Upstream], Mapping[int, int]]:
    """(label, replicas, weights by launch)."""
    if target.provider is not None:
        label = PROVIDER + target.provider
        return label, upstreams.get(label, ()), {}
    name = target.deployment or ""
    replicas = upstreams.get(name, ())
    if target.adapter is not None:
        replicas = [u for u in replicas if target.adapter in u.adapters]
    if target.revision is not None:
        return name, [u for u in replicas if u.revision == target.revision], {}
    known = table.deployments.get(name)
    return name, replicas, known.traffic if known is not None else {}


def _describe(destination: Destination, known: KnownRoute, table: RoutingTable) -> None:
    """What requests to it must say."""
    target = destination.target
    if target.provider is not None:
        provider = table.providers.get(target.provider)
        destination.model = target.model or known.name
        destination.engine = provider.kind if provider is not None else ""
        return
    endpoints = table.endpoints.get(target.deployment or "", ())
    first = endpoints[0] if endpoints else None
    destination.engine = first.engine if first is not None else ""
    destination.model = target.deployment or ""
    destination.adapters, destination.adapter = 0, None
    adapters = first.adapters if first is not None else ()
    if destination.engine == _COUNTS_ADAPTERS:
        destination.adapters = len(adapters)
        destination.adapter = adapters.index(target.adapter) if target.adapter in adapters else None
    elif target.adapter is not None:
        destination.model = target.adapter


def _endpoint_of(provider: KnownProvider) -> Endpoint:
    label = PROVIDER + provider.name
    return Endpoint(label, 0, label, provider.base_url, provider.in_flight, engine=provider.kind, provider=provider)
