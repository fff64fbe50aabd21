"""Questions that one entity has about others."""

import asyncio

from sqlmodel import Session, col, select
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.contracts import FleetContract, HostId, InstanceId, InstanceIds, Occupants
from activities.waiting import WaitingInstances
from fleet import ids
from fleet.db import claims, recorded
from fleet.db.session import Database
from fleet.db.tables import InstanceRow
from fleet.states import InstanceState


class FleetActivities(FleetContract):
    def __init__(self, database: Database, client: Client, waiting: WaitingInstances) -> None:
        self._database = database
        self._client = client
        self._waiting = waiting

    @activity.defn(name="instances_on_host")
    async def instances_on_host(self, host: HostId) -> Occupants:
        return await self._database.aread(lambda s: _occupants(s, host.host_id))

    @activity.defn(name="ended_instances")
    async def ended_instances(self, candidates: InstanceIds) -> InstanceIds:
        ended = await asyncio.gather(*map(self._has_ended, candidates.instance_ids))
        return InstanceIds(instance_ids=tuple(i for i, e in zip(candidates.instance_ids, ended, strict=True) if e))

    @activity.defn(name="announce_capacity")
    async def announce_capacity(self) -> None:
        await self._waiting.wake()

    @activity.defn(name="clean_up_instance")
    async def clean_up_instance(self, instance: InstanceId) -> None:
        def clean(session: Session) -> list[str]:
            hosts = claims.maintained_hosts_of(session, instance.instance_id)
            recorded.clean_up_instance(session, instance.instance_id)
            return hosts

        await self._waiting.tell_hosts(await self._database.awrite(clean))

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


_HELD_UP = (InstanceState.FAILED, InstanceState.RECOVERING, InstanceState.PENDING)
"""Worst first."""


def _occupants(session: Session, host_id: str) -> Occupants:
    here = claims.instances_on(session, host_id)
    deployments = {instance_id.rpartition("/")[0] for instance_id in here}
    query = select(InstanceRow).where(col(InstanceRow.deployment).in_(deployments), col(InstanceRow.id).not_in(here))
    held_up = [i for i in session.exec(query.where(col(InstanceRow.state).in_(_HELD_UP))).all() if i.message]
    worst = min(held_up, key=lambda i: (_HELD_UP.index(InstanceState(i.state)), i.id), default=None)
    obstacle = f"{worst.id} is {worst.state}: {worst.message}" if worst else ""
    return Occupants(instance_ids=tuple(here), obstacle=obstacle)
