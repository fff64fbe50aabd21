"""Moving replicas so that one that waits finds room: what a ``DefragmentWorkflow`` asks for, and how one is begun."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from sqlmodel import Session, col, select
from temporalio import activity
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.contracts import (
    DefragmentationRecord,
    DefragmentContract,
    DefragmentQuestion,
    MoveEnd,
    MoveQuestion,
    MovesSeen,
    MoveStart,
)
from activities.preemption import RoomMaker
from activities.waiting import WaitingInstances
from fleet import ids
from fleet.db import defragmentations, nominations
from fleet.db.nominations import Leaver, Nominee
from fleet.db.session import Database
from fleet.db.standings import standings
from fleet.db.tables import ClaimRow, DefragmentationRow, InstanceRow
from fleet.defragmentations import Defragmentation, DefragmentPlan, PlannedMove, Seat, Waiting
from fleet.instances import Instance, placement_request
from fleet.placement.decision import Decision
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Needs
from fleet.placement.request import PlacementRequest
from fleet.placement.view import HostView
from fleet.policy.defragment import Move, Mover, Moves, plan_moves, wanted_defragmentation
from fleet.policy.priority import Standing
from fleet.policy.tenants import Tenant
from fleet.states import ClaimState, InstanceState
from fleet.timings import Timings


class Question(Protocol):
    """A request for room, and the fleet as it may use it (``activities.placement.Question``)."""

    @property
    def request(self) -> PlacementRequest: ...
    @property
    def needs(self) -> Needs: ...
    @property
    def hosts(self) -> list[HostView]: ...
    def best(self, request: PlacementRequest, needs: Needs, fleet: Fleet) -> Decision | None: ...


Ask = Callable[[PlacementRequest], Awaitable[Question]]


class DefragmentActivities(DefragmentContract):
    def __init__(self, database: Database, ask: Ask, room: RoomMaker, waiting: WaitingInstances) -> None:
        """``ask``: as placement asks."""
        self._database = database
        self._ask = ask
        self._room = room
        self._waiting = waiting

    @activity.defn(name="plan_defragmentation")
    async def plan_defragmentation(self, question: DefragmentQuestion) -> DefragmentPlan:
        waits = await self._database.aread(lambda s: _waiting(s, question.deployment))
        if waits is None:
            return DefragmentPlan()
        asked = await self._ask(placement_request(waits))
        now = datetime.now(UTC)
        standing = await self._database.aread(lambda s: standings(s, now))
        movers = await self._movers(asked, standing)
        found = await asyncio.to_thread(
            plan_moves,
            asked.request,
            asked.needs,
            asked.hosts,
            movers=movers,
            standings=standing,
            at_most=question.at_most,
            best=asked.best,
            stay=question.stay,
        )
        if found is not None and not found.moves:
            await self._waiting.wake()
        return _plan(asked, found, standing)

    @activity.defn(name="begin_move")
    async def begin_move(self, start: MoveStart) -> bool:
        nominee = _nominee(start.waiting)
        reason = _reason(start.waiting.instance_id)

        def write(session: Session) -> list[Leaver]:
            move = start.move
            if not nominations.move(session, nominee, _tenant(move), move.to, reason=reason, until=start.until):
                return []
            nominations.keep(session, nominee, start.waiting.room, start.until)
            leavers = nominations.leavers(session, nominee.name, datetime.now(UTC))
            return [x for x in leavers if x.instance_id == move.instance_id]

        leavers = await self._database.awrite(write)
        await self._room.tell(leavers)
        return bool(leavers)

    @activity.defn(name="look_at_moves")
    async def look_at_moves(self, question: MoveQuestion) -> MovesSeen:
        def read(session: Session) -> MovesSeen:
            row = session.get(InstanceRow, question.waiting)
            held = nominations.held(session, [question.waiting, *(m.instance_id for m in question.moves)])
            placed = any(instance_id == question.waiting for instance_id, _ in held)
            return MovesSeen(
                waits=row is not None and row.state in _WAITS and not placed,
                left=tuple(m.instance_id for m in question.moves if (m.instance_id, m.fence) in held),
            )

        return await self._database.aread(read)

    @activity.defn(name="end_moves")
    async def end_moves(self, end: MoveEnd) -> None:
        def write(session: Session) -> None:
            for move in end.moves:
                nominations.stay(session, move.instance_id)
            if not end.moves and end.waiting:
                nominations.end(session, end.waiting)

        await self._database.awrite(write)
        await self._room.let_stay([(m.deployment, m.instance_id) for m in end.moves], reason=_reason(end.waiting))

    @activity.defn(name="record_defragmentation")
    async def record_defragmentation(self, record: DefragmentationRecord) -> None:
        await self._database.awrite(lambda s: defragmentations.record(s, record.defragmentation, record.run_id))

    async def _movers(self, asked: Question, standing: Mapping[str, Standing]) -> dict[str, Mover]:
        """One for each deployment of which replicas could be moved."""
        here = {o.deployment for h in asked.hosts for o in h.occupants if o.ready and not o.leaving and o.hosts == 1}
        may = sorted(d for d in here if d in standing and standing[d].priority <= asked.request.priority)
        samples = await self._database.aread(lambda s: _samples(s, [d for d in may if not standing[d].rolling_out]))
        questions = await asyncio.gather(*(self._ask(placement_request(i)) for i in samples))
        return {q.request.deployment: Mover(q.request, q.needs, q.best) for q in questions}


class DefragmentationStarter:
    """Begins one by itself when a replica has waited long enough for room that is there in pieces."""

    def __init__(self, database: Database, client: Client, timings: Timings, *, enabled: bool) -> None:
        self._database = database
        self._client = client
        self._timings = timings
        self._enabled = enabled

    async def consider(self, request: PlacementRequest, needs: Needs, hosts: Sequence[HostView]) -> bool:
        """Whether one runs for it now. Twice is once; one that ended in vain is not repeated for a while."""
        if not self._enabled:
            return False
        now = datetime.now(UTC)
        since = await self._database.aread(lambda s: _since(s, request.instance_id, now))
        if not wanted_defragmentation(request, needs, hosts, now - since, self._timings.defragment_after):
            return False
        last = await self._database.aread(lambda s: s.get(DefragmentationRow, request.deployment))
        if last is not None and not last.running and now - last.updated_at < self._timings.defragment_again:
            return False
        return await self._start(Defragmentation(deployment=request.deployment, started_at=now, timings=self._timings))

    async def _start(self, defragmentation: Defragmentation) -> bool:
        try:
            await self._client.start_workflow(
                ids.DEFRAGMENT_WORKFLOW,
                defragmentation,
                id=ids.defragment_workflow(defragmentation.deployment),
                task_queue=ids.CONTROL_QUEUE,
                task_timeout=ids.WORKFLOW_TASK_TIMEOUT,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary=f"make room for {defragmentation.deployment}",
                rpc_timeout=timedelta(seconds=5),
            )
        except WorkflowAlreadyStartedError:
            return True
        return True


_WAITS = (InstanceState.PENDING, InstanceState.PLACING)


def _waiting(session: Session, deployment: str) -> Instance | None:
    """The oldest replica that finds no room. Its row may be behind its claim."""
    placed = select(ClaimRow.instance_id).where(ClaimRow.state != ClaimState.RELEASING)
    query = select(InstanceRow).where(InstanceRow.deployment == deployment, InstanceRow.state == InstanceState.PENDING)
    query = query.where(col(InstanceRow.id).not_in(placed))
    for row in session.exec(query.order_by(col(InstanceRow.created_at), col(InstanceRow.id))).all():
        instance = Instance.model_validate(row.durable)
        if instance.unplaceable:
            return instance
    return None


def _samples(session: Session, deployments: Sequence[str]) -> list[Instance]:
    query = select(InstanceRow).where(
        col(InstanceRow.deployment).in_(deployments), InstanceRow.state == InstanceState.READY
    )
    found = {row.deployment: row for row in session.exec(query.order_by(col(InstanceRow.launch))).all()}
    return [Instance.model_validate(row.durable) for row in found.values()]


def _since(session: Session, instance_id: str, now: datetime) -> datetime:
    row = session.get(InstanceRow, instance_id)
    return row.created_at if row is not None else now


def _plan(asked: Question, found: Moves | None, standing: Mapping[str, Standing]) -> DefragmentPlan:
    request = asked.request
    waiting = Waiting(
        instance_id=request.instance_id,
        deployment=request.deployment,
        fence=request.fence,
        priority=request.priority,
    )
    if found is None:
        obstacle = "no few replicas could go elsewhere and leave enough in one piece"
        return DefragmentPlan(waiting=waiting, obstacle=obstacle)
    names = {h.host_id: h.name for h in asked.hosts}
    return DefragmentPlan(
        waiting=waiting.model_copy(update={"room": _room(found.decision, names)}),
        moves=tuple(_planned(m, names, standing) for m in found.moves),
    )


def _planned(move: Move, names: Mapping[str, str], standing: Mapping[str, Standing]) -> PlannedMove:
    tenant = move.tenant
    known = standing.get(tenant.deployment)
    return PlannedMove(
        instance_id=tenant.instance_id,
        deployment=tenant.deployment,
        fence=tenant.fence,
        priority=known.priority if known is not None else tenant.priority,
        bytes=tenant.bytes,
        from_host=tenant.hosts[0],
        from_name=names.get(tenant.hosts[0], ""),
        to=_room(move.decision, names),
    )


def _room(decision: Decision, names: Mapping[str, str]) -> tuple[Seat, ...]:
    return tuple(
        Seat(
            host_id=s.host_id,
            host_name=names.get(s.host_id, ""),
            gpu_uuids=s.gpu_uuids,
            gpu_bytes=s.gpu_bytes,
            ram_bytes=s.ram_bytes,
        )
        for s in decision.seats
    )


def _nominee(waiting: Waiting) -> Nominee:
    return Nominee(waiting.instance_id, waiting.deployment, waiting.priority, waiting.fence)


def _tenant(move: PlannedMove) -> Tenant:
    return Tenant(
        instance_id=move.instance_id,
        deployment=move.deployment,
        fence=move.fence,
        hosts=(move.from_host,),
        gpu_bytes=(),
        ram_bytes=(),
        priority=move.priority,
        ready=True,
        leaving=False,
    )


def _reason(instance_id: str) -> str:
    return f"is moved so that {instance_id} finds room"
