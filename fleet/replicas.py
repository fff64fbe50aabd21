"""Which replicas to start and which to stop, so that a deployment becomes what it should be. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from fleet.deployments import Deployment, InstanceView
from fleet.model import Record
from fleet.rollouts import Stage, deadline
from fleet.states import InstanceState


class Plan(Record):
    """What to do next."""

    start: tuple[int, ...] = ()
    """Slots of replicas of the current launch."""
    start_stable: tuple[int, ...] = ()
    """Slots of replicas of the revision that a rollout comes from."""
    stop: tuple[str, ...] = ()
    """Instance ids."""
    judge: bool = False
    """Compare what gateways counted for the old and the new revision."""
    done: bool = False
    """Nothing is left and nothing is wanted: the workflow may end."""

    def __str__(self) -> str:
        parts = [
            f"start {len(self.start)}" if self.start else "",
            f"start {len(self.start_stable)} of the old revision" if self.start_stable else "",
            f"stop {', '.join(self.stop)}" if self.stop else "",
            "compare the new revision with the old one" if self.judge else "",
        ]
        return "; ".join(p for p in parts if p) or ("end" if self.done else "nothing to do")


@dataclass(frozen=True)
class Goal:
    """How many replicas of the new and the old launch there should be, and what must hold on the way there."""

    new: int
    old: int
    most: int
    """Replicas at a time, without those that are being replaced on a person's word."""
    ready: int
    """Replicas that serve at any moment, as far as the plan can help it."""


def goal(d: Deployment) -> Goal:
    wanted, rollout = d.desired, d.rollout
    if rollout is None:
        return Goal(wanted, 0, wanted, wanted)
    live = [i for i in d.instances.values() if not i.stopping]
    new = sum(i.launch == d.launch for i in live)
    old = sum(rollout.stable is not None and i.launch == rollout.stable.launch for i in live)
    policy = d.spec.rollout
    if rollout.beside and rollout.stable is not None:
        tried = wanted if rollout.strategy == "blue_green" else min(policy.canary.replicas, wanted)
        tried = min(tried, new) if rollout.paused else tried
        kept = max(wanted - rollout.dip, 0)
        return Goal(tried, kept, wanted + tried, kept)
    if rollout.paused:
        return _frozen(d, new, old, len(live) - new - old)
    if rollout.strategy == "recreate":
        left = any(i.launch != d.launch for i in d.instances.values())
        return Goal(0 if left else wanted, 0, wanted, 0)
    # What is started after one has failed will most likely fail as well.
    failed = any(i.launch == d.launch and i.state is InstanceState.FAILED for i in live)
    surge = 0 if failed else policy.max_surge
    return Goal(wanted, 0, wanted + surge, max(wanted - policy.max_unavailable - rollout.dip, 0))


def _frozen(d: Deployment, new: int, old: int, strays: int) -> Goal:
    """Neither side gains on the other; what dies is made up for."""
    wanted = d.desired
    stable = d.rollout is not None and d.rollout.stable is not None
    kept = max(wanted - new - strays, min(old, wanted)) if stable else 0
    target = max(min(wanted, new), wanted - kept - strays)
    return Goal(target, kept, max(wanted + d.spec.rollout.max_surge, target + kept + strays), 0)


def decide(d: Deployment, now: datetime) -> Plan:
    """What brings the replicas nearer to what is desired. Applying it and deciding again converges."""
    if d.desired == 0:
        ids = tuple(sorted(i.instance_id for i in d.instances.values() if not i.stopping))
        return Plan(stop=ids, done=d.deleting and not d.instances)
    aim = goal(d)
    live = [i for i in d.instances.values() if not i.stopping]
    stop = _stop(d, aim, live, now)
    kept = [i for i in live if i.instance_id not in stop]
    new, old = _start(d, aim, kept)
    slots = _free_slots(d, new + old)
    rollout = d.rollout
    due = rollout is not None and rollout.stage is Stage.BAKING and not rollout.paused
    return Plan(
        start=slots[:new],
        start_stable=slots[new:],
        stop=tuple(stop),
        judge=due and rollout is not None and rollout.next_check is not None and now >= rollout.next_check,
    )


def next_deadline(d: Deployment) -> datetime | None:
    """When to decide again although nothing has happened; None: nothing is due."""
    moments = [i.leave_by for i in d.instances.values() if i.leave_by is not None and not i.stopping]
    if (due := deadline(d.rollout, d.timings.surge_patience)) is not None:
        moments.append(due)
    return min(moments, default=None)


def _start(d: Deployment, aim: Goal, kept: list[InstanceView]) -> tuple[int, int]:
    """(new, old) replicas to start. Those that leave on a person's word are replaced before they are gone."""
    stable = d.rollout.stable if d.rollout is not None else None
    staying = [i for i in kept if not i.leaving]
    new = sum(i.launch == d.launch for i in staying)
    old = sum(stable is not None and i.launch == stable.launch for i in staying)
    room = max(0, aim.most - len(staying))
    start_old = min(max(0, aim.old - old), room) if stable is not None else 0
    start_new = min(max(0, aim.new - new), room - start_old)
    return start_new, start_old


def _stop(d: Deployment, aim: Goal, live: list[InstanceView], now: datetime) -> list[str]:
    ready = sum(i.state is InstanceState.READY for i in live)
    doomed = [i for i in live if i.leaving and i.leave_by is not None and now >= i.leave_by]
    doomed += [i for i in _useless(d, live) if i not in doomed]
    ready -= sum(i.state is InstanceState.READY for i in doomed)
    for i in _superfluous(d, aim, [i for i in live if i not in doomed]):
        serving = i.state is InstanceState.READY
        if serving and ready - 1 < aim.ready:
            continue
        doomed.append(i)
        ready -= serving
    return [i.instance_id for i in doomed]


def _useless(d: Deployment, live: list[InstanceView]) -> Iterable[InstanceView]:
    """Replicas that serve nobody and are not what is wanted: they go at once."""
    rollout = d.rollout
    if rollout is None:
        return [i for i in live if i.leaving and i.state not in _SERVING]
    kept = {d.launch}
    if rollout.beside and rollout.stable is not None:
        kept.add(rollout.stable.launch)
    unwanted = [i for i in live if i.leaving or (i.launch not in kept and not rollout.paused)]
    return [i for i in unwanted if i.state not in _SERVING and not _worth_waiting_for(d, live, i)]


def _worth_waiting_for(d: Deployment, live: list[InstanceView], i: InstanceView) -> bool:
    """An old replica that recovers, while no new one has shown that it works."""
    stable = d.rollout.stable if d.rollout is not None else None
    if stable is None or i.launch != stable.launch or i.leaving or i.state not in _RECOVERING:
        return False
    return not any(n.launch == d.launch and n.state is InstanceState.READY for n in live)


def _superfluous(d: Deployment, aim: Goal, live: list[InstanceView]) -> Iterable[InstanceView]:
    """Replicas beyond what is aimed at, the most expendable first."""
    rollout = d.rollout
    stable = rollout.stable if rollout is not None else None
    staying = [i for i in live if not i.leaving]
    new = [i for i in staying if i.launch == d.launch]
    old = [i for i in staying if stable is not None and i.launch == stable.launch]
    if rollout is None or not rollout.paused:
        yield from sorted((i for i in staying if i not in new and i not in old), key=_most_expendable_first)
    spare = sorted(old, key=_most_expendable_first)[: max(0, len(old) - aim.old)]
    yield from (i for i in spare if len(old) > d.desired or not _worth_waiting_for(d, live, i))
    yield from sorted(new, key=_most_expendable_first)[: max(0, len(new) - aim.new)]
    yield from sorted((i for i in live if i.leaving), key=_most_expendable_first)


def _most_expendable_first(i: InstanceView) -> tuple[bool, bool, int]:
    return (i.state is InstanceState.READY, i.state is InstanceState.SUSPECT, -i.slot)


def _free_slots(d: Deployment, count: int) -> tuple[int, ...]:
    used = {i.slot for i in d.instances.values()}
    free = (n for n in range(1, len(used) + count + 1) if n not in used)
    return tuple(n for n, _ in zip(free, range(count), strict=False))


_SERVING = {InstanceState.READY, InstanceState.SUSPECT}
_RECOVERING = {
    InstanceState.RECOVERING,
    InstanceState.PLACING,
    InstanceState.DOWNLOADING,
    InstanceState.STARTING,
}
