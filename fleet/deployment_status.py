"""How a deployment is, in words and numbers. Pure."""

from datetime import datetime

from fleet.deployments import Deployment
from fleet.replicas import decide
from fleet.rollouts import Rollout, Stage
from fleet.states import DeploymentPhase, InstanceState


def ready_replicas(d: Deployment) -> int:
    return sum(i.state is InstanceState.READY and not i.stopping for i in d.instances.values())


def phase(d: Deployment) -> DeploymentPhase:
    live = [i for i in d.instances.values() if not i.stopping]
    ready = ready_replicas(d)
    if d.deleting:
        return DeploymentPhase.DELETING
    if d.desired == 0:
        return DeploymentPhase.STOPPED if not d.instances else DeploymentPhase.DEPLOYING
    if ready >= d.desired:
        settled = d.rollout is None and all(i.launch == d.launch and not i.leaving for i in live)
        return DeploymentPhase.READY if settled else DeploymentPhase.DEPLOYING
    if live and all(i.state is InstanceState.FAILED for i in live):
        return DeploymentPhase.FAILED
    if any(i.state in _TROUBLED for i in live):
        return DeploymentPhase.DEGRADED
    if ready == 0 and all(i.state in _WAITING for i in live):
        return DeploymentPhase.PENDING
    return DeploymentPhase.DEPLOYING


_TROUBLED = {InstanceState.RECOVERING, InstanceState.SUSPECT, InstanceState.FAILED}
_WAITING = {InstanceState.PENDING, InstanceState.PLACING}


def message(d: Deployment) -> tuple[str, str]:
    """(message, hint) for people: the worst instance speaks for all, then the rollout."""
    parts = [f"{ready_replicas(d)} of {d.desired} replicas ready"]
    if d.rollout is not None:
        parts.append(rollout_text(d, d.rollout))
    hint = ""
    if d.given_up is not None:
        hint = d.given_up.hint
        if d.rollout is None:
            why = f"revision {d.given_up.revision} {d.given_up.outcome}: {d.given_up.reason}"
            parts.append(f"went back to revision {d.revision} because {why}")
    order = [InstanceState.FAILED, InstanceState.RECOVERING, InstanceState.SUSPECT, InstanceState.PENDING]
    for state in order:
        worst = next((i for i in d.instances.values() if i.state is state and i.message and not i.stopping), None)
        if worst is not None:
            parts.append(f"{worst.instance_id} {worst.state}: {worst.message}")
            hint = worst.hint or hint
            break
    return "; ".join(parts), hint


def rollout_text(d: Deployment, rollout: Rollout) -> str:
    live = [i for i in d.instances.values() if not i.stopping]
    new = sum(i.launch == d.launch and i.state is InstanceState.READY for i in live)
    what = "going back to" if rollout.back else "rolling out"
    how = "recreate" if rollout.dip and rollout.strategy == "rolling" else rollout.strategy
    stage = "paused" if rollout.paused else str(rollout.stage)
    text = f"{what} revision {d.revision} ({how}, {stage}, {new} of {d.desired} new)"
    return f"{text}: {rollout.note}" if rollout.note else text


def rollout_view(d: Deployment) -> dict[str, object] | None:
    """The rollout in progress as the API shows it."""
    r = d.rollout
    if r is None:
        return None
    live = [i for i in d.instances.values() if not i.stopping]
    new = [i for i in live if i.launch == d.launch]
    return {
        "strategy": r.strategy,
        "mode": "recreate" if r.dip or r.strategy == "recreate" else "surge",
        "stage": str(r.stage),
        "paused": r.paused,
        "rolling_back": r.back,
        "revision": d.revision,
        "from_revision": r.stable.revision if r.stable else None,
        "new_replicas": len(new),
        "new_ready_replicas": sum(i.state is InstanceState.READY for i in new),
        "old_replicas": len(live) - len(new),
        "note": r.note,
        "started_at": r.started_at.isoformat(),
        "bake_until": r.bake_until.isoformat() if r.bake_until else None,
    }


def traffic(d: Deployment) -> dict[str, int]:
    """Weights by launch for the gateways; empty: requests are spread over all replicas."""
    r = d.rollout
    if r is None:
        return {}
    if r.shunned is not None:
        return {str(d.launch): 100, str(r.shunned): 0}
    if r.stable is None:
        return {}
    new, old = str(d.launch), str(r.stable.launch)
    if r.strategy == "blue_green":
        return {new: 0, old: 100} if r.stage is Stage.TRYING else {new: 100, old: 0}
    weight = d.spec.rollout.canary.weight
    if r.strategy == "canary" and r.beside and weight is not None:
        return {new: weight, old: 100 - weight}
    return {}


def outcome(d: Deployment) -> str:
    """Of the current revision."""
    return "live" if d.proven else "rolling out"


def describe(d: Deployment, now: datetime) -> str:
    """Markdown for an operator who has only the Temporal UI."""
    text, hint = message(d)
    lines = [f"**{phase(d)}**: {text}"]
    if hint:
        lines.append(f"Hint: {hint}")
    lines.append(f"Revision {d.revision}, generation {d.generation}. Next: {decide(d, now)}")
    rows = [
        f"| `{i.instance_id}` | {i.launch} | {_how(i.stopping, i.leaving)}{i.state} | {i.message} |"
        for i in sorted(d.instances.values(), key=lambda i: i.slot)[:50]
    ]
    if rows:
        lines.append("\n".join(["| instance | launch | state | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(lines)


def _how(stopping: bool, leaving: bool) -> str:
    return "stopping, " if stopping else "to be replaced, " if leaving else ""
