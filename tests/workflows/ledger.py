"""What the control plane's database does for workflows, in memory and strict."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.contracts import (
    BreakerContract,
    DeploymentName,
    DeploymentRecord,
    FleetContract,
    GpuContract,
    GpuFault,
    HostId,
    InstanceId,
    InstanceIds,
    Occupants,
    PlacementContract,
    ProjectionContract,
    Recorded,
    ReleaseRequest,
    Replacement,
    TrafficContract,
    TrafficQuestion,
    TrafficReadings,
)
from fleet import ids
from fleet.access.sealing import Sealer, host_sealer, master_sealer
from fleet.deployment_status import message, phase, ready_replicas
from fleet.deployments import Deployment
from fleet.hosts import Host
from fleet.instances import Instance
from fleet.placement.request import Member, Placement, PlacementRequest, PlaceResult, Unplaceable
from fleet.policy.breaker import HostHealth, examine
from fleet.policy.canary import Reading
from fleet.states import ClaimState, HostState, InstanceState, Maintenance

Projected = Deployment | Instance | Host


async def _go_on(_: Projected) -> None:
    """Nothing happens."""


@dataclass
class Claim:
    instance_id: str
    fence: int
    placement: Placement
    state: ClaimState = ClaimState.HELD
    gone_from: set[str] = field(default_factory=set)
    """Hosts of a gang that have given back their part."""

    def holds(self, host_id: str) -> bool:
        return host_id in self.placement.hosts and host_id not in self.gone_from


class FakeFleet(PlacementContract, ProjectionContract, FleetContract, BreakerContract, GpuContract, TrafficContract):
    """Claims are counted per host; each replica takes one place of its ``room``.

    ``broken`` collects what no workflow may ever do, so that every test checks it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.room: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        """Places that a replica takes, by deployment; one, if it is not named."""
        self.bound_for: dict[str, str] = {}
        """Hosts that are kept for the next replica, by deployment."""
        self.gpus: dict[str, tuple[str, ...]] = {}
        """By host: what each replica there gets."""
        self.hosts_per_replica = 1
        self.gpu_faults: list[tuple[GpuFault, bool]] = []
        """With whether the claim was still held when it was noted."""
        self.traffic: dict[tuple[str, int], Reading] = {}
        """What gateways have counted, by deployment and launch."""
        self.claims: list[Claim] = []
        self.placements: list[PlacementRequest] = []
        self.released: list[ReleaseRequest] = []
        self.announced = 0
        self.cleaned_up: list[str] = []
        self.deployments: dict[str, Deployment] = {}
        self.instances: dict[str, Instance] = {}
        self.hosts: dict[str, Host] = {}
        self.timeline: dict[str, list[Instance]] = {}
        """All that an instance ever recorded, kept when it is forgotten."""
        self.fewest_ready: dict[str, int] = {}
        """Per deployment, since a test last set it."""
        self.others: list[HostHealth] = []
        """Hosts of which the breaker knows, besides those of the test."""
        self.asked_the_breaker: list[str] = []
        self.asked_who_is_there: list[str] = []
        self.answers = asyncio.Event()
        """Cleared: claims are made, but the answers to ``place_instance`` are held back."""
        self.answers.set()
        self.tells_hosts = asyncio.Event()
        """Cleared: the answers to ``instances_on_host`` are held back."""
        self.tells_of_claims = True
        """Hosts in maintenance hear at once of claims that are given back."""
        self.tells_hosts.set()
        self.after_record: Callable[[Projected], Awaitable[None]] = _go_on
        """What happens between the writing of a row and the workflow's hearing that it is written."""
        self.master: Sealer = master_sealer("test")
        self.broken: list[str] = []

    # -- placement --------------------------------------------------------------------------------------------

    @activity.defn(name="place_instance")
    async def place_instance(self, request: PlacementRequest) -> PlaceResult:
        self.placements.append(request)
        answer = self._place(request)
        await self.answers.wait()
        return answer

    def _place(self, request: PlacementRequest) -> PlaceResult:
        mine = [c for c in self.claims if c.instance_id == request.instance_id]
        newest = max((c.fence for c in mine), default=0)
        if newest > request.fence:
            return PlaceResult(newer_fence=newest)
        for known in mine:
            if known.fence == request.fence:
                return PlaceResult(placement=known.placement)
        open_ = {h for h in self.room if self._takes_work(h)}
        tried = open_.difference(request.excluded_hosts) or open_
        size = self.sizes.get(request.deployment, 1)
        free = {h: self._free(h) for h in tried if self._free(h) >= size}
        if len(free) < self.hosts_per_replica:
            free = {h: self._free(h) for h in open_ if self._free(h) >= size}
        if len(free) < self.hosts_per_replica:
            return PlaceResult(unplaceable=Unplaceable(reasons=("no host has room",)))
        bound_for = self.bound_for.pop(request.deployment, "")
        order = sorted(sorted(free), key=lambda h: (h == bound_for, free[h]), reverse=True)
        chosen = order[: self.hosts_per_replica]
        leader, *followers = (self._member(request, host_id) for host_id in chosen)
        placement = Placement(**leader.model_dump(), memory_bytes=size, followers=tuple(followers))
        self.claims.append(Claim(request.instance_id, request.fence, placement))
        return PlaceResult(placement=placement)

    def _member(self, request: PlacementRequest, host_id: str) -> Member:
        sealer = host_sealer(host_id)
        return Member(
            host_id=host_id,
            gpu_uuids=self.gpus.get(host_id, ()),
            model_path=f"/models/{request.spec.model_path}",
            env_for_host={k: sealer.seal(self.master.open(v)) for k, v in request.spec.env_sealed.items()},
        )

    def _free(self, host_id: str) -> int:
        return self.room[host_id] - sum(c.placement.memory_bytes for c in self.claims if c.holds(host_id))

    def _takes_work(self, host_id: str) -> bool:
        known = self.hosts.get(host_id)
        return known is None or (known.state is HostState.READY and known.maintenance is Maintenance.NONE)

    @activity.defn(name="release_claim")
    async def release_claim(self, request: ReleaseRequest) -> None:
        self.released.append(request)
        mine = [c for c in self.claims if c.instance_id == request.instance_id and c.fence <= request.fence]
        if request.engine_gone:
            self.claims = [c for c in self.claims if c not in mine]
        for claim in mine:
            claim.state = ClaimState.RELEASING
            claim.gone_from.update(request.hosts_gone)
        await self.wake()
        await self._tell_hosts({host_id for c in mine for host_id in c.placement.hosts})

    async def _tell_hosts(self, host_ids: set[str]) -> None:
        maintained = [h for h in self.hosts.values() if h.maintenance is not Maintenance.NONE]
        for host_id in host_ids & {h.host_id for h in maintained if self.tells_of_claims}:
            await self._client.get_workflow_handle(ids.host_workflow(host_id)).signal(ids.CLAIMS_CHANGED_SIGNAL)

    def confirm_gone(self, host_id: str, running: set[tuple[str, int]]) -> None:
        """The janitor of a host: free what was given up and does not run there."""
        for claim in self.claims:
            if claim.state is ClaimState.RELEASING and (claim.instance_id, claim.fence) not in running:
                claim.gone_from.add(host_id)
        self.claims = [c for c in self.claims if any(c.holds(h) for h in c.placement.hosts)]

    async def wake(self) -> None:
        pending = [i for i in self.instances.values() if i.state is InstanceState.PENDING]
        await asyncio.gather(*(self._wake(i.instance_id) for i in pending))

    async def _wake(self, instance_id: str) -> None:
        handle = self._client.get_workflow_handle(ids.instance_workflow(instance_id))
        try:
            await handle.signal(ids.CAPACITY_SIGNAL)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise

    # -- projections ------------------------------------------------------------------------------------------

    @activity.defn(name="record_deployment")
    async def record_deployment(self, record: DeploymentRecord) -> None:
        new = record.deployment
        if self._is_newer(new.name, self.deployments.get(new.name), new):
            self.deployments[new.name] = new
            ready = ready_replicas(new)
            self.fewest_ready[new.name] = min(ready, self.fewest_ready.get(new.name, ready))
        await self.after_record(new)

    @activity.defn(name="forget_deployment")
    async def forget_deployment(self, name: DeploymentName) -> None:
        self.deployments.pop(name.name, None)

    @activity.defn(name="record_instance")
    async def record_instance(self, instance: Instance) -> Recorded:
        known = self.instances.get(instance.instance_id)
        if known is not None and instance.fence < known.fence:
            self.broken.append(f"{instance.instance_id}: fence went back from {known.fence} to {instance.fence}")
        if self._is_newer(instance.instance_id, known, instance):
            self.instances[instance.instance_id] = instance
            self.timeline.setdefault(instance.instance_id, []).append(instance)
        await self.after_record(instance)
        return Recorded(claim_lost=instance.placement is not None and not self._bind(instance))

    def _bind(self, instance: Instance) -> bool:
        mine = [c for c in self.claims if (c.instance_id, c.fence) == (instance.instance_id, instance.fence)]
        for claim in mine:
            if claim.state is ClaimState.HELD:
                claim.state = ClaimState.BOUND
        return bool(mine)

    @activity.defn(name="forget_instance")
    async def forget_instance(self, instance: InstanceId) -> None:
        self.instances.pop(instance.instance_id, None)

    @activity.defn(name="record_host")
    async def record_host(self, host: Host) -> None:
        if host.state is HostState.FORGOTTEN:
            self.hosts.pop(host.host_id, None)
            self.room.pop(host.host_id, None)
        elif self._is_newer(host.host_id, self.hosts.get(host.host_id), host):
            self.hosts[host.host_id] = host
        await self.after_record(host)

    def _is_newer(self, name: str, known: Projected | None, new: Projected) -> bool:
        """As the database: what is not newer is not written. Workflows must not lose anything by that."""
        if known is None or new.projection > known.projection:
            return True
        if new != known:
            self.broken.append(f"{name}: projection {new.projection} came after {known.projection} and says otherwise")
        return False

    # -- questions --------------------------------------------------------------------------------------------

    @activity.defn(name="instances_on_host")
    async def instances_on_host(self, host: HostId) -> Occupants:
        self.asked_who_is_there.append(host.host_id)
        await self.tells_hosts.wait()
        held = (c for c in self.claims if c.holds(host.host_id) and c.state is not ClaimState.RELEASING)
        here = {c.instance_id for c in held}
        waiting = [i for i in self.instances.values() if i.instance_id not in here and i.state is InstanceState.PENDING]
        obstacle = f"{waiting[0].instance_id} is pending: {waiting[0].message}" if waiting and here else ""
        return Occupants(instance_ids=tuple(sorted(here)), obstacle=obstacle)

    @activity.defn(name="may_replace")
    async def may_replace(self, host: HostId) -> Replacement:
        self.asked_the_breaker.append(host.host_id)
        seen = (HostHealth(h.state, h.lost_at, h.replacement_paused, h.maintenance) for h in self.hosts.values())
        health = examine([*seen, *self.others], datetime.now(UTC) - timedelta(minutes=5))
        tripped = health.trips(0.2)
        return Replacement(allowed=not tripped, reason=str(health) if tripped else "")

    @activity.defn(name="ended_instances")
    async def ended_instances(self, candidates: InstanceIds) -> InstanceIds:
        ended = [i for i in candidates.instance_ids if await self._has_ended(i)]
        return InstanceIds(instance_ids=tuple(ended))

    async def _has_ended(self, instance_id: str) -> bool:
        found = await self._client.get_workflow_handle(ids.instance_workflow(instance_id)).describe()
        return found.status not in (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW)

    @activity.defn(name="read_traffic")
    async def read_traffic(self, question: TrafficQuestion) -> TrafficReadings:
        old, new = (
            self.traffic.get((question.deployment, launch), Reading())
            for launch in (question.old_launch, question.new_launch)
        )
        return TrafficReadings(old=old, new=new)

    @activity.defn(name="note_gpu_fault")
    async def note_gpu_fault(self, fault: GpuFault) -> None:
        held = any((c.instance_id, c.fence) == (fault.instance_id, fault.fence) for c in self.claims)
        self.gpu_faults.append((fault, held))

    @activity.defn(name="announce_capacity")
    async def announce_capacity(self) -> None:
        self.announced += 1
        await self.wake()

    @activity.defn(name="clean_up_instance")
    async def clean_up_instance(self, instance: InstanceId) -> None:
        self.cleaned_up.append(instance.instance_id)
        for claim in self.claims:
            if claim.instance_id == instance.instance_id:
                claim.state = ClaimState.RELEASING
        self.instances.pop(instance.instance_id, None)

    def message_of(self, name: str) -> str:
        known = self.deployments.get(name)
        return message(known)[0] if known is not None else ""

    def phase_of(self, name: str) -> str:
        known = self.deployments.get(name)
        return phase(known) if known else "gone"

    def of(self, name: str) -> list[Instance]:
        """Instances of a deployment by slot."""
        return sorted((i for i in self.instances.values() if i.deployment == name), key=lambda i: i.slot)
