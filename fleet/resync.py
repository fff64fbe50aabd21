"""What the database knows of each entity, as the state that its workflow goes on with. Pure.

For a Temporal that has lost its data: every workflow begins anew with what it last wrote about itself, which is what
it would have carried over when it went on as new. What the ledger of claims says is believed before that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fleet.db.tables import ClaimRow, DeploymentRow, HostRow, InstanceRow
from fleet.deployments import Deployment, InstanceView, hear
from fleet.engines.derive import engine_spec
from fleet.hosts import Host
from fleet.instances import Instance, InstanceNews, news_of
from fleet.placement.request import Placement
from fleet.specs import DeploymentSpec
from fleet.states import ClaimState, DeploymentPhase, HostState, InstanceState

_RUNS_SOMEWHERE = {
    InstanceState.DOWNLOADING,
    InstanceState.STARTING,
    InstanceState.READY,
    InstanceState.SUSPECT,
    InstanceState.DRAINING,
}
_MARKS = frozenset(InstanceView.model_fields) - frozenset(Instance.model_fields) - frozenset(InstanceNews.model_fields)
"""What only the deployment itself knows of an instance (that a person wants it replaced, say)."""


@dataclass(frozen=True)
class Rows:
    """All that is recorded, read in one transaction."""

    hosts: Sequence[HostRow]
    deployments: Sequence[DeploymentRow]
    instances: Sequence[InstanceRow]
    claims: Sequence[ClaimRow]


@dataclass(frozen=True)
class Revived:
    """An instance as it goes on."""

    instance: Instance
    give_up_to: int
    """Claims of this fence and older ones are not its own any more."""


def durable_deployment(deployment: Deployment) -> dict[str, Any]:
    """For its row: all but the instances, which have rows of their own; of those only what nobody else knows."""
    kept = deployment.model_dump(mode="json", exclude={"instances"})
    marks = {
        view.instance_id: marked
        for view in deployment.instances.values()
        if (marked := view.model_dump(mode="json", include=set(_MARKS), exclude_defaults=True))
    }
    return kept | {"marks": marks}


def host_of(row: HostRow) -> Host | None:
    """None: it has joined, but never registered, so there was no workflow.

    A suspect host is given the time of a new one: while nobody held its lease it could not prove that it lives.
    """
    if row.projection == 0:
        return None
    host = Host.model_validate(row.durable) if row.durable else _host_of_old(row)
    if host.state is HostState.SUSPECT:
        host = host.with_(state=HostState.READY, message="")
    return host.with_(projection=max(host.projection, row.projection), registrations=max(host.registrations, 1))


def _host_of_old(row: HostRow) -> Host:
    """Of a row that was written before whole states were kept."""
    state = HostState(row.state)
    return Host(
        host_id=row.id,
        name=row.name,
        state=state,
        message=row.message,
        registrations=1,
        registrations_when_lost=int(state is HostState.LOST),
    )


def instance_of(row: InstanceRow, owner: DeploymentRow, claims: Iterable[ClaimRow], lost: set[str]) -> Revived:
    """``claims``: all of this instance. ``lost``: hosts whose instances are to be placed elsewhere.

    It keeps its place only if the ledger says so too, and no newer placement was begun; else it is placed anew
    under a higher fence than any that was ever used.
    """
    ledger = list(claims)
    instance = Instance.model_validate(row.durable) if row.durable else _instance_of_old(row, owner, ledger)
    fence = max([instance.fence, row.fence, *(c.fence for c in ledger)])
    revived = instance.with_(fence=fence, projection=max(instance.projection, row.projection))
    placement = instance.placement
    mine = [c for c in ledger if c.fence == fence and c.state != ClaimState.RELEASING]
    held = placement is not None and mine and lost.isdisjoint(placement.hosts)
    if held and fence == instance.fence:
        return Revived(revived, fence - 1)
    return Revived(_without_place(revived), fence)


def _without_place(instance: Instance) -> Instance:
    if instance.placement is None and instance.state not in _RUNS_SOMEWHERE:
        return instance
    where = f"host {instance.placement.host_id}" if instance.placement is not None else "a host"
    return instance.with_(
        state=InstanceState.RECOVERING,
        message=f"lost its place on {where}",
        hint="",
        progress=None,
        placement=None,
        endpoint=None,
        pid=None,
        ready_since=None,
        retry_at=None,
    )


def _instance_of_old(row: InstanceRow, owner: DeploymentRow, ledger: list[ClaimRow]) -> Instance:
    """Of a row that was written before whole states were kept."""
    deployment = _deployment_of_old(owner)
    held = next((c.placement for c in ledger if c.fence == row.fence and c.host_id == row.host_id), None)
    return Instance(
        instance_id=row.id,
        deployment=row.deployment,
        slot=row.slot,
        revision=row.revision,
        launch=row.launch,
        spec=engine_spec(owner.name, deployment.template),
        restart=deployment.spec.restart,
        state=InstanceState(row.state),
        message=row.message,
        hint=row.hint,
        progress=row.progress,
        placement=Placement.model_validate(held) if held else None,
        fence=row.fence,
        endpoint=row.endpoint,
        pid=row.pid,
        restarts=row.restarts,
        stopping=row.state in (InstanceState.DRAINING, InstanceState.STOPPED),
    )


def deployment_of(row: DeploymentRow, instances: Iterable[Instance]) -> Deployment:
    """With what its instances would tell it now."""
    kept = dict(row.durable)
    marks: dict[str, Any] = kept.pop("marks", {})
    deployment = Deployment.model_validate(kept) if kept else _deployment_of_old(row)
    told = list(instances)
    views = {i.instance_id: _view(i, marks.get(i.instance_id, {})) for i in told}
    deployment = deployment.with_(
        instances=views, projection=max(deployment.projection, row.projection), run_id=row.run_id
    )
    for instance in told:
        deployment = hear(deployment, news_of(instance))
    return deployment


def _view(instance: Instance, marks: dict[str, Any]) -> InstanceView:
    # Whether it is being stopped is for the instance to say: the deployment's word may not have reached it.
    own = {
        "instance_id": instance.instance_id,
        "slot": instance.slot,
        "launch": instance.launch,
        "stopping": instance.stopping,
    }
    return InstanceView.model_validate(marks | own)


def _deployment_of_old(row: DeploymentRow) -> Deployment:
    """Of a row that was written before whole states were kept."""
    return Deployment(
        name=row.name,
        labels=row.labels,
        spec=DeploymentSpec.model_validate(row.spec),
        engine=row.engine,
        engine_version=row.engine_version,
        created_at=row.created_at,
        create_key=row.create_key,
        generation=row.generation,
        revision=row.revision,
        newest_revision=row.revision,
        launch=row.launch,
        newest_launch=row.launch,
        proven=row.phase == DeploymentPhase.READY,
        stopped=row.stopped,
        deleting=row.phase == DeploymentPhase.DELETING,
    )


def lost_hosts(hosts: Iterable[HostRow], placed_on: Iterable[str | None]) -> set[str]:
    """Those of ``placed_on`` that are forgotten, or lost and would not tell their instances any more."""
    there = {h.id for h in hosts if h.state != HostState.LOST or _has_yet_to_tell(h)}
    return {host_id for host_id in placed_on if host_id is not None} - there


def _has_yet_to_tell(row: HostRow) -> bool:
    return row.replacement_paused or bool(row.durable.get("untold"))


def is_gone(deployment: Deployment) -> bool:
    """Deleted, and nothing is left of it but its row."""
    return deployment.deleting and not deployment.instances


def stale_claims(revived: Iterable[Revived], claims: Iterable[ClaimRow]) -> list[tuple[str, int]]:
    """(instance, fence): what is to be given up, with all older ones, before the instances go on."""
    limits = {r.instance.instance_id: r.give_up_to for r in revived}
    held = [c for c in claims if c.state != ClaimState.RELEASING and c.fence <= limits.get(c.instance_id, -1)]
    return [(instance_id, limits[instance_id]) for instance_id in sorted({c.instance_id for c in held})]
