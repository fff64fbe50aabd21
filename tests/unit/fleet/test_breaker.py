"""When hosts fail together, the fault is probably ours: then nothing is replaced without a person."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fleet.policy.breaker import FleetHealth, HostHealth, examine
from fleet.states import HostState, Maintenance

SINCE = datetime(2026, 11, 20, 12, tzinfo=UTC)
RECENTLY, LONG_AGO = SINCE + timedelta(minutes=1), SINCE - timedelta(minutes=1)

READY = HostHealth(HostState.READY)
SUSPECT = HostHealth(HostState.SUSPECT)
LOST = HostHealth(HostState.LOST, lost_at=RECENTLY)
DEAD = HostHealth(HostState.LOST, lost_at=LONG_AGO)
NEVER_CAME = HostHealth(HostState.LOST)
WAITING = HostHealth(HostState.LOST, lost_at=LONG_AGO, replacement_paused=True)
SWITCHED_OFF = HostHealth(HostState.LOST, lost_at=RECENTLY, maintenance=Maintenance.DRAINED)

hosts = st.builds(
    HostHealth,
    state=st.sampled_from(HostState),
    lost_at=st.none() | st.sampled_from([RECENTLY, LONG_AGO]),
    replacement_paused=st.booleans(),
    maintenance=st.sampled_from(Maintenance),
)
fleets = st.lists(hosts, max_size=30)
shares = st.floats(min_value=0.01, max_value=1)


@pytest.mark.parametrize(
    ("fleet", "unhealthy", "total", "trips"),
    [
        ([LOST], 1, 1, False),
        ([LOST, READY], 1, 2, False),
        ([LOST, LOST], 2, 2, True),
        ([LOST, SUSPECT, READY, READY], 2, 4, True),
        ([LOST, SUSPECT, *[READY] * 8], 2, 10, False),
        ([LOST, SUSPECT, SUSPECT, *[READY] * 7], 3, 10, True),
        ([LOST, WAITING, *[READY] * 3], 2, 5, True),
        ([LOST, *[DEAD] * 9], 1, 1, False),
        ([LOST, LOST, *[READY] * 3, *[DEAD] * 95], 2, 5, True),
        ([LOST, *[SWITCHED_OFF] * 3, *[READY] * 3], 1, 4, False),
        ([LOST, NEVER_CAME, READY], 1, 2, False),
        ([], 0, 0, False),
    ],
)
def test_more_than_one_and_more_than_a_fifth_trip_it(
    fleet: list[HostHealth], unhealthy: int, total: int, trips: bool
) -> None:
    health = examine(fleet, SINCE)
    assert (health.unhealthy, health.total, health.trips(0.2)) == (unhealthy, total, trips)


@given(fleets)
def test_nobody_is_unhealthy_who_does_not_count(fleet: list[HostHealth]) -> None:
    health = examine(fleet, SINCE)
    assert 0 <= health.unhealthy <= health.total <= len(fleet)


@given(fleets, shares)
def test_a_host_that_is_well_again_never_trips_it(fleet: list[HostHealth], share: float) -> None:
    assume(fleet and not examine(fleet, SINCE).trips(share))
    assert not examine([READY, *fleet[1:]], SINCE).trips(share)


@given(fleets, shares, st.sampled_from([SUSPECT, LOST, WAITING]))
def test_a_host_that_falls_ill_never_clears_it(fleet: list[HostHealth], share: float, ill: HostHealth) -> None:
    assume(examine(fleet, SINCE).trips(share))
    for n, host in enumerate(fleet):
        if host.state is HostState.READY:
            assert examine([*fleet[:n], ill, *fleet[n + 1 :]], SINCE).trips(share)


@given(fleets, st.lists(st.sampled_from([DEAD, NEVER_CAME, SWITCHED_OFF, HostHealth(HostState.FORGOTTEN)])))
def test_hosts_that_are_long_gone_change_nothing(fleet: list[HostHealth], gone: list[HostHealth]) -> None:
    assert examine([*fleet, *gone], SINCE) == examine(fleet, SINCE)


@given(st.integers(1, 1000), shares)
def test_one_host_alone_may_always_die(total: int, share: float) -> None:
    assert not FleetHealth(unhealthy=1, total=total).trips(share)
