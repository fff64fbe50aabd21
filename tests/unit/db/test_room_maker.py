"""Making room, whatever is lost in between: on the database, with the signals of deployments noted."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sqlmodel import select
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.preemption import RoomMaker
from fleet.db import claims, nominations, projections
from fleet.db.fleet_view import read_fleet
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, EvictionRow, HostRow, InstanceRow, NominationRow
from fleet.deployments import InstancesLeave
from fleet.engines.spec import EngineSpec
from fleet.inventory import EngineBuild, Inventory
from fleet.placement.needs import Need, Needs
from fleet.placement.request import Placement, PlacementRequest, Unplaceable
from fleet.placement.view import HostView
from fleet.policy.nominated import visible
from fleet.policy.trial import best_place
from fleet.states import HostState, InstanceState

RAM = 100
REFUSAL = Unplaceable(reasons=("a: needs 60 of RAM",))
NEEDS = Needs(cpu=(Need(ram_bytes=60),))
BUILD = EngineBuild(engine="llama_cpp", version="1")


class Handle:
    def __init__(self, client: "FakeClient", workflow_id: str) -> None:
        self._client, self._id = client, workflow_id

    async def signal(self, name: str, leave: InstancesLeave) -> None:
        if self._client.killed:
            raise ConnectionError("the controller was killed here")
        if self._client.gone:
            raise RPCError("gone", RPCStatusCode.NOT_FOUND, b"")
        self._client.told.append((self._id, name, leave))


class FakeClient:
    """Remembers who was told what."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, InstancesLeave]] = []
        self.killed = False
        self.gone = False

    def get_workflow_handle(self, workflow_id: str) -> Handle:
        return Handle(self, workflow_id)


class Scene:
    """One host of 100 bytes of RAM, on which ``low/1`` holds 80, and ``high/1``, which needs 60."""

    def __init__(self, database: Database) -> None:
        self.database, self.client = database, FakeClient()
        self.room = RoomMaker(database, cast(Client, self.client), drain=timedelta(seconds=30))
        inventory = Inventory(
            hostname="a",
            machine_id="m",
            boot_id="b",
            os="Linux",
            arch="x86_64",
            cpu_count=1,
            ram_bytes=RAM,
            ram_allocatable_bytes=RAM,
            disk_bytes=1,
            disk_free_bytes=1,
            engines=(BUILD,),
        )
        row = HostRow(
            id="h1",
            name="a",
            state=HostState.READY,
            credential_hash="h1",
            generation=1,
            ram_allocatable=RAM,
            inventory=inventory.model_dump(mode="json"),
        )
        database.write(lambda s: s.add(row))
        self.deploy("low", "low", ready=("low/1",))
        self.deploy("high", "high")
        self.claim("low/1", 80)

    def deploy(self, name: str, level: str, ready: Sequence[str] = (), **priority: Any) -> None:
        spec = {"model": {"path": "m.gguf"}, "priority": {"level": level, "floor": 0} | priority}
        made = datetime.now(UTC)
        row = DeploymentRow(
            name=name,
            spec=spec,
            engine="llama_cpp",
            engine_version="1",
            generation=1,
            revision=1,
            launch=1,
            phase="ready",
            desired_replicas=1,
            ready_replicas=len(ready),
            projection=1,
            created_at=made,
        )
        self.database.write(lambda s: s.merge(row))
        for instance_id in ready:
            instance = InstanceRow(
                id=instance_id,
                deployment=name,
                revision=1,
                launch=1,
                slot=1,
                fence=1,
                state=InstanceState.READY,
                projection=1,
            )
            self.database.write(lambda s, i=instance: s.merge(i))  # type: ignore[misc]

    def claim(self, instance_id: str, size: int) -> None:
        placement = Placement(host_id="h1", memory_bytes=size)
        self.database.write(lambda s: claims.claim(s, instance_id, 1, placement, {"h1": 1}))

    async def hosts(self, instance_id: str = "high/1") -> list[HostView]:
        asked = await self.room.with_priority(request(instance_id))
        kept = await self.room.kept_for_others(asked)
        return visible(self.database.read(lambda s: read_fleet(s, asked.deployment)), kept)

    async def ask(self, instance_id: str = "high/1", fence: int = 1) -> str:
        """As placement does when it has found no room."""
        asked = await self.room.with_priority(request(instance_id, fence))
        answer = await self.room.make_room(asked, NEEDS, await self.hosts(instance_id), REFUSAL)
        return answer.message

    def rows(self) -> tuple[int, int]:
        """(Nominations, evictions)."""
        return self.database.read(
            lambda s: (len(s.exec(select(NominationRow)).all()), len(s.exec(select(EvictionRow)).all()))
        )


def request(instance_id: str = "high/1", fence: int = 1) -> PlacementRequest:
    name = instance_id.partition("/")[0]
    spec = EngineSpec(engine="llama_cpp", engine_version="1", model_path="m.gguf", served_name=name)
    return PlacementRequest(instance_id=instance_id, deployment=name, fence=fence, spec=spec)


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


WAITS = "waits for low/1 (priority low) on host a to drain"


async def test_the_victim_is_told_when_to_go_and_why(scene: Scene) -> None:
    before = datetime.now(UTC)
    assert await scene.ask() == WAITS
    [(workflow, signal, leave)] = scene.client.told
    assert (workflow, signal, leave.instance_ids) == ("deployment/low", "instances_leave", ("low/1",))
    assert leave.reason == "gives way to high/1 (priority high)"
    assert leave.by is not None
    assert before <= leave.by <= datetime.now(UTC)


async def test_asked_again_it_says_the_same_and_asks_for_the_same(scene: Scene) -> None:
    assert [await scene.ask(fence=1), await scene.ask(fence=2)] == [WAITS, WAITS]
    [first, second] = scene.client.told
    assert first == second, "a level: the deployment hears nothing new"
    assert scene.rows() == (1, 1)


async def test_a_controller_killed_before_it_told_anybody_makes_up_for_it_when_asked_again(scene: Scene) -> None:
    scene.client.killed = True
    with pytest.raises(ConnectionError):
        await scene.ask()
    assert scene.rows() == (1, 1), "the room is kept already"
    scene.client.killed = False
    assert await scene.ask() == WAITS
    [(_, _, leave)] = scene.client.told
    assert leave.instance_ids == ("low/1",)


async def test_a_victim_that_dies_meanwhile_leaves_its_room_to_the_nominee_alone(scene: Scene) -> None:
    await scene.ask()
    scene.database.write(lambda s: (claims.release(s, "low/1", 1), projections.forget_instance(s, "low/1")))
    scene.deploy("equal", "high")
    [seen] = await scene.hosts("equal/1")
    assert seen.ram_free_bytes == RAM - 60
    [own] = await scene.hosts("high/1")
    assert own.ram_free_bytes == RAM
    fleet = await scene.hosts("high/1")
    assert fleet[0].occupants == ()


async def test_what_went_to_somebody_more_important_is_looked_for_anew(scene: Scene) -> None:
    await scene.ask()
    scene.database.write(lambda s: claims.release(s, "low/1", 1))
    scene.deploy("vital", "critical", ready=("vital/1",))
    scene.claim("vital/1", 90)
    assert await scene.ask(fence=2) == REFUSAL.message
    scene.deploy("vital", "low", ready=("vital/1",))
    assert await scene.ask(fence=3) == "waits for vital/1 (priority low) on host a to drain"


async def test_a_host_that_is_lost_meanwhile_keeps_nobody_waiting(scene: Scene) -> None:
    await scene.ask()
    scene.client.told.clear()
    answer = await scene.room.make_room(request(), NEEDS, [], REFUSAL)
    assert answer == REFUSAL
    assert scene.client.told == []


async def test_a_deployment_that_is_gone_is_no_error(scene: Scene) -> None:
    scene.client.gone = True
    assert await scene.ask() == WAITS


async def test_who_does_not_preempt_waits_in_line(scene: Scene) -> None:
    scene.deploy("high", "high", preempts=False)
    assert await scene.ask() == REFUSAL.message
    assert scene.rows() == (0, 0)


async def test_a_surge_replica_of_a_rollout_takes_nothing(scene: Scene) -> None:
    scene.deploy("high", "high", ready=("high/0",))
    scene.claim("high/0", 10)
    assert await scene.ask() == REFUSAL.message


async def test_a_floor_is_named_as_the_reason(scene: Scene) -> None:
    scene.deploy("low", "low", ready=("low/1",), floor=1)
    why = "none of lower priority gives way: low keeps 1 ready (its floor)"
    assert await scene.ask() == f"{REFUSAL.message}; {why}"


async def test_a_change_of_priority_holds_at_once(scene: Scene) -> None:
    scene.deploy("low", "high", ready=("low/1",))
    assert await scene.ask() == REFUSAL.message
    scene.deploy("high", "critical")
    assert await scene.ask() == "waits for low/1 (priority high) on host a to drain"


async def test_others_are_moved_where_nobody_gives_way(database: Database) -> None:
    scene = Scene(database)
    scene.deploy("high", "low")
    asked: list[str] = []

    async def consider(wanted: PlacementRequest, _needs: Needs, _hosts: Sequence[HostView]) -> bool:
        asked.append(wanted.instance_id)
        return True

    scene.room = RoomMaker(database, cast(Client, scene.client), drain=timedelta(seconds=1), consider=consider)
    assert "others are being moved for it" in await scene.ask()
    assert asked == ["high/1"]


async def test_placed_at_last_it_keeps_nothing_back(scene: Scene) -> None:
    await scene.ask()
    scene.database.write(lambda s: claims.release(s, "low/1", 1))
    decision = best_place(request(), NEEDS, _fleet(await scene.hosts()))
    assert decision is not None
    scene.claim("high/1", 60)
    scene.database.write(lambda s: nominations.placed(s, "high/1", "high", decision.hosts))
    assert scene.rows() == (0, 0)


def _fleet(hosts: list[HostView]) -> Any:
    from fleet.placement.fleet import Fleet

    return Fleet.of(hosts)
