"""A deployment: its durable state, and what changes it. Pure."""

from datetime import datetime

from fleet.instances import InstanceNews
from fleet.model import Record
from fleet.policy.canary import Reading
from fleet.rollouts import (
    Rollout,
    Stage,
    Steer,
    Steering,
    Template,
    after_bake,
    bake,
    begin,
    going_back,
    judged,
    promoted,
)
from fleet.specs import DeploymentSpec
from fleet.states import InstanceState
from fleet.timings import Timings

_KEYS_KEPT = 32


class InstanceView(Record):
    """What a deployment knows of one of its instances."""

    instance_id: str
    slot: int
    launch: int
    state: InstanceState = InstanceState.PENDING
    message: str = ""
    hint: str = ""
    unplaceable: bool = False
    stopping: bool = False
    leaving: bool = False
    """To be replaced on a person's word: goes when another one is ready."""
    leave_by: datetime | None = None
    leave_reason: str = ""


class Deployment(Record):
    """State of a ``DeploymentWorkflow``, carried over continue-as-new."""

    schema_version: int = 1
    name: str
    labels: dict[str, str] = {}
    spec: DeploymentSpec
    """With the values of ``env`` sealed."""
    engine_version: str
    """Resolved when the revision was accepted, so that later defaults do not change what runs."""
    engine: str
    created_at: datetime
    create_key: str = ""
    """Idempotency key of the request that made it."""
    run_id: str = ""
    """First run of the workflow that it was before Temporal lost it (``fleet.resync``): its rows stay its own."""
    change_keys: dict[str, int] = {}
    """Idempotency keys of the last changes, oldest first, with the generation that each led to."""

    generation: int = 1
    """Grows with every accepted change; the ETag."""
    revision: int = 1
    """The one that is wanted. A new one for every change that needs new engines."""
    newest_revision: int = 1
    launch: int = 1
    """The one that is wanted. A new one for every revision and every restart."""
    newest_launch: int = 1
    cause: str = "created"
    """Of the current revision, for people."""
    proven: bool = False
    """All replicas of the current launch have been ready at the same time."""
    rollout: Rollout | None = None
    given_up: "GivenUp | None" = None
    """The last revision that was gone back from, until the next change."""
    stopped: bool = False
    deleting: bool = False
    instances: dict[str, InstanceView] = {}
    projection: int = 0
    timings: Timings = Timings()

    def with_(self, **changes: object) -> "Deployment":
        return self.model_copy(update=changes)

    @property
    def desired(self) -> int:
        return 0 if self.stopped or self.deleting else self.spec.replicas

    @property
    def template(self) -> Template:
        """What the engines of the current launch are made from."""
        return Template(
            revision=self.revision,
            launch=self.launch,
            spec=self.spec,
            engine=self.engine,
            engine_version=self.engine_version,
        )


class GivenUp(Record):
    revision: int
    outcome: str
    """``failed`` or ``aborted``."""
    reason: str
    hint: str = ""


class DeploymentChange(Record):
    """A person's intent, as a level. What is None stays as it is."""

    spec: DeploymentSpec | None = None
    labels: dict[str, str] | None = None
    engine: str | None = None
    engine_version: str | None = None
    stopped: bool | None = None
    restart_of: int | None = None
    """Replace the engines of this launch; asking twice for the same one restarts once."""
    if_generation: int | None = None
    """Refuse unless the deployment is still at this generation."""
    cause: str = ""
    """Of the new revision, for people; empty: changed."""
    key: str = ""
    """Idempotency key of the request: the same again changes nothing."""


class InstancesLeave(Record):
    """Replace these instances: first the new ones are ready, then the old ones go. A level; twice is once."""

    instance_ids: tuple[str, ...]
    reason: str
    by: datetime | None = None
    """From then on they go even though their replacements are not ready; None: they wait."""
    stay: bool = False
    """Not any more: those that were to leave for this reason, and are still there, stay."""


class Accepted(Record):
    """Answer to a change: what the API waits for in the projection."""

    generation: int


def needs_new_engines(old: DeploymentSpec, new: DeploymentSpec) -> bool:
    """Whether instances of ``old`` must be replaced to satisfy ``new``."""
    about_us = {"replicas": new.replicas, "rollout": new.rollout, "restart": new.restart}
    return old.model_copy(update=about_us) != new


# -- what people want -------------------------------------------------------------------------------------------------


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


def _with_spec(d: Deployment, wanted: DeploymentChange, spec: DeploymentSpec, now: datetime) -> Deployment:
    engine, version = wanted.engine or d.engine, wanted.engine_version or d.engine_version
    if not needs_new_engines(d.spec, spec):
        return d.with_(spec=spec)
    stable = d.rollout.stable if d.rollout is not None else None
    made_of = (engine, version)
    if stable is not None and not needs_new_engines(stable.spec, spec) and made_of == _made_of(stable):
        back = _back(d, GivenUp(revision=d.revision, outcome="aborted", reason="the change was taken back"), now)
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
            changed = _back(d, GivenUp(revision=d.revision, outcome="aborted", reason="by a person"), now)
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


def _back(d: Deployment, why: GivenUp, now: datetime) -> Deployment:
    """Towards what worked before the rollout in progress. Replicas of it that still run go on."""
    rollout = d.rollout
    if rollout is None or rollout.stable is None:
        return d
    stable = rollout.stable
    note = f"revision {why.revision} {why.outcome}: {why.reason}"
    return d.with_(
        spec=stable.spec.model_copy(
            update={"replicas": d.spec.replicas, "rollout": d.spec.rollout, "restart": d.spec.restart}
        ),
        engine=stable.engine,
        engine_version=stable.engine_version,
        revision=stable.revision,
        launch=stable.launch,
        cause=note,
        given_up=why,
        proven=True,
        rollout=going_back(rollout, d.launch, note, now),
    )


# -- what happens -----------------------------------------------------------------------------------------------------


def hear(d: Deployment, news: InstanceNews) -> Deployment:
    """Take in what an instance said; the same object when it is no news. An instance that is gone is forgotten."""
    known = d.instances.get(news.instance_id)
    if known is None:
        return d
    if news.gone:
        # Its room is free: who found none before has to look again before anybody else makes room.
        rest = {k: v.model_copy(update={"unplaceable": False}) for k, v in d.instances.items() if k != news.instance_id}
        return d.with_(instances=rest)
    update = {
        "state": news.state,
        "message": news.message,
        "hint": news.hint,
        "unplaceable": news.unplaceable,
    }
    told = known.model_copy(update=update)
    return d if told == known else d.with_(instances={**d.instances, known.instance_id: told})


def advance(d: Deployment, now: datetime) -> Deployment:
    """Move the rollout on as far as what is known allows; the same object when there is nothing to move."""
    live = [i for i in d.instances.values() if not i.stopping]
    if d.rollout is None:
        return _settle(d, live, now)
    if d.rollout.paused:
        return d
    if (failed := _failed(d, live)) is not None:
        return _fail(d, failed, now)
    d = _make_room(d, d.rollout, live, now)
    rollout = d.rollout
    if rollout is None:
        return d
    new = [i for i in live if i.launch == d.launch and not i.leaving]
    ready = sum(i.state is InstanceState.READY for i in new)
    if rollout.stage is Stage.TRYING:
        tried = d.desired if rollout.strategy == "blue_green" else min(d.spec.rollout.canary.replicas, d.desired)
        return d.with_(rollout=bake(rollout, d.spec.rollout, now)) if ready >= tried else d
    if rollout.stage is Stage.BAKING:
        baked = after_bake(rollout, d.spec.rollout, now)
        return d if baked is rollout else d.with_(rollout=baked)
    if rollout.stage is Stage.REPLACING and ready >= d.desired and all(i.launch == d.launch for i in live):
        return d.with_(rollout=None, proven=True)
    return d


def look(d: Deployment, launch: int, old: Reading, new: Reading, now: datetime) -> Deployment:
    """What gateways counted for the old and the new launch; the same object when that is of no use any more."""
    rollout = d.rollout
    if rollout is None or rollout.stage is not Stage.BAKING or d.launch != launch or rollout.paused:
        return d
    looked, bad = judged(rollout, (old, new), d.spec.rollout, d.timings.canary_checks, now)
    d = d.with_(rollout=looked)
    if not bad:
        return d
    if d.spec.rollout.on_failure == "pause":
        return d.with_(rollout=looked.with_(paused=True, note=f"paused: {bad}"))
    return _back(d, GivenUp(revision=d.revision, outcome="failed", reason=bad), now)


def _settle(d: Deployment, live: list[InstanceView], now: datetime) -> Deployment:
    if d.desired and any(i.launch != d.launch for i in live):
        return d.with_(rollout=begin(d.spec.rollout, None, now))  # left over from a rollout that was cut short
    ready = sum(i.state is InstanceState.READY and i.launch == d.launch for i in live)
    return d.with_(proven=True) if d.desired and ready >= d.desired and not d.proven else d


def _failed(d: Deployment, live: list[InstanceView]) -> InstanceView | None:
    """A new replica that has failed for good."""
    rollout = d.rollout
    if rollout is None or rollout.back or rollout.stable is None:
        return None
    new = (i for i in live if i.launch == d.launch and not i.leaving and i.instance_id != rollout.blamed)
    return next((i for i in new if i.state is InstanceState.FAILED), None)


def _fail(d: Deployment, failed: InstanceView, now: datetime) -> Deployment:
    why = f"{failed.instance_id}: {failed.message}"
    if d.spec.rollout.on_failure == "pause" and d.rollout is not None:
        return d.with_(rollout=d.rollout.with_(paused=True, blamed=failed.instance_id, note=f"paused: {why}"))
    return _back(d, GivenUp(revision=d.revision, outcome="failed", reason=why, hint=failed.hint), now)


def _make_room(d: Deployment, rollout: Rollout, live: list[InstanceView], now: datetime) -> Deployment:
    """Let an old replica go first when there is no room for a new one beside it."""
    new = [i for i in live if i.launch == d.launch]
    old = [i for i in live if i.launch != d.launch]
    leaving = any(i.stopping for i in d.instances.values())  # then there will be room in a moment
    if not old or leaving or not any(i.unplaceable and i.state is InstanceState.PENDING for i in new):
        return d if rollout.no_room_since is None else d.with_(rollout=rollout.with_(no_room_since=None))
    if rollout.no_room_since is None:
        return d.with_(rollout=rollout.with_(no_room_since=now))
    if now - rollout.no_room_since < d.timings.surge_patience or rollout.dip >= d.desired:
        return d
    dip = rollout.dip + 1
    note = f"no room for new replicas beside the old ones: recreating, {dip} at a time"
    return d.with_(rollout=rollout.with_(dip=dip, no_room_since=None, note=note))
