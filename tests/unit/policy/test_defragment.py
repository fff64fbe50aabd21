"""Which replicas are moved for one that waits, and which are not."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fleet.placement.decision import Decision
from fleet.placement.needs import Need, Needs
from fleet.placement.view import HostView, Occupant
from fleet.policy.defragment import Mover, Moves, plan_moves, wanted_defragmentation
from fleet.policy.priority import Standing
from fleet.policy.tenants import settled, tenants, without
from fleet.sizing.sizing import Shape
from tests.unit.policy.fleets import fleets, host, in_ram, occupant, on_cards, placed, request, standings

MINUTE = timedelta(minutes=1)


def movers(hosts: Sequence[HostView]) -> dict[str, Mover]:
    """Each asks for what one of its replicas holds now."""
    found = {}
    for t in tenants(hosts).values():
        size = max((b for _, b in t.gpu_bytes), default=0)
        ram = max((b for _, b in t.ram_bytes), default=0)
        need = Need(Shape(tensor_parallel=max(1, len(t.gpu_bytes))), size, ram)
        needs = Needs(otherwise=(need,)) if size else Needs(cpu=(need,))
        found[t.deployment] = Mover(request(t.deployment, priority=0), needs)
    return found


def plan(hosts: Sequence[HostView], needs: Needs, *, at_most: int = 4, **more: Any) -> Moves | None:
    standing = more.pop("standings", None) or standings(hosts)
    asked = request(priority=more.pop("priority", 1))
    return plan_moves(asked, needs, hosts, movers=movers(hosts), standings=standing, at_most=at_most, **more)


def moved(found: Moves | None) -> dict[str, str]:
    """Instance to host."""
    assert found is not None
    return {m.tenant.instance_id: m.decision.seats[0].host_id for m in found.moves}


def test_the_smallest_replica_moves_so_that_a_whole_card_is_free() -> None:
    a = host("a", occupant("x/1", ("a-0", 40)), cards=1)
    b = host("b", occupant("y/1", ("b-0", 30)), cards=1)
    found = plan([a, b], on_cards(80))
    assert moved(found) == {"y/1": "a"}
    assert found is not None
    assert found.decision.seats[0].gpu_uuids == ("b-0",)


def test_fewer_moves_are_better_than_smaller_ones() -> None:
    a = host("a", *(occupant(f"x/{n}", ("a-0", 10)) for n in (1, 2)), cards=1)
    b = host("b", occupant("y/1", ("b-0", 30)), cards=1)
    c = host("c", occupant("z/1", ("c-0", 40)), cards=1)
    assert moved(plan([a, b, c], on_cards(80))).keys() == {"y/1"}


def test_ram_is_made_whole_too() -> None:
    hosts = [host("a", occupant("x/1", ram=40)), host("b", occupant("y/1", ram=50))]
    assert moved(plan(hosts, in_ram(90))) == {"x/1": "b"}


def test_a_place_that_is_there_needs_no_moves() -> None:
    found = plan([host("a", cards=1)], on_cards(80))
    assert found is not None
    assert found.moves == ()


def test_nothing_is_moved_where_there_is_no_room_for_it() -> None:
    hosts = [host(n, occupant(f"{n}/1", (f"{n}-0", 50)), cards=1) for n in "ab"]
    assert plan(hosts, on_cards(80)) is None


@pytest.mark.parametrize(
    "kept",
    [{"hosts": 2}, {"leaving": True}, {"ready": False}, {"priority": 2}],
    ids=["gang", "leaves", "is not ready", "is of higher priority"],
)
def test_stays(kept: dict[str, Any]) -> None:
    other = occupant("x/1", ("a-0", 40), ("a-1", 10), **kept)
    hosts = [host("a", other, cards=2), host("b", occupant("y/1", ("b-0", 45), ("b-1", 45)), cards=2)]
    found = plan(hosts, on_cards(80, 2))
    assert found is None or "x/1" not in {m.tenant.instance_id for m in found.moves}


def test_replicas_in_a_rollout_and_those_that_are_to_stay_are_left_alone() -> None:
    hosts = [host("a", occupant("x/1", ("a-0", 40)), cards=1), host("b", occupant("y/1", ("b-0", 30)), cards=1)]
    rolling = standings(hosts, y=Standing(priority=0, ready=1, rolling_out=True))
    assert moved(plan(hosts, on_cards(80), standings=rolling)) == {"x/1": "b"}
    assert moved(plan(hosts, on_cards(80), stay={"y/1"})) == {"x/1": "b"}


def test_no_more_are_moved_than_is_allowed() -> None:
    a = host("a", *(occupant(f"x/{n}", (f"a-{n}", 30)) for n in (0, 1)), cards=2)
    b = host("b", *(occupant(f"y/{n}", (f"b-{n}", 30)) for n in (0, 1)), cards=2)
    assert len(moved(plan([a, b], on_cards(80, 2)))) == 2
    assert plan([a, b], on_cards(80, 2), at_most=1) is None


def test_it_is_only_wanted_after_a_while_and_when_there_is_enough_in_all() -> None:
    hosts = [host(n, occupant(f"{n}/1", (f"{n}-0", 40)), cards=1) for n in "ab"]
    asked = request()
    assert wanted_defragmentation(asked, on_cards(80), hosts, 2 * MINUTE, MINUTE)
    assert not wanted_defragmentation(asked, on_cards(80), hosts, MINUTE / 2, MINUTE)
    assert not wanted_defragmentation(asked, on_cards(80), hosts[:1], 2 * MINUTE, MINUTE)
    assert not wanted_defragmentation(asked, on_cards(200), hosts, 2 * MINUTE, MINUTE)
    assert wanted_defragmentation(asked, in_ram(100), hosts, 2 * MINUTE, MINUTE)


def carried_out(hosts: Sequence[HostView], found: Moves) -> list[HostView]:
    """The fleet when all have moved: each target is taken before anything goes."""
    ids = {m.tenant.instance_id for m in found.moves}
    return [without(_with(h, found), ids) for h in hosts]


def _with(view: HostView, found: Moves) -> HostView:
    for m in found.moves:
        [seat] = m.decision.seats
        if seat.host_id == view.host_id:
            view = _booked(view, m.decision, m.tenant.deployment)
    return view


def _booked(view: HostView, decision: Decision, deployment: str) -> HostView:
    [seat] = decision.seats
    new: Occupant = occupant(f"{deployment}/new-{len(view.occupants)}", *((u, seat.gpu_bytes) for u in seat.gpu_uuids))
    free: Mapping[str, int] = {g.uuid: g.free_bytes for g in view.gpus}
    assert all(free[u] >= seat.gpu_bytes for u in seat.gpu_uuids), "a target that is not free before anything goes"
    return host(view.host_id, *view.occupants, new, cards=len(view.gpus))


@settings(max_examples=200)
@given(fleets(), st.sampled_from([40, 60, 80]), st.integers(1, 2), st.integers(1, 3), st.integers(1, 4))
def test_whatever_the_fleet_moves_make_a_place_and_no_move_is_for_nothing(
    hosts: list[HostView], size: int, cards: int, priority: int, at_most: int
) -> None:
    asked, needs = request(priority=priority), on_cards(size, cards)
    assume(placed(asked, needs, [settled(h) for h in hosts]) is None)
    standing = standings(hosts)
    found = plan_moves(asked, needs, hosts, movers=movers(hosts), standings=standing, at_most=at_most)
    if found is None:
        return
    assert 1 <= len(found.moves) <= at_most
    for m in found.moves:
        assert m.tenant.ready
        assert not m.tenant.leaving
        assert not m.tenant.gang
        assert standing[m.tenant.deployment].priority <= priority
        assert m.decision.seats[0].host_id not in m.tenant.hosts
    after = [settled(h) for h in carried_out(hosts, found)]
    assert placed(asked, needs, after) is not None
    gone = {m.tenant.instance_id for m in found.moves}
    [source] = {h for m in found.moves for h in m.tenant.hosts}
    for one in gone:
        fewer = [without(settled(h), gone - {one}) for h in hosts if h.host_id == source]
        assert placed(asked, needs, fewer) is None, f"{one} could have stayed"
