"""The one module through which the API speaks to workflows."""

import asyncio
import contextlib
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.client import Client, WorkflowUpdateFailedError, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from fleet import ids
from fleet.deployments import Accepted, Deployment, DeploymentChange
from fleet.errors import Conflict, HoldfastError, NotFound, PreconditionFailed, Unavailable
from fleet.hosts import Host, HostRegistered
from fleet.instances import EngineReport
from fleet.inventory import EngineRef

T = TypeVar("T")

_PATIENCE_S = 8.0
_RPC = timedelta(seconds=5)


class WorkflowClient:
    """Every method raises Unavailable while Temporal (or every controller) is down; then nothing is lost, just late."""

    def __init__(self, client: Client) -> None:
        self._client = client

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
            static_summary=f"{deployment.name}: {deployment.spec.model.path.rsplit('/', 1)[-1]}",
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

    async def delete_deployment(self, name: str) -> Accepted:
        return await self._update(ids.deployment_workflow(name), ids.DELETE_UPDATE, what=f"deployment {name!r}")

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

    async def register_host(self, registered: HostRegistered) -> None:
        """Start the host's workflow if there is none, and tell it that the host is here."""
        host = Host(host_id=registered.host_id, name=registered.name)
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

    async def _update(self, workflow_id: str, update: str, *args: Any, what: str) -> Accepted:
        handle = self._client.get_workflow_handle(workflow_id)
        running = handle.execute_update(
            update, args=args, result_type=Accepted, rpc_timeout=timedelta(seconds=_PATIENCE_S)
        )
        try:
            return await _patiently(running, what=what)
        except WorkflowUpdateFailedError as failed:
            raise _refusal(failed) from failed


async def _patiently(call: Awaitable[T], what: str = "") -> T:
    """``call``, with what can go wrong put into words."""
    try:
        return await asyncio.wait_for(call, _PATIENCE_S)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and what:
            raise NotFound(f"there is no {what}", hint="it may have been deleted; list what there is") from error
        raise _unavailable(str(error)) from error
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError, RuntimeError) as error:
        raise _unavailable(f"no answer within {_PATIENCE_S:.0f} s; is a controller running?") from error


def _unavailable(why: str) -> Unavailable:
    return Unavailable(
        f"Temporal does not take changes now: {why}",
        hint="models go on serving; try again in a moment, or see `holdfast doctor`",
    )


def _refusal(failed: WorkflowUpdateFailedError) -> HoldfastError:
    cause = failed.cause
    kind = cause.type if isinstance(cause, ApplicationError) else None
    if kind == "GenerationMoved":
        return PreconditionFailed(str(cause), hint="GET it again and repeat the change on what it is now")
    if kind == "Deleting":
        return Conflict(str(cause), hint="wait until it is gone, then create it again")
    if kind == "AcceptedUpdateCompletedWorkflow":
        return NotFound("it ended while being changed", hint="list what there is")
    return Unavailable(f"the change was not taken: {cause}", hint="try again")
