"""What the control plane does for a defragmentation, on the fleet in memory."""

from temporalio import activity
from temporalio.client import Client

from activities.contracts import (
    DefragmentationRecord,
    DefragmentContract,
    DefragmentQuestion,
    MoveEnd,
    MoveQuestion,
    MovesSeen,
    MoveStart,
)
from fleet import ids
from fleet.defragmentations import Defragmentation, DefragmentPlan, PlannedMove, Seat, Waiting
from fleet.deployments import InstancesLeave
from fleet.instances import Instance
from fleet.states import InstanceState
from tests.workflows.ledger import Claim, FakeFleet

_WAITS = (InstanceState.PENDING, InstanceState.PLACING)


class FakeDefragmenter(DefragmentContract):
    """Plans like the real one, by places: the host that lacks least, whose replicas of one place can go elsewhere."""

    def __init__(self, client: Client, fleet: FakeFleet) -> None:
        self._client = client
        self._fleet = fleet
        self.begun: list[str] = []
        """Instances, as often as their moves were begun."""
        self.called_off: list[str] = []
        self.let_go: list[str] = []
        """For whom nothing is kept any more."""
        self.most_under_way = 0
        self.recorded: list[Defragmentation] = []
        self.moved_on: set[str] = set()
        """Instances that are not where they were when a move of them is to begin."""

    @property
    def last(self) -> Defragmentation:
        return self.recorded[-1]

    @property
    def under_way(self) -> bool:
        return bool(self.recorded and self.last.under_way)

    @activity.defn(name="plan_defragmentation")
    async def plan_defragmentation(self, question: DefragmentQuestion) -> DefragmentPlan:
        placed = {c.instance_id for c in self._fleet.claims}
        pending = [i for i in self._fleet.of(question.deployment) if i.state is InstanceState.PENDING and i.unplaceable]
        waits = [i for i in pending if i.instance_id not in placed]
        if not waits:
            return DefragmentPlan()
        size = self._fleet.sizes.get(question.deployment, 1)
        free = {h: self._fleet._free(h) for h in self._fleet.room}
        if max(free.values()) >= size:
            await self._fleet.wake()
            return DefragmentPlan(waiting=_waiting(waits[0], max(free, key=lambda h: free[h])))
        for source in sorted(free, key=lambda h: size - free[h]):
            moves = self._away_from(source, size - free[source], free, question.stay)
            if moves is not None and len(moves) <= question.at_most:
                return DefragmentPlan(waiting=_waiting(waits[0], source), moves=moves)
        return DefragmentPlan(waiting=_waiting(waits[0]), obstacle="nothing can go elsewhere")

    def _away_from(
        self, source: str, missing: int, free: dict[str, int], stay: tuple[str, ...]
    ) -> tuple[PlannedMove, ...] | None:
        targets = [h for h in sorted(free) if h != source for _ in range(free[h])]
        here = [c for c in self._fleet.claims if c.placement.host_id == source and c.placement.memory_bytes == 1]
        movable = sorted((c for c in here if c.instance_id not in stay), key=lambda c: c.instance_id)
        if missing > min(len(targets), len(movable)):
            return None
        return tuple(_move(c, source, t) for c, t in zip(movable[:missing], targets, strict=False))

    @activity.defn(name="begin_move")
    async def begin_move(self, start: MoveStart) -> bool:
        move = start.move
        if move.instance_id in self.moved_on:
            return False
        self.begun.append(move.instance_id)
        self._fleet.bound_for[move.deployment] = move.to[0].host_id
        await self._tell(move, start.waiting.instance_id, stay=False)
        return True

    @activity.defn(name="look_at_moves")
    async def look_at_moves(self, question: MoveQuestion) -> MovesSeen:
        held = {(c.instance_id, c.fence) for c in self._fleet.claims}
        left = tuple(m.instance_id for m in question.moves if (m.instance_id, m.fence) in held)
        self.most_under_way = max(self.most_under_way, len(left))
        waits = self._fleet.instances.get(question.waiting)
        placed = any(c.instance_id == question.waiting for c in self._fleet.claims)
        return MovesSeen(waits=waits is not None and waits.state in _WAITS and not placed, left=left)

    @activity.defn(name="end_moves")
    async def end_moves(self, end: MoveEnd) -> None:
        for move in end.moves:
            self.called_off.append(move.instance_id)
            await self._tell(move, end.waiting, stay=True)
        if not end.moves:
            self.let_go.append(end.waiting)

    @activity.defn(name="record_defragmentation")
    async def record_defragmentation(self, record: DefragmentationRecord) -> None:
        self.recorded.append(record.defragmentation)

    async def _tell(self, move: PlannedMove, waiting: str, *, stay: bool) -> None:
        leave = InstancesLeave(instance_ids=(move.instance_id,), reason=f"is moved for {waiting}", stay=stay)
        await self._client.get_workflow_handle(ids.deployment_workflow(move.deployment)).signal(ids.LEAVE_SIGNAL, leave)


def _waiting(instance: Instance, room: str = "") -> Waiting:
    seats = (Seat(host_id=room),) if room else ()
    return Waiting(instance_id=instance.instance_id, deployment=instance.deployment, room=seats)


def _move(claim: Claim, source: str, target: str) -> PlannedMove:
    return PlannedMove(
        instance_id=claim.instance_id,
        deployment=claim.instance_id.rpartition("/")[0],
        fence=claim.fence,
        from_host=source,
        to=(Seat(host_id=target),),
    )
