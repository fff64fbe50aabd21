"""Rows that workflows write about themselves, each guarded so that an old one never replaces a newer one."""

from sqlalchemy import delete
from sqlmodel import Session, col, select

from fleet.db import nominations, registry
from fleet.db import traffic as counted_traffic
from fleet.db.tables import DefragmentationRow, DeploymentRow, EndpointRow, InstanceRow, now
from fleet.deployment_status import message, phase, ready_replicas, rollout_view, traffic
from fleet.deployments import Deployment
from fleet.instances import Instance
from fleet.resync import durable_deployment
from fleet.states import EndpointState, InstanceState


def record_deployment(session: Session, row: DeploymentRow) -> bool:
    """Insert or replace. False when a newer projection is there already."""
    known = session.get(DeploymentRow, row.name, with_for_update=True)
    if known is not None and known.run_id == row.run_id and known.projection >= row.projection:
        return False
    if known is not None and known.run_id != row.run_id and known.created_at > row.created_at:
        return False
    row.updated_at = now()
    gateways_care = known is None or _for_gateways(known) != _for_gateways(row)
    session.merge(row)
    if gateways_care:
        registry.bump(session)
    return True


def _for_gateways(row: DeploymentRow) -> tuple[object, ...]:
    """What they must hear of at once; the phase is only words in a refusal."""
    return row.traffic, row.desired_replicas == 0


def forget_deployment(session: Session, name: str, run_id: str) -> None:
    """Delete the row, unless a new deployment of that name has taken it over."""
    gone = session.execute(
        delete(DeploymentRow).where(col(DeploymentRow.name) == name, col(DeploymentRow.run_id) == run_id)
    )
    if gone.rowcount:  # type: ignore[attr-defined]
        counted_traffic.forget(session, name)
        session.execute(delete(DefragmentationRow).where(col(DefragmentationRow.deployment) == name))
        registry.bump(session)


def record_instance(session: Session, row: InstanceRow, capacity: int) -> bool:
    """Insert or replace, and publish, drain or withdraw its endpoint with it. False when a newer one is there."""
    known = session.get(InstanceRow, row.id, with_for_update=True)
    if known is not None and known.projection >= row.projection:
        return False
    row.created_at = known.created_at if known else now()
    row.updated_at = now()
    session.merge(row)
    _publish(session, row, capacity)
    return True


def forget_instance(session: Session, instance_id: str) -> None:
    session.execute(delete(InstanceRow).where(col(InstanceRow.id) == instance_id))
    nominations.gone(session, instance_id)
    gone = session.execute(delete(EndpointRow).where(col(EndpointRow.instance_id) == instance_id))
    if gone.rowcount:  # type: ignore[attr-defined]
        registry.bump(session)


_ROUTED = {
    InstanceState.READY: EndpointState.READY,
    InstanceState.SUSPECT: EndpointState.SUSPECT,
    InstanceState.DRAINING: EndpointState.DRAINING,
}


def _publish(session: Session, row: InstanceRow, capacity: int) -> None:
    state = _ROUTED.get(InstanceState(row.state))
    known = session.exec(select(EndpointRow).where(EndpointRow.instance_id == row.id)).first()
    if state is None or row.endpoint is None:
        if known is not None:
            session.delete(known)
            registry.bump(session)
        return
    wanted = EndpointRow(
        instance_id=row.id,
        deployment=row.deployment,
        model=row.deployment,
        url=row.endpoint,
        fence=row.fence,
        state=state,
        capacity=capacity,
        launch=row.launch,
        host_id=row.host_id,
    )
    if known is None or known.model_dump() != wanted.model_dump():
        session.merge(wanted)
        registry.bump(session)


def deployment_row(d: Deployment, run_id: str) -> DeploymentRow:
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
        rollout=rollout_view(d),
        traffic=traffic(d),
        message=text,
        hint=hint,
        stopped=d.stopped,
        durable=durable_deployment(d),
        create_key=d.create_key,
        run_id=run_id,
        projection=d.projection,
        created_at=d.created_at,
    )


def instance_row(instance: Instance) -> InstanceRow:
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
        durable=instance.model_dump(mode="json"),
        projection=instance.projection,
    )
