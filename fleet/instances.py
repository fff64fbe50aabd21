"""One replica of a deployment: its durable state and the decisions about it. Pure."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import Field

from fleet.engines.spec import EngineSpec
from fleet.model import Count, Record, Text
from fleet.placement.request import Member, ModelCard, Placement, PlacementRequest
from fleet.sizing.measured import Measured
from fleet.sizing.sizing import Sizing
from fleet.specs import RestartSpec
from fleet.states import InstanceState
from fleet.timings import Timings


class EnginePhase(StrEnum):
    DOWNLOADING = "downloading"
    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"


class MemberNews(Record):
    """How far one host of a gang is, under the present fence."""

    phase: EnginePhase = EnginePhase.STARTING
    message: str = ""
    progress: float | None = None
    ready: bool = False
    """It is, or was before."""


class Starved(Record):
    """An engine ran out of memory at its start, with all that was booked for it."""

    fence: int
    gpu_uuid: str = ""
    """One of its cards; empty: it ran in RAM."""
    card: ModelCard
    sizing: Sizing


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
    restart: RestartSpec = RestartSpec()

    state: InstanceState = InstanceState.PENDING
    message: str = ""
    hint: str = ""
    progress: float | None = None
    unplaceable: bool = False
    """No host had room when it last asked."""
    placement: Placement | None = None
    fence: int = 0
    accepted_fence: int = 0
    """Under which all hosts of a gang have agreed to run it: only then is any engine asked for."""
    members: dict[str, MemberNews] = {}
    """Of a gang, by host."""
    endpoint: str | None = None
    pid: int | None = None
    restarts: int = 0
    failures: int = 0
    """In a row, since it last served for ``timings.stable_after``: the pause grows with them."""
    failed_at: tuple[datetime, ...] = ()
    """When the engine failed by itself, as far as ``restart`` counts it; oldest first."""
    failure_class: str = ""
    """Of the last failure."""
    same_class: int = 0
    """How many failures of that class there were in a row."""
    host_failures: dict[str, int] = {}
    """Where it failed, and how often, by host; the latest last."""
    excluded_hosts: tuple[str, ...] = ()
    """Where it is not tried again as long as another host could run it."""
    notice: str = ""
    """What Holdfast changed so that the engine runs; shown as the hint for as long as there is none of a failure."""
    image: str = ""
    """By digest, as it was first pulled: all engines of this instance run from it, wherever they are placed."""
    measured: Measured | None = None
    """What its engine said of its memory at its start, under the present fence."""
    starved: Starved | None = None
    """The last start that ran out of memory."""
    ready_since: datetime | None = None
    retry_at: datetime | None = None
    """Absolute, because timers do not survive continue-as-new."""
    stopping: bool = False
    drain: timedelta | None = None
    projection: int = 0
    """Revision of the last projection written."""

    def with_(self, **changes: object) -> "Instance":
        return self.model_copy(update=changes)


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
    image: Text = ""
    """What its container was made from, by digest; empty for a process, or when it has none."""
    rank: int = Field(default=0, ge=0, le=1023)
    """Of the host within a gang; 0: the leader, or the only one."""
    measured: Measured | None = None
    """What the engine said of its memory when it started; with the report that it is ready."""


class EngineLaunch(Record):
    """Input of ``run_engine``."""

    instance_id: str
    deployment: str
    fence: int
    spec: EngineSpec
    placement: Placement
    drain: timedelta
    image: str = ""
    """By digest: what this instance ran from before. Its tag may mean something else by now."""
    rank: int = 0
    """Which part of a gang it is; 0: the leader, or all of it."""

    @property
    def here(self) -> Member:
        """The part of the placement that is its host's."""
        return self.placement.members[self.rank]


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
    """So many retries in a row are of use for this class; None: the budget alone decides."""
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


def news_of(instance: Instance) -> InstanceNews:
    """What it tells its deployment."""
    told = {name: getattr(instance, name) for name in InstanceNews.model_fields if hasattr(instance, name)}
    host_id = instance.placement.host_id if instance.placement is not None else None
    return InstanceNews.model_validate(told | {"host_id": host_id})


def accepts(instance: Instance, report: EngineReport, last_sequence: int) -> bool:
    """Whether ``report`` speaks of the engine that we know and is newer than what we heard."""
    placement = instance.placement
    known = placement is not None and report.rank < len(placement.hosts)
    return known and report.fence == instance.fence and report.sequence > last_sequence


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
        hint=instance.notice,
        progress=report.progress,
        endpoint=report.url,
        pid=report.pid,
        ready_since=report.ready_since,
        image=report.image or instance.image,
        measured=report.measured or instance.measured,
    )


def placement_request(instance: Instance) -> PlacementRequest:
    """Room for this instance under its present fence."""
    return PlacementRequest(
        instance_id=instance.instance_id,
        deployment=instance.deployment,
        fence=instance.fence,
        spec=instance.spec,
        excluded_hosts=instance.excluded_hosts,
    )


def describe(instance: Instance) -> str:
    """Markdown for an operator who has only the Temporal UI."""
    lines = [f"**{instance.state}**" + (f": {instance.message}" if instance.message else "")]
    if instance.hint:
        lines.append(f"Hint: {instance.hint}")
    if instance.placement is not None:
        gpus = ", ".join(instance.placement.gpu_uuids) or "CPU"
        lines.append(f"Host `{instance.placement.host_id}`, {gpus}, fence {instance.fence}")
    if instance.placement is not None and instance.placement.followers:
        lines.append("Gang: " + ", ".join(_member(instance, host_id) for host_id in instance.placement.hosts))
    if instance.endpoint:
        lines.append(f"Endpoint {instance.endpoint}, pid {instance.pid}")
    if instance.excluded_hosts:
        lines.append(f"Failed on {', '.join(instance.excluded_hosts)}: goes there only if no other host could run it")
    lines.append(f"Restarts: {instance.restarts}. Next: {_next_step(instance)}")
    return "\n\n".join(lines)


def _member(instance: Instance, host_id: str) -> str:
    news = instance.members.get(host_id)
    return f"`{host_id}` {news.phase}" if news is not None else f"`{host_id}`"


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
            return "wait until a person approves a retry (update `approve_retry`), or changes the deployment"
