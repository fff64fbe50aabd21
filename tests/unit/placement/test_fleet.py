"""The fleet as it is kept in memory, host by host."""

from dataclasses import replace

import pytest

from fleet.placement.decision import Decision
from fleet.placement.fleet import Fleet, StaleDecision
from fleet.placement.needs import Needs
from fleet.placement.place import place
from fleet.placement.view import Occupant
from tests.unit.placement.fleets import GIB, host, request

NEEDS = Needs.constant(10 * GIB, 1)


def found(fleet: Fleet, **changes: object) -> Decision:
    decision = place(request(**changes), NEEDS, fleet)
    assert isinstance(decision, Decision), decision
    return decision


def test_what_is_taken_shows_in_the_view() -> None:
    fleet = Fleet.of([host("a", gpus=(80 * GIB,))], "chat")
    fleet.take(found(fleet, instance_id="chat/7-a"))
    view = fleet.view("a")
    assert (view.gpus[0].free_bytes, view.ports_free, view.replicas_of_deployment) == (70 * GIB, 999, 1)
    assert view.occupants == (Occupant("chat/7-a", "chat", gpu_bytes=(("a-gpu-0", 10 * GIB),)),)
    assert found(fleet).seats[0].replicas_there == 1


def test_decision_that_no_longer_holds_is_not_taken_and_changes_nothing() -> None:
    fleet = Fleet.of([host("a", gpus=(15 * GIB,))])
    first, second = found(fleet), found(fleet)
    fleet.take(first)
    with pytest.raises(StaleDecision, match="no room any more"):
        fleet.take(second)
    assert fleet.view("a").gpus[0].free_bytes == 5 * GIB
    for change in (host("a", gpus=(15 * GIB,), generation=8), host("a", gpus=(15 * GIB,), ports_free=0)):
        fleet.update(change)
        with pytest.raises(StaleDecision):
            fleet.take(second)
    fleet.remove("a")
    with pytest.raises(StaleDecision, match="is gone"):
        fleet.take(second)


def test_the_ledgers_word_counts_more_than_what_was_taken() -> None:
    fleet = Fleet.of([host("a", gpus=(80 * GIB,))])
    taken = found(fleet)
    fleet.take(taken)
    fleet.update(host("a", gpus=(70 * GIB,)))
    assert fleet.view("a").gpus[0].free_bytes == 70 * GIB
    fleet.give_back(taken)
    assert fleet.view("a").gpus[0].free_bytes == 70 * GIB


def test_copy_goes_its_own_way() -> None:
    fleet = Fleet.of([host("a", gpus=(80 * GIB,)), host("b", gpus=(80 * GIB,))])
    twin = fleet.copy()
    twin.take(found(twin))
    twin.remove("b")
    twin.update(host("c", gpus=(80 * GIB,), labels={"zone": "x"}))
    assert (len(fleet), len(twin), "c" in fleet, "c" in twin) == (2, 2, False, True)
    assert [fleet.view(h).gpus[0].free_bytes for h in "ab"] == [80 * GIB, 80 * GIB]
    assert found(twin, host_selector={"zone": "x"}).hosts == ("c",)
    assert not isinstance(place(request(host_selector={"zone": "x"}), NEEDS, fleet), Decision)


def test_cards_and_labels_of_a_host_may_change() -> None:
    fleet = Fleet.of([host("a", gpus=(80 * GIB, 80 * GIB), labels={"zone": "x"})])
    assert found(fleet, host_selector={"zone": "x"}).hosts == ("a",)
    fleet.update(host("a", gpus=(80 * GIB,), labels={"zone": "y"}))
    assert not isinstance(place(request(host_selector={"zone": "x"}), NEEDS, fleet), Decision)
    assert not isinstance(place(request(gpus_per_replica=2), Needs.constant(GIB, 2), fleet), Decision)
    assert not isinstance(place(request(gpu_ids=["a-gpu-1"]), NEEDS, fleet), Decision)
    for number in range(40):
        fleet.update(host(f"h{number}", gpus=(80 * GIB,) * 3))
    assert len(fleet) == 41
    assert found(fleet, gpu_ids=["h39-gpu-2"]).seats[0].gpu_uuids == ("h39-gpu-2",)


def test_card_that_moved_to_another_host_is_found_there() -> None:
    a, b = host("a", gpus=(80 * GIB,)), host("b")
    fleet = Fleet.of([a, b])
    fleet.update(replace(b, gpus=a.gpus, engines=a.engines))
    fleet.update(replace(a, gpus=()))
    assert found(fleet, gpu_ids=["a-gpu-0"]).hosts == ("b",)


def test_replicas_that_leave_do_not_keep_others_away_but_are_told() -> None:
    leaving = (Occupant("chat/1", "chat", leaving=True),)
    fleet = Fleet.of([host("a", gpus=(80 * GIB,), occupants=leaving), host("b", gpus=(80 * GIB,))])
    [seat] = found(fleet).seats
    assert (seat.host_id, seat.replicas_there) == ("a", 1)
