"""A host's proof of life."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.hosts import HostLease
from tests.unit.host.fake_temporal import DOWN, GONE, WANTED, FakeTemporal, not_wanted
from tests.unit.host.waiting import beats_pass, eventually
from worker_host.lease import LeaseKeeper
from worker_host.records import Records

FIRST, SECOND = b"first", b"second"
LEASE = HostLease(host_id="h", registration=1)


@pytest.fixture
def temporal() -> FakeTemporal:
    return FakeTemporal()


@pytest.fixture
async def keeper(temporal: FakeTemporal, tmp_path: Path, quick: None) -> AsyncIterator[LeaseKeeper]:
    made = LeaseKeeper(temporal.client, Records(tmp_path))
    yield made
    await made.aclose()


async def test_host_begins_without_a_lease(keeper: LeaseKeeper) -> None:
    keeper.resume()
    assert keeper.missing.is_set()


async def test_lease_is_on_disk_and_beats(keeper: LeaseKeeper, temporal: FakeTemporal, tmp_path: Path) -> None:
    await keeper.take(LEASE, FIRST)
    assert not keeper.missing.is_set()
    kept = Records(tmp_path).lease()
    assert kept is not None
    assert kept.lease == LEASE
    await beats_pass(lambda: temporal.beaten(FIRST))


async def test_lease_that_temporal_does_not_know_is_given_up(
    keeper: LeaseKeeper, temporal: FakeTemporal, tmp_path: Path
) -> None:
    await keeper.take(LEASE, FIRST)
    temporal.answers[FIRST] = GONE
    await asyncio.wait_for(keeper.missing.wait(), 5)
    assert Records(tmp_path).lease() is None
    assert temporal.cancellations == []


async def test_lease_that_is_taken_away_is_given_back(
    keeper: LeaseKeeper, temporal: FakeTemporal, tmp_path: Path
) -> None:
    await keeper.take(LEASE, FIRST)
    temporal.answers[FIRST] = WANTED
    await asyncio.wait_for(keeper.missing.wait(), 5)
    assert temporal.cancellations == [FIRST]
    assert Records(tmp_path).lease() is None


@pytest.mark.parametrize("answer", [DOWN, not_wanted("paused")])
async def test_lease_is_held_on_to_while_nobody_takes_it_away(
    keeper: LeaseKeeper, temporal: FakeTemporal, tmp_path: Path, answer: Exception
) -> None:
    temporal.answers[FIRST] = answer
    await keeper.take(LEASE, FIRST)
    await beats_pass(lambda: temporal.beaten(FIRST))
    assert not keeper.missing.is_set()
    assert Records(tmp_path).lease() is not None


async def test_next_process_goes_on_with_the_lease(keeper: LeaseKeeper, temporal: FakeTemporal, tmp_path: Path) -> None:
    await keeper.take(LEASE, FIRST)
    await keeper.aclose()
    assert Records(tmp_path).lease() is not None, "the process ends, the host does not"
    following = LeaseKeeper(temporal.client, Records(tmp_path))
    following.resume()
    assert not following.missing.is_set()
    await beats_pass(lambda: temporal.beaten(FIRST))
    await following.aclose()


async def test_new_lease_replaces_the_old_one(keeper: LeaseKeeper, temporal: FakeTemporal, tmp_path: Path) -> None:
    await keeper.take(LEASE, FIRST)
    await beats_pass(lambda: temporal.beaten(FIRST))
    await keeper.take(HostLease(host_id="h", registration=2), SECOND)
    before = temporal.beaten(FIRST)
    await beats_pass(lambda: temporal.beaten(SECOND))
    assert temporal.beaten(FIRST) == before
    temporal.answers[FIRST] = GONE
    kept = Records(tmp_path).lease()
    assert kept is not None
    assert kept.lease.registration == 2


async def test_host_that_lost_its_lease_can_take_a_new_one(keeper: LeaseKeeper, temporal: FakeTemporal) -> None:
    temporal.answers[FIRST] = GONE
    await keeper.take(LEASE, FIRST)
    await asyncio.wait_for(keeper.missing.wait(), 5)
    await keeper.take(LEASE, SECOND)
    await eventually(lambda: temporal.beaten(SECOND))
    assert not keeper.missing.is_set()


async def test_lease_of_an_earlier_boot_is_not_taken_up(
    keeper: LeaseKeeper, temporal: FakeTemporal, tmp_path: Path
) -> None:
    records = Records(tmp_path)
    records.begin_boot("first boot")
    await keeper.take(LEASE, FIRST)
    await keeper.aclose()
    records.begin_boot("first boot")
    assert records.lease() is not None, "the same boot: only the process is another one"
    records.begin_boot("second boot")
    following = LeaseKeeper(temporal.client, Records(tmp_path))
    following.resume()
    assert following.missing.is_set()


async def test_lease_is_held_on_to_before_there_was_a_connection(keeper: LeaseKeeper, temporal: FakeTemporal) -> None:
    temporal.answers[FIRST] = RuntimeError("Failed client connect")
    await keeper.take(LEASE, FIRST)
    await beats_pass(lambda: temporal.beaten(FIRST))
    assert not keeper.missing.is_set()
