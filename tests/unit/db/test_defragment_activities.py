"""What a defragmentation asks of the database: who waits, what moves, what is kept, and what is let go again."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from temporalio.client import Client

from activities.contracts import DefragmentQuestion, MoveEnd, MoveQuestion, MoveStart
from activities.defragment import DefragmentActivities, DefragmentationStarter
from activities.waiting import WaitingInstances
from fleet.db import claims, defragmentations, nominations
from fleet.db.session import Database
from fleet.db.tables import HostRow, InstanceRow
from fleet.defragmentations import Defragmentation
from fleet.deployments import InstancesLeave
from fleet.engines.spec import EngineSpec
from fleet.instances import Instance
from fleet.placement.decision import Decision
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Need, Needs
from fleet.placement.request import Placement, PlacementRequest
from fleet.placement.view import HostView
from fleet.policy.trial import best_place
from fleet.states import InstanceState
from fleet.timings import Timings
from tests.unit.db.test_room_maker import Scene, request

SIZES = {"low": 40, "mid": 50, "big": 90}
SOON = datetime.now(UTC) + timedelta(minutes=30)


@dataclass
class Asked:
    request: PlacementRequest
    needs: Needs
    hosts: list[HostView]

    def best(self, request: PlacementRequest, needs: Needs, fleet: Fleet) -> Decision | None:
        return best_place(request, needs, fleet)


class Pieces(Scene):
    """Two hosts of 100 bytes: ``low/1`` holds 40 of h1 and ``mid/1`` 50 of h2; ``big/1`` waits for 90."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        database.write(lambda s: claims.release(s, "low/1", 1))
        first = database.read(lambda s: s.get_one(HostRow, "h1").model_dump())
        database.write(lambda s: s.add(HostRow(**first | {"id": "h2", "name": "b", "credential_hash": "h2"})))
        for name, level in (("low", "low"), ("mid", "normal"), ("big", "normal")):
            self.deploy(name, level)
        self.put("low", InstanceState.READY, host_id="h1")
        self.put("mid", InstanceState.READY, host_id="h2")
        self.put("big", InstanceState.PENDING)
        self.waiting = WaitingInstances(database, cast(Client, self.client))
        self.activities = DefragmentActivities(database, self.question, self.room, self.waiting)

    def put(self, name: str, state: InstanceState, host_id: str = "") -> None:
        spec = EngineSpec(engine="llama_cpp", engine_version="1", model_path="m.gguf", served_name=name)
        instance = Instance(
            instance_id=f"{name}/1", deployment=name, slot=1, revision=1, launch=1, spec=spec, fence=1, state=state
        ).with_(unplaceable=not host_id)
        row = InstanceRow(
            id=f"{name}/1",
            deployment=name,
            revision=1,
            launch=1,
            slot=1,
            fence=1,
            state=state,
            projection=1,
            durable=instance.model_dump(mode="json"),
        )
        self.database.write(lambda s: s.merge(row))
        if host_id:
            placement = Placement(host_id=host_id, memory_bytes=SIZES[name])
            self.database.write(lambda s: claims.claim(s, f"{name}/1", 1, placement, {host_id: 1}))

    async def question(self, asked: PlacementRequest) -> Asked:
        needs = Needs(cpu=(Need(ram_bytes=SIZES[asked.deployment]),))
        return Asked(await self.room.with_priority(asked), needs, await self.hosts(asked.instance_id))

    async def plan(self, **more: Any) -> Any:
        return await self.activities.plan_defragmentation(DefragmentQuestion(deployment="big", **more))

    async def begin(self) -> MoveStart:
        plan = await self.plan()
        start = MoveStart(waiting=plan.waiting, move=plan.moves[0], until=SOON)
        assert await self.activities.begin_move(start)
        return start

    async def free(self, instance_id: str) -> dict[str, int]:
        return {h.host_id: h.ram_free_bytes for h in await self.hosts(instance_id)}


@pytest.fixture
def scene(database: Database) -> Pieces:
    return Pieces(database)


async def test_the_smallest_is_moved_and_both_sides_are_kept(scene: Pieces) -> None:
    plan = await scene.plan()
    [move] = plan.moves
    assert (move.instance_id, move.from_host, move.from_name, move.bytes) == ("low/1", "h1", "a", 40)
    assert ([s.host_id for s in move.to], [s.host_id for s in plan.waiting.room]) == (["h2"], ["h1"])
    start = MoveStart(waiting=plan.waiting, move=move, until=SOON)
    assert [await scene.activities.begin_move(start), await scene.activities.begin_move(start)] == [True, True]
    [first, second] = scene.client.told
    assert first == second == ("deployment/low", "instances_leave", first[2])
    assert first[2] == InstancesLeave(instance_ids=("low/1",), reason="is moved so that big/1 finds room")
    scene.deploy("other", "normal")
    assert await scene.free("other/1") == {"h1": 10, "h2": 10}, "of 60 and 50 that are free, 50 and 40 are kept"
    assert await scene.free("low/2") == {"h1": 10, "h2": 50}
    asked = await scene.room.with_priority(request("low/2"))
    assert (await scene.room.kept_for_others(asked)).bound_for == ("h2",)
    assert await scene.ask("big/1") == "waits for low/1 (priority low) on host a to be moved"


async def test_it_is_seen_when_it_is_through(scene: Pieces) -> None:
    start = await scene.begin()
    question = MoveQuestion(waiting="big/1", moves=(start.move,))
    seen = await scene.activities.look_at_moves(question)
    assert (seen.waits, seen.left) == (True, ("low/1",))
    scene.database.write(lambda s: claims.release(s, "low/1", 1))
    assert (await scene.activities.look_at_moves(question)).left == ()
    scene.database.write(lambda s: claims.claim(s, "big/1", 2, Placement(host_id="h1", memory_bytes=90), {"h1": 1}))
    assert not (await scene.activities.look_at_moves(question)).waits, "its row is behind its claim"
    assert (await scene.plan()).waiting is None


async def test_called_off_it_stays_and_nothing_is_kept(scene: Pieces) -> None:
    start = await scene.begin()
    await scene.activities.end_moves(MoveEnd(waiting="big/1", moves=(start.move,)))
    assert scene.client.told[-1][2] == InstancesLeave(
        instance_ids=("low/1",), reason="is moved so that big/1 finds room", stay=True
    )
    await scene.activities.end_moves(MoveEnd(waiting="big/1"))
    assert scene.rows() == (0, 0)
    plan = await scene.plan(stay=("low/1",))
    assert [m.instance_id for m in plan.moves] == ["mid/1"]
    assert (await scene.plan(stay=("low/1", "mid/1"))).obstacle


async def test_one_that_has_moved_on_is_left_alone(scene: Pieces) -> None:
    plan = await scene.plan()
    scene.database.write(lambda s: claims.release(s, "low/1", 1))
    start = MoveStart(waiting=plan.waiting, move=plan.moves[0], until=SOON)
    assert not await scene.activities.begin_move(start)
    assert (scene.client.told, scene.rows()) == ([], (0, 0))


async def test_a_move_does_not_outlast_its_deadline(scene: Pieces) -> None:
    start = await scene.begin()
    after = start.until + timedelta(seconds=1)
    assert scene.database.read(lambda s: nominations.leavers(s, "big/1", after)) == []


class Starts:
    """A Temporal that only takes workflows."""

    def __init__(self) -> None:
        self.started: list[str] = []

    async def start_workflow(self, _name: str, _state: Defragmentation, **how: Any) -> None:
        self.started.append(how["id"])


@pytest.mark.parametrize(
    ("enabled", "after", "last", "begins"),
    [
        (True, timedelta(0), None, True),
        (False, timedelta(0), None, False),
        (True, timedelta(hours=1), None, False),
        (True, timedelta(0), "ended", False),
        (True, timedelta(0), "", True),
    ],
    ids=["waited long enough", "switched off", "too young", "one ended in vain just now", "one runs"],
)
async def test_it_begins_by_itself(
    scene: Pieces, enabled: bool, after: timedelta, last: str | None, begins: bool
) -> None:
    temporal = Starts()
    if last is not None:
        d = Defragmentation(deployment="big", started_at=datetime.now(UTC), ended=last, projection=1)
        scene.database.write(lambda s: defragmentations.record(s, d, "run"))
    timings = Timings(defragment_after=after)
    starter = DefragmentationStarter(scene.database, cast(Client, temporal), timings, enabled=enabled)
    asked = await scene.question(request("big/1"))
    assert await starter.consider(asked.request, asked.needs, asked.hosts) is begins
    assert temporal.started == (["defragment/big"] if begins else [])
