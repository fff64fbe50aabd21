"""What workflows write about themselves."""

from sqlmodel import Session
from temporalio import activity

from activities.contracts import DeploymentName, DeploymentRecord, InstanceId, ProjectionContract, Recorded
from fleet.db import claims, hosts, projections
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, InstanceRow
from fleet.deployments import message, phase, ready_replicas
from fleet.engines.catalog import resolve
from fleet.hosts import Host
from fleet.instances import Instance


class ProjectionActivities(ProjectionContract):
    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn(name="record_deployment")
    async def record_deployment(self, record: DeploymentRecord) -> None:
        await self._database.awrite(lambda s: projections.record_deployment(s, _deployment_row(record)))

    @activity.defn(name="forget_deployment")
    async def forget_deployment(self, name: DeploymentName) -> None:
        await self._database.awrite(lambda s: projections.forget_deployment(s, name.name, name.run_id))

    @activity.defn(name="record_instance")
    async def record_instance(self, instance: Instance) -> Recorded:
        capacity = instance.spec.concurrency or resolve(instance.spec.engine).default_concurrency

        def write(session: Session) -> Recorded:
            projections.record_instance(session, _instance_row(instance), capacity)
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
            lambda s: hosts.record_state(s, host.host_id, host.state, host.message, host.projection)
        )


def _deployment_row(record: DeploymentRecord) -> DeploymentRow:
    d = record.deployment
    text, hint = message(d)
    return DeploymentRow(
        name=d.name,
        labels=d.labels,
        spec=d.spec.model_dump(mode="json"),
        engine=d.engine,
        engine_version=d.engine_version,
        generation=d.generation,
        revision=d.revision,
        launch=d.launch,
        phase=phase(d),
        desired_replicas=d.desired,
        ready_replicas=ready_replicas(d),
        message=text,
        hint=hint,
        stopped=d.stopped,
        create_key=d.create_key,
        run_id=record.run_id,
        projection=d.projection,
        created_at=d.created_at,
    )


def _instance_row(instance: Instance) -> InstanceRow:
    placement = instance.placement
    return InstanceRow(
        id=instance.instance_id,
        deployment=instance.deployment,
        revision=instance.revision,
        launch=instance.launch,
        slot=instance.slot,
        state=instance.state,
        host_id=placement.host_id if placement else None,
        gpu_uuids=list(placement.gpu_uuids) if placement else [],
        memory_bytes=placement.memory_bytes if placement else 0,
        endpoint=instance.endpoint,
        pid=instance.pid,
        fence=instance.fence,
        restarts=instance.restarts,
        message=instance.message,
        hint=instance.hint,
        progress=instance.progress,
        projection=instance.projection,
    )
