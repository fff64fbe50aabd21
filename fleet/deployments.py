"""A deployment: its durable state, and what changes it. Pure."""

from datetime import datetime

from fleet.instances import InstanceNews
from fleet.model import Record
from fleet.policy.canary import Reading
from fleet.rollouts import (
    Rollout,
    Stage,
    Template,
    after_bake,
    bake,
    begin,
    going_back,
    judged,
)
from fleet.specs import DeploymentSpec
from fleet.states import InstanceState
from fleet.timings import Timings

ABOUT_REPLICAS = ("replicas", "rollout", "restart", "priority", "autoscaling")
"""Fields of a spec that no engine is made from: a change of them holds at once, and going back leaves them alone."""


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


class Wake(Record):
    """Somebody asks for a model that has no replicas. A level: all who ask while it has none want the same."""

    replicas: int = 1


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
    return go_back(d, GivenUp(revision=d.revision, outcome="failed", reason=bad), now)


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
    return go_back(d, GivenUp(revision=d.revision, outcome="failed", reason=why, hint=failed.hint), now)


_ON_THEIR_WAY = {InstanceState.DOWNLOADING, InstanceState.STARTING}


def _make_room(d: Deployment, rollout: Rollout, live: list[InstanceView], now: datetime) -> Deployment:
    """Let an old replica go first when there is no room for a new one beside it."""
    new = [i for i in live if i.launch == d.launch]
    old = [i for i in live if i.launch != d.launch]
    leaving = any(i.stopping for i in d.instances.values())  # then there will be room in a moment
    coming = any(i.state in _ON_THEIR_WAY for i in new)  # then there will be one replica more, and an old one can go
    if not old or leaving or coming or not any(i.unplaceable and i.state is InstanceState.PENDING for i in new):
        return d if rollout.no_room_since is None else d.with_(rollout=rollout.with_(no_room_since=None))
    if rollout.no_room_since is None:
        return d.with_(rollout=rollout.with_(no_room_since=now))
    if now - rollout.no_room_since < d.timings.surge_patience or rollout.dip >= d.desired:
        return d
    dip = rollout.dip + 1
    note = f"no room for new replicas beside the old ones: recreating, {dip} at a time"
    return d.with_(rollout=rollout.with_(dip=dip, no_room_since=None, note=note))


def go_back(d: Deployment, why: GivenUp, now: datetime) -> Deployment:
    """Towards what worked before the rollout in progress. Replicas of it that still run go on."""
    rollout = d.rollout
    if rollout is None or rollout.stable is None:
        return d
    stable = rollout.stable
    note = f"revision {why.revision} {why.outcome}: {why.reason}"
    return d.with_(
        spec=stable.spec.model_copy(update={name: getattr(d.spec, name) for name in ABOUT_REPLICAS}),
        engine=stable.engine,
        engine_version=stable.engine_version,
        revision=stable.revision,
        launch=stable.launch,
        cause=note,
        given_up=why,
        proven=True,
        rollout=going_back(rollout, d.launch, note, now),
    )
