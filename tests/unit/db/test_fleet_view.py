"""The fleet as placement sees it, and what is kept of it between looks."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlmodel import Session, delete

from fleet.db import claims
from fleet.db.fleet_reader import FleetReader
from fleet.db.fleet_view import read_fleet
from fleet.db.host_facts import KnownHosts
from fleet.db.hosts import ready_hosts
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, DeploymentRow, GpuRow, HostRow, InstanceRow
from fleet.inventory import Inventory
from fleet.placement.request import Member, Placement
from fleet.placement.view import HostView
from fleet.states import HostState, InstanceState
from tests.machines import GPU_BYTES, RAM_BYTES, GiB, add_claims, add_machines

HOSTS = 3
GANG = Placement(
    host_id="h0000",
    gpu_uuids=("h0000-g7", "h0000-g6"),
    memory_bytes=GiB,
    ram_bytes=2 * GiB,
    ports=(20000, 20001),
    followers=(Member(host_id="h0001", gpu_uuids=("h0001-g7", "h0001-g6"), ports=(20000,)),),
)


@pytest.fixture
def fleet(database: Database) -> Database:
    """Three hosts with eight cards each, and six ready replicas on the first two cards of each."""
    database.write(partial(add_machines, hosts=HOSTS))
    database.write(partial(add_claims, hosts=HOSTS, claims=2 * HOSTS))
    return database


def look(database: Database, deployment: str = "") -> dict[str, HostView]:
    return {view.host_id: view for view in database.read(lambda s: read_fleet(s, deployment))}


def change(database: Database, table: type[Any], key: Any, **values: Any) -> None:
    def write(session: Session) -> None:
        session.add(session.get_one(table, key).sqlmodel_update(values))

    database.write(write)


def take_gang(database: Database, instance_id: str = "big/0-a") -> None:
    generations = {"h0000": 1, "h0001": 1}
    database.write(lambda s: claims.claim(s, instance_id, 1, GANG, generations, priority=2))


def test_hosts_are_seen_with_all_that_placement_asks_for(fleet: Database) -> None:
    view = look(fleet)["h0001"]
    assert (view.name, view.generation, view.labels) == ("h0001", 1, {"rack": "r0"})
    assert (view.ram_free_bytes, view.ram_total_bytes) == (RAM_BYTES, RAM_BYTES)
    assert (view.ports_free, view.fabric_address, view.runtimes) == (2000, "10.0.0.2", ("process",))
    assert [e.engine for e in view.engines] == ["vllm"]
    assert [g.free_bytes for g in view.gpus] == [GPU_BYTES - 16 * GiB] * 2 + [GPU_BYTES] * 6
    card = view.gpus[5]
    assert (card.uuid, card.name, card.compute_capability) == ("h0001-g5", "NVIDIA H100 80GB HBM3", "9.0")
    assert (card.index, card.numa_node, card.unified, card.part, card.total_bytes) == (5, 1, False, False, GPU_BYTES)
    assert set(card.links) == {(f"h0001-g{n}", 5) for n in range(8) if n != 5}


def test_occupants_are_those_that_hold_claims(fleet: Database) -> None:
    first, second = look(fleet)["h0001"].occupants
    assert (first.instance_id, first.deployment, first.fence, first.hosts) == ("d1/1-a", "d1", 1, 1)
    assert (first.gpu_bytes, first.ram_bytes, first.priority) == ((("h0001-g0", 16 * GiB),), 0, 1)
    assert (first.ready, first.leaving) == (True, False)
    assert first.since is not None
    assert first.since.tzinfo is not None
    assert second.instance_id == "d4/4-a"
    assert look(fleet)["h0001"].deployment_labels == {"d1": {"team": "d1"}, "d4": {"team": "d4"}}


def test_a_gang_is_an_occupant_of_each_of_its_hosts(fleet: Database) -> None:
    take_gang(fleet)
    views = look(fleet, "big")
    assert [views[h].replicas_of_deployment for h in sorted(views)] == [1, 1, 0]
    assert [views[h].ports_free for h in sorted(views)] == [1998, 1999, 2000]
    for host_id in ("h0000", "h0001"):
        [big] = [o for o in views[host_id].occupants if o.deployment == "big"]
        assert (big.hosts, big.ram_bytes, big.priority, big.ready) == (2, 2 * GiB, 2, False)
        assert big.gpu_bytes == ((f"{host_id}-g6", GiB), (f"{host_id}-g7", GiB))
        assert views[host_id].ram_free_bytes == RAM_BYTES - 2 * GiB


@pytest.mark.parametrize(
    ("values", "ready", "leaving"),
    [
        ({"state": InstanceState.STARTING}, False, False),
        ({"state": InstanceState.DRAINING}, False, True),
        ({"fence": 2}, False, False),
    ],
)
def test_whether_an_occupant_is_ready_or_leaves_is_what_its_instance_says(
    fleet: Database, values: dict[str, Any], ready: bool, leaving: bool
) -> None:
    change(fleet, InstanceRow, "d0/0-a", **values)
    occupant = look(fleet)["h0000"].occupants[0]
    assert (occupant.ready, occupant.leaving) == (ready, leaving)


def test_what_was_given_up_leaves_and_is_no_replica(fleet: Database) -> None:
    fleet.write(lambda s: claims.give_up(s, "d0/0-a", 1))
    view = look(fleet, "d0")["h0000"]
    assert (view.occupants[0].leaving, view.occupants[0].ready, view.replicas_of_deployment) == (True, False, 0)


@pytest.mark.parametrize("values", [{"state": HostState.SUSPECT}, {"maintenance": "cordoned"}])
def test_hosts_that_take_no_work_are_not_seen(fleet: Database, values: dict[str, Any]) -> None:
    change(fleet, HostRow, "h0001", **values)
    assert sorted(look(fleet)) == ["h0000", "h0002"]


@pytest.mark.parametrize("values", [{"healthy": False}, {"cordoned": True}, {"generation": 0}, {"memory_bytes": 0}])
def test_cards_that_take_no_claims_are_not_seen(fleet: Database, values: dict[str, Any]) -> None:
    change(fleet, GpuRow, "h0001-g3", **values)
    view = look(fleet)["h0001"]
    assert [g.index for g in view.gpus] == [0, 1, 2, 4, 5, 6, 7]
    assert view.cordoned_gpus == ((("h0001-g3", ""),) if "cordoned" in values else ())


def test_it_sees_what_a_plain_reading_of_all_rows_sees(fleet: Database) -> None:
    take_gang(fleet)
    plain = {h.view.host_id: h.view for h in fleet.read(lambda s: ready_hosts(s, "d1"))}
    for host_id, view in look(fleet, "d1").items():
        for name in ("name", "generation", "labels", "ram_free_bytes", "engines", "replicas_of_deployment", "runtimes"):
            assert getattr(view, name) == getattr(plain[host_id], name), name
        assert [(g.uuid, g.free_bytes) for g in view.gpus] == [(g.uuid, g.free_bytes) for g in plain[host_id].gpus]


def test_inventories_are_read_once_for_each_state_of_them(fleet: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[str] = []
    validate = Inventory.model_validate
    monkeypatch.setattr(Inventory, "model_validate", lambda told: validated.append(told["hostname"]) or validate(told))
    known = KnownHosts()
    for _ in range(3):
        fleet.read(lambda s: read_fleet(s, known=known))
    assert validated == ["h0000", "h0001", "h0002"]
    change(fleet, HostRow, "h0001", fingerprint="another", labels={"rack": "new"})
    views = fleet.read(lambda s: read_fleet(s, known=known))
    assert validated[3:] == ["h0001"]
    assert views[1].labels == {"rack": "new"}


# -- what is kept between looks ------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_look_is_renewed_when_it_is_too_old(fleet: Database) -> None:
    clock = Clock()
    reader = FleetReader(fleet, clock=clock)
    first = await reader.look()
    take_gang(fleet)
    clock.now = 0.2
    assert await reader.look() == first
    assert reader.changes(first).hosts == ()
    clock.now = 0.3
    second = await reader.look()
    assert sorted(h.host_id for h in reader.changes(first).hosts) == ["h0000", "h0001"]
    assert reader.changes(second).hosts == ()
    assert reader.hosts("big") == list(look(fleet, "big").values())


async def test_nothing_has_changed_when_nothing_has(fleet: Database) -> None:
    reader = FleetReader(fleet)
    first = await reader.look()
    assert len(reader.changes().hosts) == HOSTS
    await reader.look(0)
    assert reader.changes(first).hosts == ()


@pytest.mark.parametrize(
    ("table", "key", "values"),
    [
        (HostRow, "h0001", {"ram_used": 5}),
        (HostRow, "h0001", {"generation": 2}),
        (HostRow, "h0001", {"fingerprint": "x", "labels": {"a": "b"}}),
        (GpuRow, "h0001-g2", {"used": 5}),
        (GpuRow, "h0001-g2", {"foreign_bytes": 5}),
        (GpuRow, "h0001-g2", {"healthy": False}),
        (GpuRow, "h0001-g2", {"cordoned": True, "cordon_reason": "ECC"}),
        (InstanceRow, "d1/1-a", {"state": InstanceState.DRAINING}),
        (ClaimRow, ("d1/1-a", 1, "h0001-g0", "h0001"), {"state": "releasing"}),
        (ClaimRow, ("d1/1-a", 1, "h0001-g0", "h0001"), {"priority": 3}),
        (DeploymentRow, "d1", {"labels": {"team": "other"}}),
    ],
)
async def test_whatever_changes_is_a_change_of_its_host_alone(
    fleet: Database, table: type[Any], key: Any, values: dict[str, Any]
) -> None:
    reader = FleetReader(fleet)
    first = await reader.look()
    change(fleet, table, key, **values)
    await reader.look(0)
    [changed] = reader.changes(first).hosts
    assert changed == look(fleet)["h0001"]


async def test_hosts_come_and_go(fleet: Database) -> None:
    reader = FleetReader(fleet)
    first = await reader.look()
    change(fleet, HostRow, "h0001", state=HostState.SUSPECT)
    second = await reader.look(0)
    assert reader.changes(first) == type(reader.changes())(second, (), ("h0001",))
    assert reader.host("h0001") is None
    assert reader.address_of("h0001") is None
    change(fleet, HostRow, "h0001", state=HostState.READY)
    await reader.look(0)
    back = reader.changes(second)
    assert ([h.host_id for h in back.hosts], back.gone) == (["h0001"], ())


async def test_after_a_lost_claim_only_its_hosts_are_read(fleet: Database) -> None:
    reader = FleetReader(fleet)
    first = await reader.look()
    take_gang(fleet)
    await reader.refresh(["h0001", "unknown"])
    assert [h.host_id for h in reader.changes(first).hosts] == ["h0001"]
    assert reader.host("h0001") == look(fleet)["h0001"]
    change(fleet, HostRow, "h0001", state=HostState.LOST)
    await reader.refresh(["h0001"])
    assert reader.changes(first).gone == ("h0001",)
    await reader.refresh([])
    assert reader.host("h0000") == look(fleet)["h0000"]


async def test_own_claims_are_counted_before_the_database_is_asked(fleet: Database) -> None:
    reader = FleetReader(fleet)
    first = await reader.look()
    take_gang(fleet)
    for _ in range(2):
        reader.claimed("big/0-a", 1, GANG, priority=2)
    ahead = {view.host_id: view for view in reader.hosts("big")}
    assert ahead == look(fleet, "big")
    assert {h.host_id for h in reader.changes(first).hosts} == {"h0000", "h0001"}
    await reader.look(0)
    assert reader.hosts("big") == list(look(fleet, "big").values())


async def test_own_claim_that_is_gone_again_is_not_counted_for_long(fleet: Database) -> None:
    reader = FleetReader(fleet)
    await reader.look()
    reader.claimed("big/0-a", 1, GANG)
    await reader.look(0)
    assert reader.hosts() == list(look(fleet).values())


async def test_a_claim_made_while_the_fleet_is_read_is_not_forgotten(
    fleet: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = FleetReader(fleet)
    await reader.look()
    read, has_read, go_on = fleet.aread, asyncio.Event(), asyncio.Event()

    async def slow(query: Callable[[Session], Any]) -> Any:
        answer = await read(query)
        has_read.set()
        await go_on.wait()
        return answer

    monkeypatch.setattr(fleet, "aread", slow)
    looking = asyncio.create_task(reader.look(0))
    await has_read.wait()
    take_gang(fleet)
    reader.claimed("big/0-a", 1, GANG, priority=2)
    go_on.set()
    await looking
    assert reader.hosts("big") == list(look(fleet, "big").values())


async def test_many_who_look_at_once_read_once(fleet: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, reads, read = FleetReader(fleet), [0], fleet.aread

    async def counted(query: Callable[[Session], Any]) -> Any:
        reads[0] += 1
        return await read(query)

    monkeypatch.setattr(fleet, "aread", counted)
    await asyncio.gather(*(reader.look() for _ in range(20)))
    assert reads == [1]


async def test_an_empty_fleet_is_seen_as_empty(database: Database) -> None:
    reader = FleetReader(database)
    await reader.look()
    assert reader.hosts() == []
    database.write(partial(add_machines, hosts=1))
    await reader.look(0)
    assert len(reader.hosts()) == 1
    database.write(lambda s: s.execute(delete(HostRow)))
    await reader.look(0)
    assert reader.hosts() == []
