"""A control plane with real workflows on a real Temporal server, and everything else faked."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, overload
from uuid import uuid4

from temporalio.client import WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from fleet import ids
from fleet.batches import COMPLETION_WINDOW, Batch
from fleet.defragmentations import Defragmentation
from fleet.deployments import Accepted, Deployment, DeploymentChange
from fleet.engines.spec import EngineSpec
from fleet.hosts import Host, HostRegistered
from fleet.instances import Instance
from fleet.specs import DeploymentSpec, ModelSource
from fleet.states import InstanceState
from fleet.timings import Timings
from tests.workflows.batcher import FakeBatcher
from tests.workflows.defragmenter import FakeDefragmenter
from tests.workflows.hosts import FakeEngine, FakeHost
from tests.workflows.ledger import FakeFleet
from tests.workflows.server import IDENTITY
from workflows.batch import BatchWorkflow
from workflows.defragment import DefragmentWorkflow
from workflows.deployment import DeploymentWorkflow
from workflows.host import HostWorkflow
from workflows.instance import InstanceWorkflow
from workflows.registry import WORKFLOWS, workflow_runner

T = TypeVar("T")
Handle = WorkflowHandle[Any, Any]
WITHIN_S = 40.0

QUICK = Timings(
    withdraw_pause=timedelta(milliseconds=10),
    place_retry=timedelta(hours=1),
    lease_heartbeat=timedelta(milliseconds=700),
    lease_grace=timedelta(milliseconds=600),
    drain_look=timedelta(hours=1),
    longest_drain_look=timedelta(hours=1),
    surge_patience=timedelta(milliseconds=100),
    move_pause=timedelta(milliseconds=20),
    move_look=timedelta(milliseconds=50),
    longest_move_look=timedelta(milliseconds=200),
    batch_heartbeat=timedelta(seconds=2),
    batch_call_back=timedelta(milliseconds=200),
)
"""Nothing that a test wants to see waits long; what it does not want to see (asking again by itself) takes hours."""


class World:
    """One test's own queue, fleet and hosts. Workflows are started with their clocks at rest (``fast_forward``)."""

    def __init__(self, environment: WorkflowEnvironment) -> None:
        self.environment = environment
        self.client = environment.client
        self.queue = f"control-{uuid4().hex[:8]}"
        self.fleet = FakeFleet(self.client)
        self.defragmenter = FakeDefragmenter(self.client, self.fleet)
        self.batcher = FakeBatcher()
        self._batches: Worker | None = None
        self.hosts: list[FakeHost] = []
        self.started: list[str] = []
        """Ids of the workflows that were started from outside, oldest first."""

    async def __aenter__(self) -> "World":
        self._worker = self._control()
        await self._worker.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for host in self.hosts:
            await host.die()
        await self._worker.__aexit__(None, None, None)
        await self._stop_batches()
        overbooked = [h for h in self.fleet.room if self.fleet._free(h) < 0]
        assert not overbooked, f"more claims than room on {overbooked}"
        assert not self.fleet.broken, "\n".join(self.fleet.broken)

    def _control(self) -> Worker:
        f = self.fleet
        return Worker(
            self.client,
            task_queue=self.queue,
            workflows=WORKFLOWS,
            activities=[
                f.place_instance,
                f.release_claim,
                f.record_deployment,
                f.forget_deployment,
                f.record_instance,
                f.forget_instance,
                f.record_host,
                f.instances_on_host,
                f.ended_instances,
                f.announce_capacity,
                f.clean_up_instance,
                f.note_gpu_fault,
                f.may_replace,
                f.read_traffic,
                self.defragmenter.plan_defragmentation,
                self.defragmenter.begin_move,
                self.defragmenter.look_at_moves,
                self.defragmenter.end_moves,
                self.defragmenter.record_defragmentation,
                self.batcher.record_batch,
            ],
            workflow_runner=workflow_runner(),
            workflow_failure_exception_types=[Exception],
            identity=f"{IDENTITY}-controller",
            # As the controller: what waits for one that is gone is soon given to the next.
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        )

    async def restart_controller(self) -> None:
        """A new process: everything that it knows comes from histories."""
        await self._worker.__aexit__(None, None, None)
        batches = self._batches is not None
        await self._stop_batches()
        self._worker = self._control()
        await self._worker.__aenter__()
        if batches:
            await self._start_batches()

    @overload
    async def until(self, check: Callable[[], Awaitable[T | None]], what: str = ...) -> T: ...

    @overload
    async def until(self, check: Callable[[], T | None], what: str = ...) -> T: ...

    async def until(self, check: Callable[[], Any], what: str = "") -> Any:
        """The first true answer of ``check``, which may be a coroutine function."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            answer = check()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return answer
            if time.monotonic() > deadline:
                raise AssertionError(f"{what or check} not within {WITHIN_S:g} s\n{self.picture()}")
            await asyncio.sleep(0.005)

    def picture(self) -> str:
        f = self.fleet
        lines = [f"{d.name}: {f.phase_of(d.name)} {d.instances}" for d in f.deployments.values()]
        lines += [f"{i.instance_id}: {i.state} {i.message} fence {i.fence}" for i in f.instances.values()]
        lines += [f"{h.host_id}: {h.state} {h.message}" for h in f.hosts.values()]
        return "\n".join([*lines, *(f"{c}" for c in f.claims)])

    # -- hosts ------------------------------------------------------------------------------------------------

    async def add_host(self, room: int = 10, *, registered: bool = False) -> FakeHost:
        """``registered``: with a ``HostWorkflow`` that watches it; returns when it holds its lease."""
        host = FakeHost(self.client, f"h{len(self.hosts) + 1}-{uuid4().hex[:6]}")
        self.hosts.append(host)
        self.fleet.room[host.host_id] = room
        await host.revive()
        if registered:
            await self.register(host)
            await self.until(lambda: host.leases == 1, "lease")
        return host

    async def register(self, host: FakeHost, timings: Timings = QUICK) -> Accepted:
        workflow_id = ids.host_workflow(host.host_id)
        if workflow_id not in self.started:
            self.started.append(workflow_id)
            with self.environment.with_time_skipping_disabled():
                await self.client.start_workflow(
                    HostWorkflow.run,
                    Host(host_id=host.host_id, name=host.host_id, timings=timings),
                    id=workflow_id,
                    task_queue=self.queue,
                    static_summary=f"host {host.host_id}",
                )
        registered = HostRegistered(host_id=host.host_id, name=host.host_id, version="1", boot_id="b")
        return await self.host_workflow(host).execute_update(HostWorkflow.register, registered)

    def host_workflow(self, host: FakeHost) -> WorkflowHandle[HostWorkflow, None]:
        return self.client.get_workflow_handle_for(HostWorkflow.run, ids.host_workflow(host.host_id))

    def host_state(self, host: FakeHost) -> str:
        known = self.fleet.hosts.get(host.host_id)
        return known.state if known else "gone"

    def hosts_confirm_what_is_gone(self) -> None:
        for host in self.hosts:
            self.fleet.confirm_gone(host.host_id, {(e.launch.instance_id, e.launch.fence) for e in host.live})

    async def until_stopped(self, engine: FakeEngine) -> None:
        """By its own heartbeats: each asks whether it may go on."""

        async def stopped() -> bool:
            await engine.look()
            return not engine.running

        await self.until(stopped, "engine stopped")

    # -- deployments ------------------------------------------------------------------------------------------

    async def deploy(self, replicas: int = 1, *, timings: Timings = QUICK, name: str = "", **spec: Any) -> str:
        """Accepted, not ready. Returns its name."""
        name = name or f"d-{uuid4().hex[:6]}"
        deployment = Deployment(
            name=name,
            spec=DeploymentSpec(model=ModelSource(path="family/model.gguf"), replicas=replicas, **spec),
            engine="llama_cpp",
            engine_version="1",
            created_at=datetime.now(UTC),
            timings=timings,
        )
        self.started.append(ids.deployment_workflow(name))
        with self.environment.with_time_skipping_disabled():
            await self.client.start_workflow(
                DeploymentWorkflow.run,
                deployment,
                id=ids.deployment_workflow(name),
                task_queue=self.queue,
                static_summary=f"{name}: model.gguf",
            )
        await self.until(lambda: name in self.fleet.deployments, "projection")
        return name

    async def deploy_ready(self, replicas: int = 1, **more: Any) -> str:
        name = await self.deploy(replicas, **more)
        await self.until_ready(name, replicas)
        return name

    def deployment(self, name: str) -> WorkflowHandle[DeploymentWorkflow, None]:
        return self.client.get_workflow_handle_for(DeploymentWorkflow.run, ids.deployment_workflow(name))

    async def change(self, name: str, **wanted: Any) -> int:
        """The accepted generation."""
        accepted = await self.deployment(name).execute_update(DeploymentWorkflow.change, DeploymentChange(**wanted))
        return accepted.generation

    async def scale(self, name: str, replicas: int) -> int:
        spec = self.fleet.deployments[name].spec
        return await self.change(name, spec=spec.model_copy(update={"replicas": replicas}))

    async def delete(self, name: str) -> None:
        await self.deployment(name).execute_update(DeploymentWorkflow.delete)

    async def until_ready(self, name: str, replicas: int = 1) -> None:
        """Phase ready with exactly so many instances, all of them serving."""

        def ready() -> bool:
            instances = self.fleet.of(name)
            served = [i for i in instances if i.state is InstanceState.READY]
            return self.fleet.phase_of(name) == "ready" and len(served) == len(instances) == replicas

        await self.until(ready, f"{name} ready with {replicas}")

    async def until_phase(self, name: str, phase: str) -> None:
        await self.until(lambda: self.fleet.phase_of(name) == phase, f"{name} {phase}")

    async def until_gone(self, name: str) -> None:
        """Its workflow has ended and nothing is left of it in the projections."""
        await asyncio.wait_for(self.deployment(name).result(), WITHIN_S)
        assert name not in self.fleet.deployments
        assert self.fleet.of(name) == []

    # -- defragmentations -------------------------------------------------------------------------------------

    async def defragment(self, name: str, timings: Timings = QUICK) -> WorkflowHandle[DefragmentWorkflow, str]:
        workflow_id = ids.defragment_workflow(name)
        self.started.append(workflow_id)
        with self.environment.with_time_skipping_disabled():
            return await self.client.start_workflow(
                DefragmentWorkflow.run,
                Defragmentation(deployment=name, started_at=datetime.now(UTC), timings=timings),
                id=workflow_id,
                task_queue=self.queue,
                static_summary=f"make room for {name}",
            )

    # -- batches ----------------------------------------------------------------------------------------------

    async def batch(
        self, timings: Timings = QUICK, *, lasts: timedelta = COMPLETION_WINDOW
    ) -> WorkflowHandle[BatchWorkflow, str]:
        """One that is worked off by ``batcher``."""
        if self._batches is None:
            await self._start_batches()
        batch_id = f"batch_{uuid4().hex}"
        workflow_id = ids.batch_workflow(batch_id)
        self.started.append(workflow_id)
        at = datetime.now(UTC)
        with self.environment.with_time_skipping_disabled():
            return await self.client.start_workflow(
                BatchWorkflow.run,
                Batch(
                    batch_id=batch_id,
                    endpoint="/v1/chat/completions",
                    created_at=at,
                    expires_at=at + lasts,
                    timings=timings,
                ),
                id=workflow_id,
                task_queue=self.queue,
                static_summary=batch_id,
            )

    async def _start_batches(self) -> None:
        b = self.batcher
        self._batches = Worker(
            self.client,
            task_queue=ids.batch_queue(self.queue),
            activities=[b.validate_batch, b.run_batch_window, b.assemble_batch, b.clear_batch],
            identity=f"{IDENTITY}-controller",
            # A heartbeat that comes later than a cancellation would be no use to a test.
            max_heartbeat_throttle_interval=timedelta(milliseconds=20),
            default_heartbeat_throttle_interval=timedelta(milliseconds=20),
        )
        await self._batches.__aenter__()

    async def _stop_batches(self) -> None:
        if self._batches is not None:
            await self._batches.__aexit__(None, None, None)
            self._batches = None

    # -- instances --------------------------------------------------------------------------------------------

    async def run_instance(self, *, timings: Timings = QUICK, **fields: Any) -> WorkflowHandle[InstanceWorkflow, None]:
        """One without a deployment. Its clock can be moved."""
        instance_id = f"solo/1-{uuid4().hex[:8]}"
        spec = EngineSpec(engine="llama_cpp", engine_version="1", model_path="family/model.gguf", served_name="solo")
        instance = Instance(
            instance_id=instance_id, deployment="solo", slot=1, revision=1, launch=1, spec=spec, timings=timings
        )
        self.started.append(ids.instance_workflow(instance_id))
        with self.environment.with_time_skipping_disabled():
            return await self.client.start_workflow(
                InstanceWorkflow.run,
                instance.with_(**fields),
                id=ids.instance_workflow(instance_id),
                task_queue=self.queue,
            )

    def instance(self, instance_id: str) -> WorkflowHandle[InstanceWorkflow, None]:
        return self.client.get_workflow_handle_for(InstanceWorkflow.run, ids.instance_workflow(instance_id))

    def recorded(self, handle: Handle) -> Instance | None:
        """The projection of an instance, by the handle of its workflow."""
        return self.fleet.instances.get(handle.id.removeprefix("instance/"))

    async def until_state(self, handle: Handle, state: InstanceState) -> Instance:
        def in_state() -> Instance | None:
            known = self.recorded(handle)
            return known if known is not None and known.state is state else None

        return await self.until(in_state, f"{handle.id} {state}")

    async def until_engine(self, handle: Handle, fence: int) -> FakeEngine:
        """An engine that was started under this fence, wherever."""
        instance_id = handle.id.removeprefix("instance/")

        def found() -> FakeEngine | None:
            engines = [e for h in self.hosts for e in h.engines]
            return next((e for e in engines if (e.launch.instance_id, e.launch.fence) == (instance_id, fence)), None)

        return await self.until(found, f"engine with fence {fence}")

    def live_engines(self, name: str) -> list[FakeEngine]:
        return [e for h in self.hosts for e in h.live if e.launch.deployment == name]

    async def fast_forward(self, handle: Handle, by: timedelta) -> None:
        await self.environment.fast_forward(handle, by)
