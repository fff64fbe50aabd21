"""One replica of a deployment: its durable state and the decisions about it. Pure."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import Field

from fleet.engines.spec import EngineSpec
from fleet.model import Count, Record, Text
from fleet.placement.request import Placement
from fleet.states import InstanceState
from fleet.timings import Timings


class Instance(Record):
    """State of an ``InstanceWorkflow``, carried over continue-as-new."""

    schema_version: int = 1
    instance_id: str
    deployment: str
    slot: int
    revision: int
    launch: int
    """Which generation of launches of its deployment this belongs to (spec changes and restarts)."""
    spec: EngineSpec
    timings: Timings = Timings()

    state: InstanceState = InstanceState.PENDING
    message: str = ""
    hint: str = ""
    progress: float | None = None
    unplaceable: bool = False
    """No host had room when it last asked."""
    placement: Placement | None = None
    fence: int = 0
    endpoint: str | None = None
    pid: int | None = None
    restarts: int = 0
    failures: int = 0
    """In a row, since it last served for ``timings.stable_after``."""
    ready_since: datetime | None = None
    retry_at: datetime | None = None
    """Absolute, because timers do not survive continue-as-new."""
    stopping: bool = False
    drain: timedelta | None = None
    projection: int = 0
    """Revision of the last projection written."""

    def with_(self, **changes: object) -> "Instance":
        return self.model_copy(update=changes)


class EnginePhase(StrEnum):
    DOWNLOADING = "downloading"
    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"


class EngineReport(Record):
    """What a host says about an engine; a level, so saying it twice changes nothing."""

    instance_id: Text
    fence: Count
    sequence: Count
    """Grows with each report about one (instance, fence)."""
    phase: EnginePhase
    url: Text | None = None
    pid: int | None = Field(default=None, ge=0, le=2**31 - 1)
    progress: float | None = Field(default=None, ge=0, le=1)
    message: Text = ""
    ready_since: datetime | None = None


class EngineLaunch(Record):
    """Input of ``run_engine``."""

    instance_id: str
    deployment: str
    fence: int
    spec: EngineSpec
    placement: Placement
    drain: timedelta


class Remedy(StrEnum):
    """What can help after an engine has ended by itself."""

    HERE = "here"
    """The same again, on any host."""
    ELSEWHERE = "elsewhere"
    """The same on another host or another GPU."""
    CHANGED = "changed"
    """With the parameter that the log says would fit; without one, as ELSEWHERE."""
    NEVER = "never"
    """Nothing until a person changes the deployment."""


class EngineExit(Record):
    """How an engine ended, classified on the host where its log is."""

    exit_code: int | None
    """None when it never started, or ended while nobody watched; negative for a signal."""
    failure_class: str = "unknown"
    hint: str = ""
    remedy: Remedy = Remedy.HERE
    at_most: int | None = None
    """After so many failures of this class in a row more of the same is of no use; None: the budget alone decides."""
    max_model_len: int | None = None
    """The context length that would fit, when the log says so (``Remedy.CHANGED``)."""
    gpu_fault: Literal["", "possible", "certain"] = ""
    """Whether a GPU of the placement is to blame."""
    log_tail: str = ""
    served: bool = False
    """Whether it had become ready before."""

    @property
    def summary(self) -> str:
        how = "did not start" if not self.served else "ended"  # of one that was adopted, nobody knows the code
        if self.exit_code is not None:
            how = f"exited with {self.exit_code}"
        cause = "" if self.failure_class == "unknown" else f" ({self.failure_class})"
        return f"engine {how}{cause}"


class StopRequest(Record):
    reason: str
    drain: timedelta | None = None
    """How long requests may finish; None: the default of ``Timings``."""


class InstanceNews(Record):
    """What an instance tells its deployment whenever it changed; a level."""

    instance_id: str
    state: InstanceState
    message: str = ""
    hint: str = ""
    host_id: str | None = None
    unplaceable: bool = False
    """No host has room for it."""
    gone: bool = False
    """The workflow is closing; nothing of the instance is left."""


def accepts(instance: Instance, report: EngineReport, last_sequence: int) -> bool:
    """Whether ``report`` speaks of the engine that we know and is newer than what we heard."""
    return report.fence == instance.fence and report.sequence > last_sequence and instance.placement is not None


def apply_report(instance: Instance, report: EngineReport) -> Instance:
    state = {
        EnginePhase.DOWNLOADING: InstanceState.DOWNLOADING,
        EnginePhase.STARTING: InstanceState.STARTING,
        EnginePhase.READY: InstanceState.READY,
        EnginePhase.SUSPECT: InstanceState.SUSPECT,
    }[report.phase]
    if instance.state is InstanceState.DRAINING:
        state = InstanceState.DRAINING
    return instance.with_(
        state=state,
        message=report.message,
        hint="",
        progress=report.progress,
        endpoint=report.url,
        pid=report.pid,
        ready_since=report.ready_since,
    )


def back_off(failures: int, timings: Timings) -> timedelta:
    """Doubling pause before attempt ``failures + 1``; the first retry comes at once."""
    if failures <= 1:
        return timedelta(0)
    doubled: timedelta = timings.first_back_off * 2 ** min(failures - 2, 30)
    return min(doubled, timings.longest_back_off)


def after_failure(instance: Instance, exit_: EngineExit, now: datetime) -> Instance:
    """The state in which an instance goes on after its engine ended by itself."""
    stable = instance.ready_since is not None and now - instance.ready_since >= instance.timings.stable_after
    failures = 1 if stable else instance.failures + 1
    common = {
        "placement": None,
        "endpoint": None,
        "pid": None,
        "progress": None,
        "ready_since": None,
        "failures": failures,
        "hint": exit_.hint,
    }
    if not exit_.retry:
        return instance.with_(state=InstanceState.FAILED, message=exit_.summary, retry_at=None, **common)
    pause = back_off(failures, instance.timings)
    return instance.with_(
        state=InstanceState.RECOVERING,
        message=exit_.summary,
        restarts=instance.restarts + 1,
        retry_at=now + pause,
        **common,
    )


def describe(instance: Instance) -> str:
    """Markdown for an operator who has only the Temporal UI."""
    lines = [f"**{instance.state}**" + (f": {instance.message}" if instance.message else "")]
    if instance.hint:
        lines.append(f"Hint: {instance.hint}")
    if instance.placement is not None:
        gpus = ", ".join(instance.placement.gpu_uuids) or "CPU"
        lines.append(f"Host `{instance.placement.host_id}`, {gpus}, fence {instance.fence}")
    if instance.endpoint:
        lines.append(f"Endpoint {instance.endpoint}, pid {instance.pid}")
    lines.append(f"Restarts: {instance.restarts}. Next: {_next_step(instance)}")
    return "\n\n".join(lines)


def _next_step(instance: Instance) -> str:
    match instance.state:
        case InstanceState.PENDING | InstanceState.PLACING:
            return "find a host with room"
        case InstanceState.DOWNLOADING | InstanceState.STARTING:
            return "wait until the engine has answered a one-token request"
        case InstanceState.READY:
            return "serve until told to stop, or recover when the engine ends"
        case InstanceState.SUSPECT:
            return "wait for the host to answer again, else place elsewhere"
        case InstanceState.RECOVERING:
            return f"place again at {instance.retry_at:%Y-%m-%d %H:%M:%S} UTC" if instance.retry_at else "place again"
        case InstanceState.DRAINING:
            return "let running requests finish, then stop the engine"
        case InstanceState.STOPPED:
            return "nothing: it has ended"
        case InstanceState.FAILED:
            return "nothing until a person changes the deployment or restarts it"
