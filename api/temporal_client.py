"""The one module through which the API speaks to workflows."""

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from fleet import ids
from fleet.batches import Batch, CancelBatch, PauseBatch
from fleet.defragmentations import Defragmentation, StopDefragmenting
from fleet.deployments import Accepted, Deployment, DeploymentChange, InstancesLeave, Wake
from fleet.errors import Conflict, HoldfastError, NotFound, PreconditionFailed, Unavailable
from fleet.hosts import Host, HostRegistered, Maintain
from fleet.instances import EngineReport, Instance, InstanceNews
from fleet.inventory import EngineRef
from fleet.rollouts import Steer
from fleet.temporal import ensure_search_attributes
from fleet.temporal_server import SEARCH_ATTRIBUTES
from fleet.timings import Timings

T = TypeVar("T")

_PATIENCE_S = 8.0
_NOT_FOUND = "it may have been deleted; list what there is. If it is there, Temporal has lost it: `holdfast resync`"
_RPC = timedelta(seconds=5)
_LOOKS_AT_ONCE = 32


class WorkflowClient:
    """Every method raises Unavailable while Temporal (or every controller) is down; then nothing is lost, just late."""

    def __init__(self, client: Client, timings: Timings | None = None) -> None:
        """``timings``: of the hosts that register from now on."""
        self._client = client
        self._timings = timings or Timings()

    async def reachable(self) -> bool:
        try:
            return await asyncio.wait_for(self._client.service_client.check_health(timeout=timedelta(seconds=2)), 3)
        except (TimeoutError, RPCError, RuntimeError):
            return False

    async def create_deployment(self, deployment: Deployment) -> None:
        """Raises Conflict when the name is taken."""
        start = self._client.start_workflow(
            ids.DEPLOYMENT_WORKFLOW,
            deployment,
            id=ids.deployment_workflow(deployment.name),
            task_queue=ids.CONTROL_QUEUE,
            task_timeout=ids.WORKFLOW_TASK_TIMEOUT,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            static_summary=_summary(deployment),
            rpc_timeout=_RPC,
        )
        try:
            await _patiently(start)
        except WorkflowAlreadyStartedError:
            raise Conflict(
                f"a deployment named {deployment.name!r} exists already",
                field="name",
                hint="choose another name, change the existing one with PATCH, or delete it first",
            ) from None

    async def change_deployment(self, name: str, change: DeploymentChange) -> Accepted:
        return await self._update(ids.deployment_workflow(name), ids.CHANGE_UPDATE, change, what=f"deployment {name!r}")

    async def steer_rollout(self, name: str, steer: Steer) -> Accepted:
        return await self._update(ids.deployment_workflow(name), ids.STEER_UPDATE, steer, what=f"deployment {name!r}")

    async def wake_deployment(self, name: str, replicas: int = 1) -> None:
        """Start so many replicas if it is to have none; nothing happens when it is to have some.

        Raises Conflict when it must not be woken (stopped, being deleted, not set so), and NotFound.
        """
        wanted = Wake(replicas=replicas)
        with contextlib.suppress(_Awake):
            await self._update(ids.deployment_workflow(name), ids.WAKE_UPDATE, wanted, what=f"deployment {name!r}")

    async def delete_deployment(self, name: str) -> Accepted:
        return await self._update(ids.deployment_workflow(name), ids.DELETE_UPDATE, what=f"deployment {name!r}")

    async def approve_retry(self, instance_id: str) -> Accepted:
        """Raises Conflict when it has not failed."""
        return await self._update(
            ids.instance_workflow(instance_id), ids.APPROVE_RETRY_UPDATE, what=f"instance {instance_id!r}"
        )

    async def report_engine(self, report: EngineReport) -> None:
        """Raises NotFound when the instance's workflow has ended."""
        handle = self._client.get_workflow_handle(ids.instance_workflow(report.instance_id))
        signal = handle.signal(ids.ENGINE_REPORTED_SIGNAL, report, rpc_timeout=_RPC)
        await _patiently(signal, what=f"instance {report.instance_id!r}")

    async def engine_unknown(self, engine: EngineRef) -> None:
        """Its host knows nothing of it. Nothing happens when the instance has ended."""
        handle = self._client.get_workflow_handle(ids.instance_workflow(engine.instance_id))
        signal = handle.signal(ids.ENGINE_UNKNOWN_SIGNAL, engine, rpc_timeout=_RPC)
        with contextlib.suppress(NotFound):
            await _patiently(signal, what=f"instance {engine.instance_id!r}")

    async def register_host(self, registered: HostRegistered, known: Host | None = None) -> None:
        """Start the host's workflow if there is none, and tell it that the host is here.

        ``known``: how the host was before, for a workflow that Temporal has lost.
        """
        host = known or Host(host_id=registered.host_id, name=registered.name, timings=self._timings)
        started = self._client.start_workflow(
            ids.HOST_WORKFLOW,
            host,
            id=ids.host_workflow(registered.host_id),
            task_queue=ids.CONTROL_QUEUE,
            task_timeout=ids.WORKFLOW_TASK_TIMEOUT,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"host {registered.name}",
            rpc_timeout=_RPC,
        )
        await _patiently(started)
        await self._update(
            ids.host_workflow(registered.host_id),
            ids.REGISTER_UPDATE,
            registered,
            what=f"host {registered.host_id!r}",
        )

    async def forget_host(self, host_id: str) -> None:
        await self._update(ids.host_workflow(host_id), ids.FORGET_UPDATE, what=f"host {host_id!r}")

    async def maintain_host(self, host_id: str, level: Maintain) -> Accepted:
        return await self._update(ids.host_workflow(host_id), ids.MAINTAIN_UPDATE, level, what=f"host {host_id!r}")

    async def approve_replacement(self, host_id: str) -> Accepted:
        """Raises Conflict when nothing waits for it."""
        return await self._update(ids.host_workflow(host_id), ids.APPROVE_REPLACEMENT_UPDATE, what=f"host {host_id!r}")

    async def replace_instances(self, deployment: str, leave: InstancesLeave) -> Accepted:
        workflow_id = ids.deployment_workflow(deployment)
        return await self._update(workflow_id, ids.LEAVE_UPDATE, leave, what=f"deployment {deployment!r}")

    async def defragment(self, wanted: Defragmentation) -> None:
        """Nothing happens when one runs for the deployment already."""
        started = self._client.start_workflow(
            ids.DEFRAGMENT_WORKFLOW,
            wanted,
            id=ids.defragment_workflow(wanted.deployment),
            task_queue=ids.CONTROL_QUEUE,
            task_timeout=ids.WORKFLOW_TASK_TIMEOUT,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"make room for {wanted.deployment}",
            rpc_timeout=_RPC,
        )
        await _patiently(started)

    async def stop_defragmenting(self, deployment: str, wanted: StopDefragmenting) -> Accepted:
        what = f"defragmentation for {deployment!r}"
        return await self._update(ids.defragment_workflow(deployment), ids.STOP_DEFRAGMENTING_UPDATE, wanted, what=what)

    async def start_batch(self, batch: Batch) -> bool:
        """False, and nothing happens, when its workflow runs."""
        workflow_id = ids.batch_workflow(batch.batch_id)
        return await self._take_up(ids.BATCH_WORKFLOW, batch, workflow_id, f"{batch.batch_id}: {batch.endpoint}")

    async def cancel_batch(self, batch_id: str, wanted: CancelBatch) -> Accepted:
        return await self._update(
            ids.batch_workflow(batch_id), ids.CANCEL_BATCH_UPDATE, wanted, what=f"batch {batch_id!r}"
        )

    async def pause_batch(self, batch_id: str, level: PauseBatch) -> Accepted:
        return await self._update(
            ids.batch_workflow(batch_id), ids.PAUSE_BATCH_UPDATE, level, what=f"batch {batch_id!r}"
        )

    # -- for workflows that Temporal has lost (``api.resync``) -------------------------------------------------

    async def prepare(self) -> None:
        """What workflows need of a Temporal that is empty."""
        await _patiently(ensure_search_attributes(self._client, SEARCH_ATTRIBUTES))

    async def missing(self, workflow_ids: Iterable[str]) -> set[str]:
        """Those of ``workflow_ids`` that do not run: they ended, were terminated, or never were."""
        turn = asyncio.Semaphore(_LOOKS_AT_ONCE)

        async def look(workflow_id: str) -> str | None:
            async with turn:
                return None if await self._runs(workflow_id) else workflow_id

        found = await asyncio.gather(*map(look, workflow_ids))
        return {workflow_id for workflow_id in found if workflow_id is not None}

    async def take_up_host(self, host: Host) -> bool:
        """False, and nothing happens, when its workflow runs. So for all three."""
        workflow_id = ids.host_workflow(host.host_id)
        return await self._take_up(ids.HOST_WORKFLOW, host, workflow_id, f"host {host.name}")

    async def take_up_instance(self, instance: Instance) -> bool:
        workflow_id = ids.instance_workflow(instance.instance_id)
        summary = f"replica {instance.slot} of {instance.deployment}, revision {instance.revision}"
        return await self._take_up(ids.INSTANCE_WORKFLOW, instance, workflow_id, summary)

    async def take_up_deployment(self, deployment: Deployment) -> bool:
        workflow_id = ids.deployment_workflow(deployment.name)
        return await self._take_up(ids.DEPLOYMENT_WORKFLOW, deployment, workflow_id, _summary(deployment))

    async def instances_of(self, deployment: str) -> set[str]:
        """Those that its workflow knows; none when there is no such workflow."""
        handle = self._client.get_workflow_handle(ids.deployment_workflow(deployment))
        asked = handle.query("state", result_type=Deployment, rpc_timeout=_RPC)
        try:
            return set((await _patiently(asked, what=f"deployment {deployment!r}")).instances)
        except NotFound:
            return set()
        except WorkflowQueryFailedError as error:
            raise _unavailable(str(error)) from error

    async def tell_deployment(self, deployment: str, news: InstanceNews) -> None:
        """Nothing happens when it has ended."""
        handle = self._client.get_workflow_handle(ids.deployment_workflow(deployment))
        with contextlib.suppress(NotFound):
            await _patiently(handle.signal(ids.INSTANCE_NEWS_SIGNAL, news, rpc_timeout=_RPC), what="deployment")

    async def tell_host_lost(self, instance_id: str, host_id: str) -> None:
        """Nothing happens when it has ended."""
        handle = self._client.get_workflow_handle(ids.instance_workflow(instance_id))
        with contextlib.suppress(NotFound):
            await _patiently(handle.signal(ids.HOST_LOST_SIGNAL, host_id, rpc_timeout=_RPC), what="instance")

    async def _runs(self, workflow_id: str) -> bool:
        described = self._client.get_workflow_handle(workflow_id).describe(rpc_timeout=_RPC)
        try:
            return (await _patiently(described, what=workflow_id)).status is WorkflowExecutionStatus.RUNNING
        except NotFound:
            return False

    async def _take_up(
        self, workflow: str, state: Host | Instance | Deployment | Batch, workflow_id: str, summary: str
    ) -> bool:
        start = self._client.start_workflow(
            workflow,
            state,
            id=workflow_id,
            task_queue=ids.CONTROL_QUEUE,
            task_timeout=ids.WORKFLOW_TASK_TIMEOUT,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            static_summary=summary,
            rpc_timeout=_RPC,
        )
        try:
            await _patiently(start)
        except WorkflowAlreadyStartedError:
            return False
        return True

    async def _update(self, workflow_id: str, update: str, *args: Any, what: str) -> Accepted:
        handle = self._client.get_workflow_handle(workflow_id)
        running = handle.execute_update(
            update, args=args, result_type=Accepted, rpc_timeout=timedelta(seconds=_PATIENCE_S)
        )
        try:
            return await _patiently(running, what=what)
        except WorkflowUpdateFailedError as failed:
            raise _refusal(failed) from failed


def _summary(deployment: Deployment) -> str:
    return f"{deployment.name}: {deployment.spec.model.display}"


async def _patiently(call: Awaitable[T], what: str = "") -> T:
    """``call``, with what can go wrong put into words."""
    try:
        return await asyncio.wait_for(call, _PATIENCE_S)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and what:
            raise NotFound(f"there is no {what}", hint=_NOT_FOUND) from error
        raise _unavailable(str(error)) from error
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError, RuntimeError) as error:
        raise _unavailable(f"no answer within {_PATIENCE_S:.0f} s; is a controller running?") from error


def _unavailable(why: str) -> Unavailable:
    return Unavailable(
        f"Temporal does not take changes now: {why}",
        hint="models go on serving; try again in a moment, or see `holdfast doctor`",
    )


class _Awake(Conflict):
    """It is to have replicas already."""


def _refusal(failed: WorkflowUpdateFailedError) -> HoldfastError:
    cause = failed.cause
    kind = cause.type if isinstance(cause, ApplicationError) else None
    if kind == "GenerationMoved":
        return PreconditionFailed(str(cause), hint="GET it again and repeat the change on what it is now")
    if kind == "NotFailed":
        return Conflict(str(cause), hint="only a failed instance waits for approval; the others go on by themselves")
    if kind == "Deleting":
        return Conflict(str(cause), hint="wait until it is gone, then create it again")
    if kind == "Awake":
        return _Awake(str(cause))
    if kind in ("Stopped", "NotWoken"):
        return Conflict(str(cause), hint="start it: `holdfast scale`, or POST …/start")
    if kind == "NothingToApprove":
        return Conflict(str(cause), hint="`holdfast status` says what waits for approval")
    if kind == "UnknownInstance":
        return NotFound(str(cause), hint="it may have been replaced meanwhile; list what there is")
    if kind == "CannotSteer":
        return Conflict(str(cause), hint="see `status.rollout` of the deployment")
    if kind == "AcceptedUpdateCompletedWorkflow":
        return NotFound("it ended while being changed", hint="list what there is")
    return Unavailable(f"the change was not taken: {cause}", hint="try again")
