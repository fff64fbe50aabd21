"""A host's life, as decisions."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.hosts import (
    Host,
    Maintain,
    Upkeep,
    come_back,
    describe,
    look_at_drain,
    lose,
    maintain,
    pause_replacement,
    told,
)
from fleet.states import HostState, Maintenance

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOST = Host(host_id="h1", name="box")
DRAIN = Maintain(mode=Upkeep.DRAIN)
CORDON = Maintain(mode=Upkeep.CORDON)

Step = Callable[[Host], Host]
levels = st.builds(
    Maintain,
    mode=st.sampled_from(Upkeep),
    deadline=st.none() | st.datetimes(timezones=st.just(UTC)),
    reason=st.text(max_size=5),
)
steps = st.one_of(
    levels.map(lambda level: lambda h: maintain(h, level)),
    st.lists(st.sampled_from(["a/1-x", "a/2-y", "b/1-z"])).map(lambda placed: lambda h: look_at_drain(h, placed, "")),
    st.just(lambda h: lose(h, NOW)),
    st.just(lambda h: pause_replacement(h, "too many") if h.untold else h),
    st.just(told),
    st.just(come_back),
)


@given(levels)
def test_asking_twice_for_the_same_level_is_asking_once(level: Maintain) -> None:
    once = maintain(HOST, level)
    assert maintain(once, level) is once
    drained = look_at_drain(once, [], "")
    assert maintain(drained, level) is drained, "also when it has come true meanwhile"


@given(st.lists(steps, max_size=12))
def test_maintenance_is_what_was_asked_for_whatever_else_happens(life: list[Step]) -> None:
    host = HOST
    for step in life:
        host = step(host)
        expected = {
            Upkeep.NONE: {Maintenance.NONE},
            Upkeep.CORDON: {Maintenance.CORDONED},
            Upkeep.DRAIN: {Maintenance.DRAINING, Maintenance.DRAINED},
        }
        assert host.maintenance in expected[host.wanted.mode]
        assert describe(host)


@given(st.lists(steps, max_size=12))
def test_only_a_lost_host_whose_instances_do_not_know_waits_for_approval(life: list[Step]) -> None:
    host = HOST
    for step in life:
        host = step(host)
        assert not host.replacement_paused or (host.state is HostState.LOST and host.untold)
        assert host.replacement_paused == bool(host.paused_because)


def test_drain_is_over_when_nobody_is_left_and_says_who_is_until_then() -> None:
    deadline = NOW + timedelta(minutes=5)
    draining = maintain(HOST, Maintain(mode=Upkeep.DRAIN, deadline=deadline, reason="new disk"))
    waiting = look_at_drain(draining, ["a/1-x", "a/2-y"], "a/3-z is pending: no room")
    assert waiting.maintenance is Maintenance.DRAINING
    assert waiting.maintenance_message == (
        "new disk: 2 to go: a/1-x, a/2-y; a/3-z is pending: no room; they go at 2026-11-20 12:05:00 UTC in any case"
    )
    assert look_at_drain(waiting, ["a/1-x", "a/2-y"], "a/3-z is pending: no room") is waiting
    done = look_at_drain(waiting, [], "")
    assert (done.maintenance, done.maintenance_message) == (
        Maintenance.DRAINED,
        "new disk: nothing runs here any more",
    )


def test_long_lists_are_counted() -> None:
    host = look_at_drain(maintain(HOST, DRAIN), [f"a/{n}-x" for n in range(9)], "")
    assert host.maintenance_message.startswith("9 to go: a/0-x")
    assert host.maintenance_message.endswith("and 4 more")


@pytest.mark.parametrize("host", [HOST, maintain(HOST, CORDON)])
def test_host_that_does_not_drain_is_never_drained(host: Host) -> None:
    assert look_at_drain(host, [], "") is host


def test_lost_host_keeps_its_maintenance_and_comes_back_with_it() -> None:
    lost = lose(maintain(HOST, DRAIN), NOW)
    assert (lost.lost_at, lost.untold, lost.maintenance) == (NOW, True, Maintenance.DRAINING)
    back = come_back(lost)
    assert (back.state, back.lost_at, back.untold) == (HostState.READY, None, False)
    assert back.maintenance is Maintenance.DRAINING


def test_paused_replacement_says_how_many_and_how_to_approve() -> None:
    lost = lose(HOST.with_(message="heartbeat timeout"), NOW)
    paused = pause_replacement(lost, "3 of 10 hosts are unhealthy at once")
    for words in ("heartbeat timeout", "3 of 10", "probably ours", "holdfast approve-replacement h1"):
        assert words in paused.summary
    assert pause_replacement(paused, "3 of 10 hosts are unhealthy at once") is paused
    assert told(paused).summary == "no sign of life; heartbeat timeout"
    assert "approve_replacement" in describe(paused)
