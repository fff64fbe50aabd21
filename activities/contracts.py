"""What workflows may ask for: names and signatures of all activities, and nothing that does I/O.

Control-plane activities are implemented in this package on the controller; ``HostContract`` by every host worker
on its own queue ``host-<id>``.
"""

from abc import ABC, abstractmethod
from datetime import datetime, timedelta

from temporalio import activity

from fleet.batches import AssembledBatch, Batch, CheckedBatch, EndReason, WindowDone
from fleet.defragmentations import Defragmentation, DefragmentPlan, PlannedMove, Waiting
from fleet.deployments import Deployment
from fleet.gangs import Acceptance
from fleet.hosts import Host, HostLease
from fleet.instances import EngineExit, EngineLaunch, Instance
from fleet.inventory import EngineRef
from fleet.model import Record
from fleet.placement.request import PlacementRequest, PlaceResult
from fleet.policy.canary import Reading


class ReleaseRequest(Record):
    instance_id: str
    fence: int
    engine_gone: bool
    """False: the host is lost; its memory stays booked until it comes back and confirms."""
    hosts_gone: tuple[str, ...] = ()
    """Of a gang with ``engine_gone`` false: those of its hosts that have confirmed all the same."""


class DeploymentRecord(Record):
    deployment: Deployment
    run_id: str


class DeploymentName(Record):
    name: str
    run_id: str


class Recorded(Record):
    claim_lost: bool = False
    """The claim had expired before it was bound: the room may be somebody else's by now."""


class InstanceIds(Record):
    instance_ids: tuple[str, ...] = ()


class Occupants(Record):
    instance_ids: tuple[str, ...] = ()
    obstacle: str = ""
    """Why their replacements elsewhere are not ready, if there are any and something is in their way."""


class HostId(Record):
    host_id: str


class InstanceId(Record):
    instance_id: str


class PlacementContract(ABC):
    """The ledger. All are idempotent by (instance, fence)."""

    @activity.defn(name="place_instance")
    @abstractmethod
    async def place_instance(self, request: PlacementRequest) -> PlaceResult:
        """Claim room for one replica, or say why there is none."""

    @activity.defn(name="release_claim")
    @abstractmethod
    async def release_claim(self, request: ReleaseRequest) -> None:
        """Give back the claims of this fence and older ones, and wake instances that wait for room."""


class ProjectionContract(ABC):
    """What workflows write about themselves for the API and the gateways to read. Local activities."""

    @activity.defn(name="record_deployment")
    @abstractmethod
    async def record_deployment(self, record: DeploymentRecord) -> None: ...

    @activity.defn(name="forget_deployment")
    @abstractmethod
    async def forget_deployment(self, name: DeploymentName) -> None: ...

    @activity.defn(name="record_instance")
    @abstractmethod
    async def record_instance(self, instance: Instance) -> Recorded:
        """Write the row, publish or withdraw its endpoint, and bind its claim."""

    @activity.defn(name="forget_instance")
    @abstractmethod
    async def forget_instance(self, instance: InstanceId) -> None: ...

    @activity.defn(name="record_host")
    @abstractmethod
    async def record_host(self, host: Host) -> None: ...


class FleetContract(ABC):
    """Questions about and news to other entities."""

    @activity.defn(name="instances_on_host")
    @abstractmethod
    async def instances_on_host(self, host: HostId) -> Occupants:
        """Instances that hold a claim there."""

    @activity.defn(name="ended_instances")
    @abstractmethod
    async def ended_instances(self, candidates: InstanceIds) -> InstanceIds:
        """Those whose workflow is closed or was never there."""

    @activity.defn(name="announce_capacity")
    @abstractmethod
    async def announce_capacity(self) -> None:
        """Wake the instances that wait for room."""

    @activity.defn(name="clean_up_instance")
    @abstractmethod
    async def clean_up_instance(self, instance: InstanceId) -> None:
        """Give up what an instance left behind that ended without a word (terminated by a person)."""


class GpuFault(Record):
    instance_id: str
    fence: int
    gpu_uuids: tuple[str, ...]
    reason: str
    certain: bool
    """The line that was printed leaves no other explanation. Else it takes a second fault to believe it."""


class GpuContract(ABC):
    @activity.defn(name="note_gpu_fault")
    @abstractmethod
    async def note_gpu_fault(self, fault: GpuFault) -> None:
        """Remember it, and cordon GPUs that are to blame. Idempotent by (GPU, instance, fence)."""


class Replacement(Record):
    allowed: bool
    reason: str = ""
    """Why not, for people."""


class BreakerContract(ABC):
    @activity.defn(name="may_replace")
    @abstractmethod
    async def may_replace(self, host: HostId) -> Replacement:
        """Whether the replicas of a lost host are placed elsewhere now, or too many hosts are unhealthy at once."""


class TrafficQuestion(Record):
    deployment: str
    old_launch: int
    new_launch: int


class TrafficReadings(Record):
    """Sums over all gateways since each began."""

    old: Reading
    new: Reading


class TrafficContract(ABC):
    @activity.defn(name="read_traffic")
    @abstractmethod
    async def read_traffic(self, question: TrafficQuestion) -> TrafficReadings:
        """What the engines of two launches have answered so far."""


class DefragmentQuestion(Record):
    deployment: str
    stay: tuple[str, ...] = ()
    """Instances that could not be moved before."""
    at_most: int = 4


class MoveStart(Record):
    waiting: Waiting
    move: PlannedMove
    until: datetime


class MoveQuestion(Record):
    waiting: str
    """Instance id."""
    moves: tuple[PlannedMove, ...]


class MovesSeen(Record):
    waits: bool
    """It still finds no room."""
    left: tuple[str, ...] = ()
    """Instances that still are where they were."""


class MoveEnd(Record):
    waiting: str
    moves: tuple[PlannedMove, ...] = ()
    """That are called off: these instances stay."""


class DefragmentationRecord(Record):
    defragmentation: Defragmentation
    run_id: str


class DefragmentContract(ABC):
    """Moving replicas so that one that waits finds room. All are idempotent."""

    @activity.defn(name="plan_defragmentation")
    @abstractmethod
    async def plan_defragmentation(self, question: DefragmentQuestion) -> DefragmentPlan:
        """Who waits, and which moves would make room for it. Wakes it when there is room without any."""

    @activity.defn(name="begin_move")
    @abstractmethod
    async def begin_move(self, start: MoveStart) -> bool:
        """Keep the room on both sides and ask for the replacement. False: the instance has moved on by itself."""

    @activity.defn(name="look_at_moves")
    @abstractmethod
    async def look_at_moves(self, question: MoveQuestion) -> MovesSeen: ...

    @activity.defn(name="end_moves")
    @abstractmethod
    async def end_moves(self, end: MoveEnd) -> None:
        """Call these moves off; without any: nothing is kept for the one that waited any more."""

    @activity.defn(name="record_defragmentation")
    @abstractmethod
    async def record_defragmentation(self, record: DefragmentationRecord) -> None: ...


class BatchId(Record):
    batch_id: str


class WindowTask(Record):
    batch_id: str
    window: int
    patience: timedelta
    """Then it returns, although there may be lines left."""
    call_back: timedelta
    """How long requests that are in flight may take once it is called back."""
    heartbeat: timedelta
    """It is heard of at least so often."""


class AssembleTask(Record):
    batch_id: str
    reason: EndReason


class BatchRecord(Record):
    batch: Batch


class BatchContract(ABC):
    """Working off a batch. All are idempotent: an answer that was written stays as it is."""

    @activity.defn(name="validate_batch")
    @abstractmethod
    async def validate_batch(self, batch: BatchId) -> CheckedBatch:
        """Read the input file, keep its mistakes, and cut it into windows."""

    @activity.defn(name="run_batch_window")
    @abstractmethod
    async def run_batch_window(self, task: WindowTask) -> WindowDone:
        """Ask those of its lines that have no answer yet. Cancelled, it lets finish what is in flight, and returns."""

    @activity.defn(name="assemble_batch")
    @abstractmethod
    async def assemble_batch(self, task: AssembleTask) -> AssembledBatch:
        """Give every line its place in one of the two files. No answer is taken from then on."""

    @activity.defn(name="clear_batch")
    @abstractmethod
    async def clear_batch(self, batch: BatchId) -> None:
        """Delete what its two files say now."""

    @activity.defn(name="record_batch")
    @abstractmethod
    async def record_batch(self, record: BatchRecord) -> None: ...


class HostContract(ABC):
    """What a host does. The control plane reaches it only through its queue."""

    @activity.defn(name="run_engine")
    @abstractmethod
    async def run_engine(self, launch: EngineLaunch) -> EngineExit:
        """Start or adopt the engine and own it until it ends. Completed asynchronously, by task token."""

    @activity.defn(name="look_at_engine")
    @abstractmethod
    async def look_at_engine(self, engine: EngineRef) -> None:
        """Heartbeat now instead of later, so that a cancellation is noticed at once. A hint: losing it is harmless."""

    @activity.defn(name="accept_engine")
    @abstractmethod
    async def accept_engine(self, launch: EngineLaunch) -> Acceptance:
        """Get ready for a part of a gang (pull, install), and say whether it can be run. Starts nothing.

        Idempotent; heartbeats meanwhile. A launch under an older fence is refused from then on.
        """

    @activity.defn(name="hurry_engine")
    @abstractmethod
    async def hurry_engine(self, engine: EngineRef) -> None:
        """As ``look_at_engine``, for one whose gang is broken: its requests cannot finish, so it need not drain."""

    @activity.defn(name="hold_lease")
    @abstractmethod
    async def hold_lease(self, lease: HostLease) -> None:
        """Heartbeat for as long as the host lives. Completed asynchronously, by task token."""

    @activity.defn(name="answer_roll_call")
    @abstractmethod
    async def answer_roll_call(self) -> None:
        """Prove that the host is back."""
