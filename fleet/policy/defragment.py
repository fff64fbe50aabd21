"""Which replicas to move so that one that waits finds its room in one piece. Pure.

Each is moved to room that is free now, so that its replacement is ready before it goes; chains of moves, where one can
only go once another has gone, are not looked for.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from heapq import nsmallest

from fleet.placement.decision import Decision
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Need, Needs
from fleet.placement.options import allowed, wished
from fleet.placement.request import PlacementRequest
from fleet.placement.view import HostView, Occupant
from fleet.policy.cover import Cost, Ways, sets_on, shortfall
from fleet.policy.priority import Standing
from fleet.policy.tenants import Tenant, settled, tenants
from fleet.policy.trial import Best, Trial, best_place

_LOOKED_AT = 64
"""Hosts that lack least."""
_TRIED = 24
"""Sets of replicas for which room elsewhere is looked for: the cheapest."""


@dataclass(frozen=True)
class Mover:
    """What the replicas of one deployment ask for when they are placed anew."""

    request: PlacementRequest
    needs: Needs
    best: Best = best_place


@dataclass(frozen=True)
class Move:
    tenant: Tenant
    decision: Decision
    """Where its replacement goes."""


@dataclass(frozen=True)
class Moves:
    moves: tuple[Move, ...]
    """Empty: there is a place without any."""
    decision: Decision
    """Where the replica that waits goes then."""


def plan_moves(
    request: PlacementRequest,
    needs: Needs,
    hosts: Sequence[HostView],
    *,
    movers: Mapping[str, Mover],
    standings: Mapping[str, Standing],
    at_most: int,
    best: Best = best_place,
    stay: Collection[str] = (),
) -> Moves | None:
    """The fewest replicas, and of these the smallest, that can go elsewhere and leave a place; None: there are none.

    ``movers`` by deployment; replicas of others stay, and so do those of ``stay``, of gangs, of deployments in a
    rollout, of a higher priority than the request's, and all that are not ready or leave already. The room of those
    that leave counts as free for the one that waits, not for those that move.
    """
    trial = Trial(request, needs, [settled(h) for h in hosts], best)
    if (found := trial.of_all(())) is not None:
        return Moves((), found)
    movable = _movable(hosts, request, movers, standings, stay)
    for host, proposed in _proposals(trial, movable, at_most):
        if (found := trial.of(proposed, [host])) is None:
            continue
        gone, found = _least(trial, host, proposed, found, movable)
        moves = _elsewhere([movable[i] for i in gone], host, hosts, movers)
        if moves is not None:
            return Moves(moves, found)
    return None


def wanted_defragmentation(
    request: PlacementRequest, needs: Needs, hosts: Sequence[HostView], waited: timedelta, patience: timedelta
) -> bool:
    """Whether to look for moves by ourselves: it has waited long enough, and there is enough free memory in all."""
    if waited < patience:
        return False
    wish = request.spec.placement
    free: dict[str, int] = {}
    enough = any(_ram_is_there(need, hosts) for need in needs.cpu)
    for gpu in (g for h in hosts for g in h.gpus if wished(wish, g.gpu_class)):
        key = f"{gpu.kind}/{gpu.name}/{gpu.total_bytes}"
        free[key] = free.get(key, 0) + max(0, gpu.free_bytes)
        ways = (n for n in needs.on(gpu.gpu_class) if allowed(wish, n) and n.gpu_bytes <= gpu.total_bytes)
        enough = enough or any(free[key] >= n.gpu_bytes * n.shape.gpus for n in ways)
    return enough


def _ram_is_there(need: Need, hosts: Sequence[HostView]) -> bool:
    largest = max((h.ram_total_bytes for h in hosts), default=0)
    return need.ram_bytes <= largest and sum(max(0, h.ram_free_bytes) for h in hosts) >= need.ram_bytes


def _movable(
    hosts: Sequence[HostView],
    request: PlacementRequest,
    movers: Mapping[str, Mover],
    standings: Mapping[str, Standing],
    stay: Collection[str],
) -> dict[str, Tenant]:
    def may(occupant: Occupant) -> bool:
        standing = standings.get(occupant.deployment, Standing(priority=occupant.priority))
        idle = occupant.leaving or not occupant.ready or occupant.hosts > 1
        kept = occupant.instance_id in stay or occupant.deployment not in movers or standing.rolling_out
        return not idle and not kept and standing.priority <= request.priority

    return tenants(hosts, {o.instance_id for h in hosts for o in h.occupants if may(o)})


def _price(gone: Collection[Tenant], at_most: int) -> Cost | None:
    return None if len(gone) > at_most else (len(gone), sum(t.bytes for t in gone))


def _proposals(trial: Trial, movable: Mapping[str, Tenant], at_most: int) -> Iterator[tuple[str, frozenset[str]]]:
    ways = Ways(trial.request.spec.placement, trial.needs)
    suited = [h for h in trial.hosts if h.host_id not in trial.request.excluded_hosts]
    lacking = [
        (lacks, h.host_id, h) for h in suited if (lacks := shortfall(h, ways, lambda o: o.instance_id in movable))
    ]
    priced: list[tuple[Cost, str, list[str]]] = []
    for _, host_id, host in nsmallest(_LOOKED_AT, lacking, key=lambda entry: entry[:2]):
        for some in sets_on(host, ways, movable, lambda gone: _price(gone, at_most)):
            priced.append((_price([movable[i] for i in some], at_most) or (), host_id, sorted(some)))
    yield from ((host_id, frozenset(some)) for _, host_id, some in nsmallest(_TRIED, priced))


def _least(
    trial: Trial, host: str, gone: frozenset[str], found: Decision, movable: Mapping[str, Tenant]
) -> tuple[frozenset[str], Decision]:
    for tenant in sorted((movable[i] for i in gone), key=lambda t: (-t.bytes, t.instance_id)):
        fewer = gone - {tenant.instance_id}
        if fewer and (still := trial.of(fewer, [host])) is not None:
            gone, found = fewer, still
    return gone, found


def _elsewhere(
    going: Sequence[Tenant], host: str, hosts: Sequence[HostView], movers: Mapping[str, Mover]
) -> tuple[Move, ...] | None:
    """Where each goes, the largest first; None: there is not room for all."""
    fleet = Fleet.of([h for h in hosts if h.host_id != host])
    moves: list[Move] = []
    for tenant in sorted(going, key=lambda t: (-t.bytes, t.instance_id)):
        mover = movers[tenant.deployment]
        asked = mover.request.model_copy(update={"instance_id": tenant.instance_id})
        decision = mover.best(asked, mover.needs, fleet)
        if decision is None:
            return None
        fleet.take(decision)
        moves.append(Move(tenant, decision))
    return tuple(moves)
