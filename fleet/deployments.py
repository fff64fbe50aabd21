"""A deployment: its durable state and what to do to make it true. Pure."""

from datetime import datetime

from fleet.instances import InstanceNews
from fleet.model import Record
from fleet.specs import DeploymentSpec
from fleet.states import DeploymentPhase, InstanceState
from fleet.timings import Timings


class InstanceView(Record):
    """What a deployment knows of one of its instances."""

    instance_id: str
    slot: int
    launch: int
    state: InstanceState = InstanceState.PENDING
    message: str = ""
    hint: str = ""
    stopping: bool = False


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

    generation: int = 1
    """Grows with every accepted change; the ETag."""
    revision: int = 1
    """Grows with every change that needs new engines."""
    launch: int = 1
    """Grows with every revision and every restart."""
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


class InstancesLeave(Record):
    """Replace these instances: first the new ones are ready, then the old ones go. A level; twice is once."""

    instance_ids: tuple[str, ...]
    reason: str
    by: datetime | None = None
    """From then on they go even though their replacements are not ready; None: they wait."""


class Accepted(Record):
    """Answer to a change: what the API waits for in the projection."""

    generation: int


class Plan(Record):
    """What to do next. ``start`` are slots, ``stop`` are instance ids."""

    start: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    done: bool = False
    """Nothing is left and nothing is wanted: the workflow may end."""

    def __str__(self) -> str:
        parts = [
            f"start {len(self.start)}" if self.start else "",
            f"stop {', '.join(self.stop)}" if self.stop else "",
        ]
        return "; ".join(p for p in parts if p) or ("end" if self.done else "nothing to do")


def needs_new_engines(old: DeploymentSpec, new: DeploymentSpec) -> bool:
    """Whether instances of ``old`` must be replaced to satisfy ``new``."""
    return old.model_copy(update={"replicas": new.replicas}) != new


def change(deployment: Deployment, wanted: DeploymentChange) -> Deployment:
    """The deployment after an accepted change; the same object when nothing changes."""
    changed = deployment
    if wanted.labels is not None:
        changed = changed.with_(labels=wanted.labels)
    if wanted.stopped is not None:
        changed = changed.with_(stopped=wanted.stopped)
    if wanted.spec is not None:
        versions = {
            "engine": wanted.engine or changed.engine,
            "engine_version": wanted.engine_version or changed.engine_version,
        }
        moved = needs_new_engines(changed.spec, wanted.spec)
        changed = changed.with_(spec=wanted.spec)
        if moved:
            changed = changed.with_(revision=changed.revision + 1, launch=changed.launch + 1, **versions)
    if wanted.restart_of is not None and wanted.restart_of == changed.launch:
        changed = changed.with_(launch=changed.launch + 1)
    if changed == deployment:
        return deployment
    return changed.with_(generation=deployment.generation + 1)


def hear(deployment: Deployment, news: InstanceNews) -> Deployment:
    """Take in what an instance said; the same object when it is no news. An instance that is gone is forgotten."""
    known = deployment.instances.get(news.instance_id)
    if known is None:
        return deployment
    rest = {k: v for k, v in deployment.instances.items() if k != news.instance_id}
    if news.gone:
        return deployment.with_(instances=rest)
    update = {"state": news.state, "message": news.message, "hint": news.hint}
    told = known.model_copy(update=update)
    return (
        deployment if told == known else deployment.with_(instances={**deployment.instances, known.instance_id: told})
    )


def decide(deployment: Deployment) -> Plan:
    """What brings the instances nearer to what is desired. Applying it and deciding again converges.

    Instances of an older launch are replaced one at a time, and only while all newer ones are ready,
    so that at most one replica is missing; those that do not serve anyway go at once.
    """
    live = [i for i in deployment.instances.values() if not i.stopping]
    current = sorted((i for i in live if i.launch == deployment.launch), key=_most_expendable_first)
    outdated = sorted((i for i in live if i.launch != deployment.launch), key=_most_expendable_first)
    surplus = max(0, len(current) + len(outdated) - deployment.desired)

    stop = [*outdated, *current][:surplus]
    stop_ids = {i.instance_id for i in stop}
    outdated = [i for i in outdated if i.instance_id not in stop_ids]
    current = [i for i in current if i.instance_id not in stop_ids]
    replaced = _replaceable(deployment, current, outdated)
    outdated = outdated[len(replaced) :]

    missing = deployment.desired - len(current) - len(outdated)
    return Plan(
        start=_free_slots(deployment, max(0, missing)),
        stop=tuple(i.instance_id for i in [*stop, *replaced]),
        done=deployment.deleting and not deployment.instances,
    )


def _most_expendable_first(i: InstanceView) -> tuple[bool, int]:
    return (i.state is InstanceState.READY, -i.slot)


def _replaceable(
    deployment: Deployment, current: list[InstanceView], outdated: list[InstanceView]
) -> list[InstanceView]:
    idle = [i for i in outdated if i.state not in _SERVING]
    if idle or not outdated:
        return idle
    settled = all(i.state is InstanceState.READY for i in current)
    leaving = any(i.stopping for i in deployment.instances.values())
    return outdated[:1] if settled and not leaving else []


def _free_slots(deployment: Deployment, count: int) -> tuple[int, ...]:
    used = {i.slot for i in deployment.instances.values()}
    free = (n for n in range(1, len(used) + count + 1) if n not in used)
    return tuple(n for n, _ in zip(free, range(count), strict=False))


def ready_replicas(deployment: Deployment) -> int:
    return sum(i.state is InstanceState.READY and not i.stopping for i in deployment.instances.values())


def phase(deployment: Deployment) -> DeploymentPhase:
    live = [i for i in deployment.instances.values() if not i.stopping]
    ready = ready_replicas(deployment)
    if deployment.deleting:
        return DeploymentPhase.DELETING
    if deployment.desired == 0:
        return DeploymentPhase.STOPPED if not deployment.instances else DeploymentPhase.DEPLOYING
    if ready >= deployment.desired:
        settled = all(i.launch == deployment.launch for i in live)
        return DeploymentPhase.READY if settled else DeploymentPhase.DEPLOYING
    if live and all(i.state is InstanceState.FAILED for i in live):
        return DeploymentPhase.FAILED
    if any(i.state in _TROUBLED for i in live):
        return DeploymentPhase.DEGRADED
    if ready == 0 and all(i.state in _WAITING for i in live):
        return DeploymentPhase.PENDING
    return DeploymentPhase.DEPLOYING


_SERVING = {InstanceState.READY, InstanceState.SUSPECT}
_TROUBLED = {InstanceState.RECOVERING, InstanceState.SUSPECT, InstanceState.FAILED}
_WAITING = {InstanceState.PENDING, InstanceState.PLACING}


def message(deployment: Deployment) -> tuple[str, str]:
    """(message, hint) for people: the worst instance speaks for all."""
    ready = f"{ready_replicas(deployment)} of {deployment.desired} replicas ready"
    order = [InstanceState.FAILED, InstanceState.RECOVERING, InstanceState.SUSPECT, InstanceState.PENDING]
    for state in order:
        for i in deployment.instances.values():
            if i.state is state and i.message and not i.stopping:
                return f"{ready}; {i.instance_id} {i.state}: {i.message}", i.hint
    return ready, ""


def describe(deployment: Deployment) -> str:
    """Markdown for an operator who has only the Temporal UI."""
    text, hint = message(deployment)
    lines = [f"**{phase(deployment)}**: {text}"]
    if hint:
        lines.append(f"Hint: {hint}")
    lines.append(f"Revision {deployment.revision}, generation {deployment.generation}. Next: {decide(deployment)}")
    rows = [
        f"| `{i.instance_id}` | {'stopping, ' if i.stopping else ''}{i.state} | {i.message} |"
        for i in sorted(deployment.instances.values(), key=lambda i: i.slot)[:50]
    ]
    if rows:
        lines.append("\n".join(["| instance | state | |", "|---|---|---|", *rows]))
    return "\n\n".join(lines)
