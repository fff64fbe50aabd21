"""What the ledger says of hosts that are lost or being emptied."""

from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.breaker import BreakerActivities
from activities.contracts import HostId, InstanceId, ReleaseRequest
from activities.fleet_state import FleetActivities
from activities.placement import PlacementActivities
from activities.preemption import RoomMaker
from activities.projections import ProjectionActivities
from activities.waiting import WaitingInstances
from fleet.access.sealing import master_sealer
from fleet.db import claims
from fleet.db.session import Database
from fleet.db.tables import HostRow, InstanceRow
from fleet.hosts import Host
from fleet.model_files import ModelFiles
from fleet.states import HostState, InstanceState, Maintenance
from tests.unit.db.ledger import add_host, claim, on

WINDOW = timedelta(minutes=5)


class FakeClient:
    """Notes who is signalled; answers with ``error`` if there is one."""

    def __init__(self, error: RPCError | None = None) -> None:
        self.told: list[tuple[str, str]] = []
        self._error = error

    def get_workflow_handle(self, workflow_id: str) -> "FakeClient":
        self._id = workflow_id
        return self

    async def signal(self, name: str) -> None:
        if self._error is not None:
            raise self._error
        self.told.append((self._id, name))


async def record(database: Database, host_id: str, **changes: object) -> None:
    host = Host(host_id=host_id, name=host_id, projection=1).with_(**changes)
    await ProjectionActivities(database).record_host(host)


def instance(database: Database, instance_id: str, state: InstanceState, message: str = "") -> None:
    deployment, _, _ = instance_id.rpartition("/")
    row = InstanceRow(
        id=instance_id, deployment=deployment, revision=1, launch=1, slot=1, state=state, message=message, projection=1
    )
    database.write(lambda s: s.add(row))


def fleet_state(database: Database, client: FakeClient) -> FleetActivities:
    real = cast(Client, client)
    return FleetActivities(database, real, WaitingInstances(database, real))


async def test_host_workflow_writes_how_its_host_is_kept(database: Database) -> None:
    add_host(database)
    now = datetime.now(UTC)
    await record(
        database,
        "h1",
        state=HostState.LOST,
        message="no sign of life",
        paused_because="3 of 10 are unhealthy",
        replacement_paused=True,
        lost_at=now,
        maintenance=Maintenance.DRAINING,
        maintenance_message="1 to go",
    )
    row = database.read(lambda s: s.get_one(HostRow, "h1"))
    assert (row.state, row.message) == ("lost", "no sign of life; 3 of 10 are unhealthy")
    assert (row.replacement_paused, row.lost_at) == (True, now)
    assert (row.maintenance, row.maintenance_message) == ("draining", "1 to go")


async def test_breaker_counts_what_hosts_have_recorded(database: Database) -> None:
    now = datetime.now(UTC)
    for n in range(1, 6):
        add_host(database, f"h{n}")
    breaker = BreakerActivities(database, share=0.2, window=WINDOW)
    await record(database, "h1", state=HostState.LOST, lost_at=now)
    assert (await breaker.may_replace(HostId(host_id="h1"))).allowed
    await record(database, "h2", state=HostState.SUSPECT)
    refused = await breaker.may_replace(HostId(host_id="h1"))
    assert (refused.allowed, refused.reason) == (False, "2 of 5 hosts are unhealthy at once")
    await record(database, "h2", state=HostState.READY, projection=2)
    await record(database, "h3", state=HostState.LOST, lost_at=now - 2 * WINDOW)
    assert (await breaker.may_replace(HostId(host_id="h1"))).allowed
    await record(database, "h4", state=HostState.LOST, lost_at=now - 2 * WINDOW, replacement_paused=True)
    assert not (await breaker.may_replace(HostId(host_id="h1"))).allowed


async def test_share_of_the_breaker_can_be_set(database: Database) -> None:
    now = datetime.now(UTC)
    for n in range(1, 5):
        add_host(database, f"h{n}")
    for host_id in ("h1", "h2"):
        await record(database, host_id, state=HostState.LOST, lost_at=now)
    for share, allowed in ((0.4, False), (0.5, True)):
        breaker = BreakerActivities(database, share=share, window=WINDOW)
        assert (await breaker.may_replace(HostId(host_id="h1"))).allowed is allowed


async def test_who_is_on_a_host_and_what_holds_their_replacements_up(database: Database) -> None:
    add_host(database, "h1")
    add_host(database, "h2")
    activities = fleet_state(database, FakeClient())
    for name in ("chat/1-a", "chat/2-b", "left/1-c"):
        claim(database, name, 1, on("h1", 10))
        instance(database, name, InstanceState.READY)
    database.write(lambda s: claims.give_up(s, "left/1-c", 1))
    here = await activities.instances_on_host(HostId(host_id="h1"))
    assert (here.instance_ids, here.obstacle) == (("chat/1-a", "chat/2-b"), "")
    instance(database, "other/1-d", InstanceState.FAILED, "not ours")
    instance(database, "chat/3-e", InstanceState.PENDING, "no room on h2")
    assert (await activities.instances_on_host(HostId(host_id="h1"))).obstacle == "chat/3-e is pending: no room on h2"
    instance(database, "chat/4-f", InstanceState.FAILED, "no such model")
    assert (await activities.instances_on_host(HostId(host_id="h1"))).obstacle == "chat/4-f is failed: no such model"
    assert (await activities.instances_on_host(HostId(host_id="h2"))).instance_ids == ()


@pytest.mark.parametrize("engine_gone", [True, False])
async def test_host_in_maintenance_hears_of_claims_that_are_given_back(database: Database, engine_gone: bool) -> None:
    add_host(database, "h1")
    add_host(database, "h2")
    for host_id in ("h1", "h2"):
        claim(database, f"chat/1-{host_id}", 1, on(host_id, 10))
    await record(database, "h1", maintenance=Maintenance.DRAINING)
    fake = FakeClient()
    client = cast(Client, fake)
    waiting = WaitingInstances(database, client)
    room = RoomMaker(database, client, drain=timedelta(seconds=1))
    placement = PlacementActivities(database, cast(ModelFiles, None), master_sealer("x"), waiting, room)
    for host_id in ("h2", "h1"):
        request = ReleaseRequest(instance_id=f"chat/1-{host_id}", fence=1, engine_gone=engine_gone)
        await placement.release_claim(request)
    assert fake.told == [("host/h1", "claims_changed")]


async def test_host_in_maintenance_hears_of_what_is_cleaned_up(database: Database) -> None:
    add_host(database)
    claim(database, "chat/1-a", 1, on("h1", 10))
    await record(database, "h1", maintenance=Maintenance.DRAINING)
    fake = FakeClient()
    await fleet_state(database, fake).clean_up_instance(InstanceId(instance_id="chat/1-a"))
    assert fake.told == [("host/h1", "claims_changed")]


async def test_host_whose_workflow_has_ended_needs_not_hear(database: Database) -> None:
    gone = cast(Client, FakeClient(RPCError("gone", RPCStatusCode.NOT_FOUND, b"")))
    await WaitingInstances(database, gone).tell_hosts(["h1"])
    away = cast(Client, FakeClient(RPCError("away", RPCStatusCode.UNAVAILABLE, b"")))
    with pytest.raises(RPCError, match="away"):
        await WaitingInstances(database, away).tell_hosts(["h1"])
