"""How an instance goes on after its engine ended by itself: at once, later, elsewhere, or not. Pure.

What counts as a failure is the engine's own making. A lost host, a stop, a drain or a move never does.
"""

from datetime import datetime, timedelta

from fleet.instances import EngineExit, Instance, Remedy, Starved
from fleet.placement.request import Member
from fleet.states import InstanceState
from fleet.timings import Timings

SHORTEST_CONTEXT = 16
"""As for ``DeploymentSpec.max_model_len``: what an engine says would fit is not believed below it."""
NOT_ITS_FAULT = frozenset({"cancelled", "unwanted", "member_restarted"})
"""Classes of engines that somebody else ended."""
_HOSTS_REMEMBERED = 100
_TOO_LITTLE_MEMORY = frozenset({"oom_load", "oom_kv", "container_oom"})
"""Classes of engines that were given less than they need."""


def back_off(failures: int, timings: Timings) -> timedelta:
    """Pause before attempt ``failures + 1``: none before the first retry, then four times as long each time."""
    if failures <= 1:
        return timedelta(0)
    pause: timedelta = timings.first_back_off * 4 ** min(failures - 2, 15)
    return min(pause, timings.longest_back_off)


def after_failure(instance: Instance, exit_: EngineExit, now: datetime, rank: int = 0) -> Instance:
    """The state in which an instance goes on after its engine (of a gang: that of ``rank``) ended by itself."""
    placement = instance.placement
    blamed = placement.members[rank] if placement is not None else Member(host_id="")
    whose = f"{blamed.host_id}: " if placement is not None and placement.followers else ""
    ended = _cleared_if_stable(instance, now).with_(
        placement=None, endpoint=None, pid=None, progress=None, ready_since=None, hint=exit_.hint
    )
    ended = ended.with_(message=f"{whose}{exit_.summary}", starved=_starved(instance, exit_, rank) or instance.starved)
    ended = ended.with_(failures=ended.failures + 1)
    if exit_.failure_class in NOT_ITS_FAULT:
        return _again(ended, now)
    counted = _counted(ended, exit_, now)
    changed = _with_context_that_fits(counted, exit_)
    if changed is counted and blamed.host_id:  # else it was not the host that was wrong
        changed = _host_blamed(counted, blamed.host_id, at_once=_leaves_host(exit_, len(blamed.gpu_uuids)))
    if why := _gives_up(changed, exit_):
        return _failed(changed, f"{why}: {ended.message}" if exit_.remedy is not Remedy.NEVER else f"{whose}{why}")
    return _again(changed, now)


def _starved(instance: Instance, exit_: EngineExit, rank: int) -> Starved | None:
    placement = instance.placement
    if placement is None or placement.sizing is None or exit_.served or exit_.failure_class not in _TOO_LITTLE_MEMORY:
        return None
    uuids = placement.members[rank].gpu_uuids
    return Starved(
        fence=instance.fence, gpu_uuid=uuids[0] if uuids else "", card=placement.card, sizing=placement.sizing
    )


def moved(instance: Instance, why: str) -> Instance:
    """The state in which an instance goes on after it lost its place, which is no failure of its own."""
    return instance.with_(
        state=InstanceState.RECOVERING,
        message=why,
        hint="",
        placement=None,
        endpoint=None,
        pid=None,
        ready_since=None,
        restarts=instance.restarts + 1,
        retry_at=None,
    )


def approved(instance: Instance) -> Instance:
    """A person says that the cause is gone: try at once, with a clean record."""
    return _cleared(instance).with_(
        state=InstanceState.RECOVERING,
        message="a person approved a retry",
        hint=instance.notice,
        restarts=instance.restarts + 1,
        retry_at=None,
    )


def lapsed(instance: Instance, now: datetime) -> Instance:
    """Without exclusions that are older than the window of its budget: the host may be well again."""
    last = max(instance.failed_at, default=None)
    if not instance.excluded_hosts or (last is not None and now - last < timedelta(seconds=instance.restart.window_s)):
        return instance
    return instance.with_(host_failures={}, excluded_hosts=())


def _cleared_if_stable(instance: Instance, now: datetime) -> Instance:
    since = instance.ready_since
    stable = since is not None and now - since >= instance.timings.stable_after
    return _cleared(instance) if stable else instance


def _cleared(instance: Instance) -> Instance:
    return instance.with_(failures=0, failed_at=(), failure_class="", same_class=0, host_failures={}, excluded_hosts=())


def _counted(instance: Instance, exit_: EngineExit, now: datetime) -> Instance:
    window = timedelta(seconds=instance.restart.window_s)
    recent = (*(at for at in instance.failed_at if now - at < window), now)
    again = exit_.failure_class == instance.failure_class
    return instance.with_(
        failed_at=recent[-(instance.restart.max_failures + 1) :],
        failure_class=exit_.failure_class,
        same_class=instance.same_class + 1 if again else 1,
    )


def _with_context_that_fits(instance: Instance, exit_: EngineExit) -> Instance:
    """With the shorter context that the engine asked for; the same instance when it named none."""
    fits, had = exit_.max_model_len, instance.spec.max_model_len
    if exit_.remedy is not Remedy.CHANGED or fits is None or fits < SHORTEST_CONTEXT:
        return instance
    if had is not None and fits >= had:
        return instance
    instead = f" instead of {had}" if had is not None else ""
    return instance.with_(
        spec=instance.spec.model_copy(update={"max_model_len": fits}),
        notice=f"Runs with max_model_len {fits}{instead}, because more did not fit ({exit_.failure_class}).",
    )


def _leaves_host(exit_: EngineExit, gpus: int) -> bool:
    """Whether one failure is enough to go to another host."""
    if exit_.gpu_fault == "certain" and gpus == 1:
        return False  # that GPU is cordoned; the others of the host are as good as any
    return exit_.remedy in (Remedy.ELSEWHERE, Remedy.CHANGED)


def _host_blamed(instance: Instance, host_id: str, *, at_once: bool) -> Instance:
    count = instance.host_failures.get(host_id, 0) + 1
    others = {h: n for h, n in instance.host_failures.items() if h != host_id}
    failures = dict([*others.items(), (host_id, count)][-_HOSTS_REMEMBERED:])
    excluded = instance.excluded_hosts
    if (at_once or count >= instance.restart.failures_per_host) and host_id not in excluded:
        excluded = (*excluded, host_id)
    return instance.with_(host_failures=failures, excluded_hosts=excluded[-_HOSTS_REMEMBERED:])


def _gives_up(instance: Instance, exit_: EngineExit) -> str:
    """Why no further attempt is made; empty: one is."""
    if exit_.remedy is Remedy.NEVER:
        return exit_.summary
    if exit_.at_most is not None and instance.same_class > exit_.at_most:
        return f"gave up after {_times(instance.same_class)} of this kind in a row"
    if len(instance.failed_at) > instance.restart.max_failures:
        return f"gave up after {_times(len(instance.failed_at))} in {_span(instance.restart.window_s)}"
    return ""


def _failed(instance: Instance, why: str) -> Instance:
    retry = f"When the cause is gone: `holdfast retry {instance.deployment}`."
    hint = f"{instance.hint} {retry}".lstrip()
    return instance.with_(state=InstanceState.FAILED, message=why, hint=hint, retry_at=None)


def _again(instance: Instance, now: datetime) -> Instance:
    return instance.with_(
        state=InstanceState.RECOVERING,
        restarts=instance.restarts + 1,
        retry_at=now + back_off(instance.failures, instance.timings),
    )


def _times(count: int) -> str:
    return f"{count} failures" if count != 1 else "1 failure"


def _span(seconds: int) -> str:
    """E.g. ``10 minutes``."""
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds % size == 0:
            count = seconds // size
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return f"{seconds} seconds"
