"""Who waits for claims to be given back: instances without room, and hosts that are being emptied."""

import asyncio
from collections.abc import Iterable

from sqlmodel import Session, col, select
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from fleet import ids
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, InstanceRow
from fleet.policy.priority import USUAL, rank
from fleet.states import InstanceState

_AT_ONCE = 20
"""Woken by one change; each that finds room leaves the rest for the next, and all ask again by themselves."""


class WaitingInstances:
    def __init__(self, database: Database, client: Client) -> None:
        self._database = database
        self._client = client

    async def wake(self) -> None:
        waiting = await self._database.aread(_most_urgent)
        await asyncio.gather(*(self._signal(ids.instance_workflow(i), ids.CAPACITY_SIGNAL) for i in waiting))

    async def tell_hosts(self, host_ids: Iterable[str]) -> None:
        """Claims on them were given back. A hint: they look by themselves, too."""
        await asyncio.gather(*(self._signal(ids.host_workflow(h), ids.CLAIMS_CHANGED_SIGNAL) for h in host_ids))

    async def _signal(self, workflow_id: str, signal: str) -> None:
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            await handle.signal(signal)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:  # it has ended: nobody waits
                raise


def _most_urgent(session: Session) -> list[str]:
    """Those of the highest priority first, of these the oldest."""
    level = DeploymentRow.spec["priority"]["level"].as_string()
    query = (
        select(InstanceRow.id, InstanceRow.created_at, level)
        .join(DeploymentRow, col(DeploymentRow.name) == col(InstanceRow.deployment), isouter=True)
        .where(InstanceRow.state == InstanceState.PENDING)
    )
    waiting = [(-rank(of or USUAL), since, instance_id) for instance_id, since, of in session.exec(query).all()]
    return [instance_id for _, _, instance_id in sorted(waiting)[:_AT_ONCE]]
