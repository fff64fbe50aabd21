"""Questions that one entity has about others."""

import asyncio

from sqlmodel import Session
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.contracts import FleetContract, HostId, InstanceId, InstanceIds
from activities.waiting import WaitingInstances
from fleet import ids
from fleet.db import claims, projections
from fleet.db.session import Database

_EVERY_FENCE = 1 << 62


class FleetActivities(FleetContract):
    def __init__(self, database: Database, client: Client, waiting: WaitingInstances) -> None:
        self._database = database
        self._client = client
        self._waiting = waiting

    @activity.defn(name="instances_on_host")
    async def instances_on_host(self, host: HostId) -> InstanceIds:
        found = await self._database.aread(lambda s: claims.instances_on(s, host.host_id))
        return InstanceIds(instance_ids=tuple(found))

    @activity.defn(name="ended_instances")
    async def ended_instances(self, candidates: InstanceIds) -> InstanceIds:
        ended = await asyncio.gather(*map(self._has_ended, candidates.instance_ids))
        return InstanceIds(instance_ids=tuple(i for i, e in zip(candidates.instance_ids, ended, strict=True) if e))

    @activity.defn(name="announce_capacity")
    async def announce_capacity(self) -> None:
        await self._waiting.wake()

    @activity.defn(name="clean_up_instance")
    async def clean_up_instance(self, instance: InstanceId) -> None:
        def clean(session: Session) -> None:
            # Its engine may still run: the host stops it as unknown and then confirms that the memory is free.
            claims.give_up(session, instance.instance_id, _EVERY_FENCE)
            projections.forget_instance(session, instance.instance_id)

        await self._database.awrite(clean)

    async def _has_ended(self, instance_id: str) -> bool:
        handle = self._client.get_workflow_handle(ids.instance_workflow(instance_id))
        try:
            found = await handle.describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return True
            raise
        running = (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW)
        return found.status not in running
