"""Who gives way to a replica of higher priority that finds no room. Pure.

What is taken costs, in this order: replicas of high levels before those of lower ones (one more of a higher level is
worse than any number of lower ones), so many replicas, deployments that are left without any ready replica, bytes,
ready replicas, and age.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from fleet.placement.decision import Decision
from fleet.placement.needs import Needs
from fleet.placement.request import PlacementRequest
from fleet.placement.view import HostView
from fleet.policy.cover import Cost, Price, Ways, sets_on
from fleet.policy.priority import LEVELS, Standing
from fleet.policy.scout import Offers, promising
from fleet.policy.tenants import Tenant, settled, tenants
from fleet.policy.trial import Best, Trial, best_place

_PROPOSALS = 48
"""Sets of replicas that placement is asked about, the cheapest first. If none of them makes a place, the question is
turned round: how many of the cheapest replicas of the whole fleet must go."""

Takeable: TypeAlias = Mapping[str, Tenant]


@dataclass(frozen=True)
class Preemption:
    """All of it or nothing."""

    victims: tuple[Tenant, ...]
    """Empty: those that leave already make the room."""
    leaving: tuple[Tenant, ...]
    """That leave already, and whose room is counted on."""
    decision: Decision
    """Where the replica goes when they are gone."""


def plan_preemption(
    request: PlacementRequest,
    needs: Needs,
    hosts: Sequence[HostView],
    standings: Mapping[str, Standing],
    best: Best = best_place,
) -> Preemption | None:
    """The cheapest replicas of lower priority whose going makes a place; None: there are none such.

    ``standings`` by deployment; of one that is not named, what its replicas were placed with counts. Not taken: what
    leaves already, a part of a gang, and ready replicas that a deployment's floor keeps.
    """
    offers = Offers(request.priority, standings)
    leaving = {o.instance_id for h in hosts for o in h.occupants if o.leaving}
    now = [settled(h) for h in hosts]
    trial = Trial(request, needs, now, best)
    if leaving and (found := trial.of_all(())) is not None:
        return Preemption((), _there(tenants(hosts, leaving), found), found)
    price = partial(_price, request.priority, standings)
    for gone, takeable in _proposals(trial, offers, price):
        found = trial.of(gone, _hosts_of(gone, takeable))
        if found is not None:
            victims, found = _least(trial, gone, found, takeable, price)
            return Preemption(victims, _there(tenants(hosts, leaving), found), found)
    return None


def kept(request: PlacementRequest, hosts: Sequence[HostView], standings: Mapping[str, Standing]) -> str:
    """Why no replica is taken for it, for people; empty when there is nothing to say."""
    offers = Offers(request.priority, standings)
    lower = [o for h in hosts for o in h.occupants if not o.leaving and offers.level(o) < request.priority]
    if not lower:
        return ""
    names = sorted({o.deployment for o in lower})
    if any(map(offers.takeable, lower)):
        return "replicas of lower priority hold too little where it could run"
    floors = ", ".join(f"{name} keeps {standings[name].floor} ready (its floor)" for name in names[:3])
    return f"none of lower priority gives way: {floors}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# -- what it costs -----------------------------------------------------------------------------------------------------


def _price(taker: int, standings: Mapping[str, Standing], gone: Collection[Tenant]) -> Cost | None:
    levels = [0] * len(LEVELS)
    ready: dict[str, int] = {}
    size = 0
    age = 0.0
    for t in gone:
        levels[t.priority] += 1
        size += t.bytes
        age -= t.since.timestamp() if t.since.year > 1 else 0.0
        if t.ready:
            ready[t.deployment] = ready.get(t.deployment, 0) + 1
    emptied = 0
    for deployment, taken in ready.items():
        standing = standings.get(deployment)
        if standing is None:
            continue
        spares = standing.spares(taker)
        if spares is not None and taken > spares:
            return None
        emptied += taken >= standing.ready
    return (*reversed(levels), emptied, size, sum(ready.values()), age)


# -- who ---------------------------------------------------------------------------------------------------------------


def _proposals(trial: Trial, offers: Offers, price: Price) -> Iterator[tuple[frozenset[str], Takeable]]:
    """Sets of replicas, the cheapest first; the last one, if need be, is of the whole fleet."""
    ways = Ways(trial.request.spec.placement, trial.needs)
    hosts = promising(trial.request, trial.hosts, ways, offers)
    takeable = _takeable(trial.hosts, hosts, offers)
    found = _priced((some for h in hosts for some in sets_on(h, ways, takeable, price)), takeable, price)
    for _, gone in sorted(found, key=lambda pair: (pair[0], sorted(pair[1])))[:_PROPOSALS]:
        yield gone, takeable
    everybody = {o.instance_id for h in trial.hosts for o in h.occupants if offers.takeable(o)}
    if everybody and trial.of_all(everybody) is not None:
        takeable = _takeable(trial.hosts, trial.hosts, offers)
        if (enough := _enough_of_all(trial, takeable, price)) is not None:
            yield enough, takeable


def _takeable(hosts: Sequence[HostView], where: Sequence[HostView], offers: Offers) -> dict[str, Tenant]:
    """Those on the hosts ``where``, with all that they hold elsewhere and the priorities that they have now."""
    on = {o.instance_id: offers.level(o) for h in where for o in h.occupants if offers.takeable(o)}
    spread = any(o.hosts > 1 for h in where for o in h.occupants)
    found = tenants(hosts if spread else where, on)
    return {i: t if t.priority == on[i] else replace(t, priority=on[i]) for i, t in found.items()}


def _priced(sets: Iterable[Collection[str]], takeable: Takeable, price: Price) -> set[tuple[Cost, frozenset[str]]]:
    priced = ((price([takeable[i] for i in some]), frozenset(some)) for some in sets)
    return {(cost, some) for cost, some in priced if cost is not None}


def _enough_of_all(trial: Trial, takeable: Takeable, price: Price) -> frozenset[str] | None:
    """The fewest of the fleet's cheapest replicas that make a place: for gangs, and for what bytes do not explain."""
    order: list[Tenant] = []
    singly = {i: cost for i, t in takeable.items() if (cost := price([t])) is not None}
    for instance_id in sorted(singly, key=lambda i: (singly[i], i)):
        if price([*order, takeable[instance_id]]) is not None:
            order.append(takeable[instance_id])
    ids = [t.instance_id for t in order]
    if trial.of_all(ids) is None:
        return None
    low, high = 0, len(ids)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trial.of_all(ids[:middle]) is not None else (middle, high)
    found = trial.of_all(ids[:high])
    there = [t.instance_id for t in order[:high] if found is not None and set(t.hosts) & set(found.hosts)]
    return frozenset(there)


def _least(
    trial: Trial, gone: frozenset[str], found: Decision, takeable: Takeable, price: Price
) -> tuple[tuple[Tenant, ...], Decision]:
    """Without those that may as well stay, the dearest of them first."""
    where = _hosts_of(gone, takeable)
    for tenant in sorted((takeable[i] for i in gone), key=lambda t: (price([t]) or (), t.instance_id), reverse=True):
        fewer = gone - {tenant.instance_id}
        if fewer and (still := trial.of(fewer, where)) is not None:
            gone, found = fewer, still
    return tuple(sorted((takeable[i] for i in gone), key=lambda t: t.instance_id)), found


def _hosts_of(gone: Collection[str], takeable: Takeable) -> set[str]:
    return {host_id for i in gone for host_id in takeable[i].hosts}


def _there(leaving: Mapping[str, Tenant], found: Decision) -> tuple[Tenant, ...]:
    """Those of ``leaving`` whose cards, or RAM, the replica gets."""
    cards = {uuid for seat in found.seats for uuid in seat.gpu_uuids}
    there = [t for t in leaving.values() if set(t.hosts) & set(found.hosts)]
    return tuple(t for t in there if not cards or cards & {uuid for uuid, _ in t.gpu_bytes})
