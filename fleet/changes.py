"""What people may want of a deployment, and what it becomes by it. Pure."""

from datetime import datetime

from fleet.deployments import (
    ABOUT_REPLICAS,
    Accepted,
    Deployment,
    DeploymentChange,
    GivenUp,
    InstancesLeave,
    Wake,
    go_back,
)
from fleet.rollouts import Rollout, Stage, Steer, Steering, Template, begin, promoted
from fleet.specs import MAX_REPLICAS, DeploymentSpec
from fleet.states import InstanceState

_KEYS_KEPT = 32


def needs_new_engines(old: DeploymentSpec, new: DeploymentSpec) -> bool:
    """Whether instances of ``old`` must be replaced to satisfy ``new``."""
    about_us = {name: getattr(new, name) for name in ABOUT_REPLICAS}
    return old.model_copy(update=about_us) != new


def change(d: Deployment, wanted: DeploymentChange, now: datetime) -> Deployment:
    """The deployment after an accepted change; the same object when nothing changes."""
    if wanted.key and wanted.key in d.change_keys:
        return d
    changed = d
    if wanted.labels is not None:
        changed = changed.with_(labels=wanted.labels)
    if wanted.stopped is not None:
        changed = changed.with_(stopped=wanted.stopped)
    if wanted.spec is not None:
        changed = _with_spec(changed, wanted, wanted.spec, now)
    if wanted.restart_of is not None and wanted.restart_of == changed.launch:
        changed = _launched(changed, begin(changed.spec.rollout, _stable(changed), now, restart=True))
    if changed.desired == 0:
        changed = changed.with_(rollout=None)  # all go; whatever comes next starts from nothing
    if changed == d:
        return d
    if changed.given_up is d.given_up:
        changed = changed.with_(given_up=None)  # has been seen
    return _accepted(changed, wanted.key)


def why_not_woken(d: Deployment) -> tuple[str, str]:
    """(kind of error, reason) for which a request does not start replicas now; both empty if it does."""
    if d.deleting:
        return "Deleting", f"{d.name} is being deleted"
    if d.desired:
        return "Awake", f"{d.name} is to have {d.desired} replicas already"
    if d.stopped:
        return "Stopped", f"{d.name} was stopped by a person"
    if not d.spec.autoscaling.wake_on_request:
        return "NotWoken", f"spec.autoscaling.wake_on_request of {d.name} is off"
    return "", ""


def wake(d: Deployment, wanted: Wake, now: datetime) -> Deployment:
    """As if a person had set ``spec.replicas``; the same object when it is no time for it."""
    if why_not_woken(d)[0]:
        return d
    replicas = min(max(wanted.replicas, 1), MAX_REPLICAS)
    return change(d, DeploymentChange(spec=d.spec.model_copy(update={"replicas": replicas})), now)


def _with_spec(d: Deployment, wanted: DeploymentChange, spec: DeploymentSpec, now: datetime) -> Deployment:
    engine, version = wanted.engine or d.engine, wanted.engine_version or d.engine_version
    if not needs_new_engines(d.spec, spec):
        return d.with_(spec=spec)
    stable = d.rollout.stable if d.rollout is not None else None
    made_of = (engine, version)
    if stable is not None and not needs_new_engines(stable.spec, spec) and made_of == _made_of(stable):
        back = go_back(d, GivenUp(revision=d.revision, outcome="aborted", reason="the change was taken back"), now)
        return back.with_(spec=spec)
    rollout = begin(spec.rollout, _stable(d), now)
    moved = d.with_(
        spec=spec,
        engine=engine,
        engine_version=version,
        revision=d.newest_revision + 1,
        newest_revision=d.newest_revision + 1,
        cause=wanted.cause or "changed",
    )
    return _launched(moved, rollout)


def _made_of(template: Template) -> tuple[str, str]:
    return template.engine, template.engine_version


def _stable(d: Deployment) -> Template | None:
    """What to go back to when what comes next does not work."""
    if d.proven:
        return d.template
    return d.rollout.stable if d.rollout is not None else None


def _launched(d: Deployment, rollout: Rollout) -> Deployment:
    launch = d.newest_launch + 1
    return d.with_(launch=launch, newest_launch=launch, proven=False, rollout=rollout)


def _accepted(d: Deployment, key: str) -> Deployment:
    generation = d.generation + 1
    keys = dict([*d.change_keys.items(), (key, generation)][-_KEYS_KEPT:]) if key else d.change_keys
    return d.with_(generation=generation, change_keys=keys)


def accepted(d: Deployment, key: str) -> Accepted:
    """The answer to a change that has been taken in, or was before under the same key."""
    return Accepted(generation=d.change_keys.get(key, d.generation) if key else d.generation)


def why_not(d: Deployment, steer: Steer) -> str:
    """Why a rollout cannot be steered so now; empty if it can."""
    rollout = d.rollout
    if steer.key and steer.key in d.change_keys:
        return ""
    if rollout is None:
        return "no rollout is in progress"
    match steer.action:
        case Steering.ABORT if rollout.stable is None:
            return "there is no revision that worked to go back to"
        case Steering.PROMOTE if not rollout.beside:
            return f"the rollout is {rollout.stage} already"
        case Steering.PROMOTE if rollout.strategy == "blue_green" and rollout.stage is Stage.TRYING:
            return "the new replicas are not all ready yet"
    return ""


def steer(d: Deployment, wanted: Steer, now: datetime) -> Deployment:
    """After a person's word on the rollout in progress; the same object when that changes nothing."""
    rollout = d.rollout
    if rollout is None or (wanted.key and wanted.key in d.change_keys):
        return d
    match wanted.action:
        case Steering.PAUSE:
            changed = d.with_(rollout=rollout.with_(paused=True, note="paused by a person"))
        case Steering.RESUME:
            changed = _resumed(d, rollout)
        case Steering.PROMOTE:
            changed = d.with_(rollout=promoted(rollout, "promoted by a person").with_(paused=False))
        case Steering.ABORT:
            changed = go_back(d, GivenUp(revision=d.revision, outcome="aborted", reason="by a person"), now)
    return d if changed == d or (rollout.paused and wanted.action is Steering.PAUSE) else _accepted(changed, wanted.key)


def _resumed(d: Deployment, rollout: Rollout) -> Deployment:
    """What had failed meanwhile is tried anew."""
    if not rollout.paused:
        return d
    instances = {
        k: v.model_copy(update={"leaving": True}) if v.launch == d.launch and v.state is InstanceState.FAILED else v
        for k, v in d.instances.items()
    }
    return d.with_(rollout=rollout.with_(paused=False, blamed="", note=""), instances=instances)


def leave(d: Deployment, wanted: InstancesLeave) -> Deployment:
    """Mark instances to be replaced, or not to be; the same object when nothing changes. Those that are gone do not
    matter."""
    instances = dict(d.instances)
    mark = {"leaving": not wanted.stay, "leave_by": wanted.by, "leave_reason": "" if wanted.stay else wanted.reason}
    for instance_id in wanted.instance_ids:
        known = instances.get(instance_id)
        if known is not None and (not wanted.stay or known.leave_reason == wanted.reason):
            instances[instance_id] = known.model_copy(update=mark)
    return d if instances == d.instances else d.with_(instances=instances, generation=d.generation + 1)
