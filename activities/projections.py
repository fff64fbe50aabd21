"""What workflows write about themselves."""

from datetime import UTC, datetime

from sqlmodel import Session
from temporalio import activity

from activities.contracts import DeploymentName, DeploymentRecord, InstanceId, ProjectionContract, Recorded
from fleet.db import claims, hosts, projections, recorded, revisions, start_facts
from fleet.db.session import Database
from fleet.engines.catalog import resolve
from fleet.hosts import Host
from fleet.instances import Instance


class ProjectionActivities(ProjectionContract):
    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn(name="record_deployment")
    async def record_deployment(self, record: DeploymentRecord) -> None:
        def write(session: Session) -> None:
            row = projections.deployment_row(record.deployment, record.run_id)
            if projections.record_deployment(session, row):
                revisions.record(session, record.deployment, record.run_id)

        await self._database.awrite(write)

    @activity.defn(name="forget_deployment")
    async def forget_deployment(self, name: DeploymentName) -> None:
        await self._database.awrite(lambda s: recorded.forget_deployment(s, name.name, name.run_id))

    @activity.defn(name="record_instance")
    async def record_instance(self, instance: Instance) -> Recorded:
        sizing = instance.placement.sizing if instance.placement is not None else None
        told = sizing.sequences if sizing is not None else instance.spec.concurrency
        capacity = told or resolve(instance.spec.engine).default_concurrency

        def write(session: Session) -> Recorded:
            if projections.record_instance(session, projections.instance_row(instance), capacity):
                start_facts.note(session, instance, datetime.now(UTC))
            if instance.placement is None:
                return Recorded()
            return Recorded(claim_lost=not claims.bind(session, instance.instance_id, instance.fence))

        return await self._database.awrite(write)

    @activity.defn(name="forget_instance")
    async def forget_instance(self, instance: InstanceId) -> None:
        await self._database.awrite(lambda s: projections.forget_instance(s, instance.instance_id))

    @activity.defn(name="record_host")
    async def record_host(self, host: Host) -> None:
        await self._database.awrite(
            lambda s: hosts.record_state(
                s,
                host.host_id,
                host.state,
                host.summary,
                host.projection,
                lost_at=host.lost_at,
                replacement_paused=host.replacement_paused,
                maintenance=host.maintenance,
                maintenance_message=host.maintenance_message,
                durable=host.model_dump(mode="json"),
            )
        )
