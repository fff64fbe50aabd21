"""What holds for every placement in every fleet."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.placement.decision import Decision, Refusal
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Needs
from fleet.placement.place import place, replicas_that_fit
from fleet.placement.request import PlacementRequest
from fleet.placement.view import HostView
from tests.unit.placement import worlds

any_fleet = settings(deadline=None)


def inside(fleet: Fleet) -> dict[str, Any]:
    """All that it holds, to compare."""
    tables = {
        f"{table}.{name}": getattr(fleet, table)[name].tolist()
        for table, columns in (("host", ("ram_free", "ports_free", "gpu_free")), ("gpu", ("free", "class", "host")))
        for name in columns
    }
    return {**tables, "replicas": {d: dict(fleet.replicas(d)) for d in ("chat", "noisy", "quiet")}}


@any_fleet
@given(worlds.requests(), worlds.needs, worlds.fleets())
def test_what_can_be_placed_is_placed_rightly_and_nothing_else(
    asked: PlacementRequest, needs: Needs, hosts: list[HostView]
) -> None:
    found = place(asked, needs, Fleet.of(hosts))
    assert isinstance(found, Decision) == worlds.possible(asked, needs, hosts), found
    assert isinstance(found, Refusal) or worlds.is_right(asked, needs, hosts, found)


@any_fleet
@given(worlds.requests(), worlds.needs, worlds.fleets(), st.randoms(use_true_random=False), st.integers(0, 9))
def test_order_of_hosts_changes_nothing(
    asked: PlacementRequest, needs: Needs, hosts: list[HostView], dice: Any, seed: int
) -> None:
    excluding = asked.model_copy(update={"excluded_hosts": ("h0",)})
    shuffled = dice.sample(hosts, len(hosts))
    for request in (asked, excluding):
        one, other = (place(request, needs, Fleet.of(order), seed=seed) for order in (hosts, shuffled))
        assert one == other


@any_fleet
@given(worlds.requests(), worlds.needs, worlds.fleets(), worlds.hosts("h9"))
def test_another_host_takes_no_place_away(
    asked: PlacementRequest, needs: Needs, hosts: list[HostView], another: HostView
) -> None:
    if isinstance(place(asked, needs, Fleet.of(hosts)), Decision):
        assert isinstance(place(asked, needs, Fleet.of([*hosts, another])), Decision)


@any_fleet
@given(worlds.requests(), worlds.needs, worlds.fleets(most=12))
def test_refusal_counts_every_host_and_card_once(asked: PlacementRequest, needs: Needs, hosts: list[HostView]) -> None:
    excluding = asked.model_copy(update={"excluded_hosts": ("h0", "h1")})
    for request in (asked, excluding):
        found = place(request, needs, Fleet.of(hosts))
        if isinstance(found, Refusal):
            assert sum(removed.hosts for removed in found.filters) == len(hosts)
            assert sum(removed.gpus for removed in found.filters) == sum(len(h.gpus) for h in hosts)
            assert all(removed.hosts > 0 for removed in found.filters)
            by_host = len(hosts) <= 8
            told = len(hosts) if by_host else sum(int(reason.split(" of ")[0]) for reason in found.reasons)
            assert told == len(hosts)
            assert all(found.reasons)


@any_fleet
@given(worlds.requests(), worlds.needs, worlds.fleets())
def test_what_is_taken_and_given_back_leaves_no_trace(
    asked: PlacementRequest, needs: Needs, hosts: list[HostView]
) -> None:
    fleet = Fleet.of(hosts)
    before, views = inside(fleet), [fleet.view(h.host_id) for h in hosts]
    assert views == hosts
    found = place(asked, needs, fleet)
    if isinstance(found, Decision):
        fleet.take(found)
        assert inside(fleet) != before
        fleet.give_back(found)
        fleet.give_back(found)
    assert inside(fleet) == before
    assert [fleet.view(h.host_id) for h in hosts] == views


@any_fleet
@given(worlds.requests(), worlds.needs, worlds.fleets())
def test_as_many_are_placed_as_fit_and_never_more_than_there_is(
    asked: PlacementRequest, needs: Needs, hosts: list[HostView]
) -> None:
    fleet, count = Fleet.of(hosts), 0
    promised = replicas_that_fit(asked, needs, fleet, at_most=20)
    while count < 20 and isinstance(found := place(asked, needs, fleet), Decision):
        fleet.take(found)
        count += 1
        assert all(int(np.min(fleet.host[name])) >= 0 for name in ("ram_free", "ports_free", "gpu_free"))
        assert int(np.min(fleet.gpu["free"], initial=0)) >= 0
    assert count == promised


@any_fleet
@given(worlds.requests(), worlds.needs, worlds.fleets(), worlds.fleets(), st.data())
def test_fleet_that_was_changed_is_as_good_as_a_new_one(
    asked: PlacementRequest, needs: Needs, hosts: list[HostView], later: list[HostView], data: st.DataObject
) -> None:
    """Hosts change, come and go; what was taken before is forgotten where the ledger has had its word."""
    fleet = Fleet.of(hosts)
    found = place(asked, needs, fleet)
    if isinstance(found, Decision):
        fleet.take(found)
    for host in data.draw(st.permutations(later)):
        fleet.update(host)
    for gone in {h.host_id for h in hosts} - {h.host_id for h in later}:
        fleet.remove(gone)
    assert [fleet.view(h.host_id) for h in later] == later
    assert place(asked, needs, fleet) == place(asked, needs, Fleet.of(later))
    if isinstance(found, Decision):
        fleet.give_back(found)
    assert place(asked, needs, fleet) == place(asked, needs, Fleet.of(later))
