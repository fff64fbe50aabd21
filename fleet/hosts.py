"""A host's life: its durable state and what changes it. Pure."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from fleet.model import Record
from fleet.states import HostState, Maintenance
from fleet.timings import Timings

_NAMED = 5
"""More instances than this are counted, not listed."""


class Upkeep(StrEnum):
    """What a person can ask of a host."""

    NONE = "none"
    """Take work as usual."""
    CORDON = "cordon"
    """Take no new replicas; those that run there stay."""
    DRAIN = "drain"
    """Take no new replicas, and have those that run there replaced elsewhere."""


class Maintain(Record):
    """Input of the ``maintain`` update: a level. Asking twice for the same one is asking once."""

    mode: Upkeep = Upkeep.NONE
    deadline: datetime | None = None
    """From then on replicas go even though their replacements are not ready; None: they wait."""
    reason: str = ""


class Host(Record):
    """State of a ``HostWorkflow``, carried over continue-as-new."""

    schema_version: int = 1
    host_id: str
    name: str
    state: HostState = HostState.READY
    message: str = ""
    registrations: int = 0
    """Grows each time the host's process registers; a new one means a new lease."""
    registrations_when_lost: int = 0
    """A lost host is back once there are more."""
    forgotten: bool = False
    lost_at: datetime | None = None
    untold: bool = False
    """Lost, and its instances have not heard of it: until then they are its own, should it come back."""
    replacement_paused: bool = False
    """Too many hosts are unhealthy at once: its instances are not told until a person approves, or that has passed."""
    paused_because: str = ""
    replacement_approved: bool = False
    wanted: Maintain = Maintain()
    maintenance: Maintenance = Maintenance.NONE
    maintenance_message: str = ""
    maintain_generation: int = 0
    """Grows with every accepted change of ``wanted``."""
    projection: int = 0
    timings: Timings = Timings()

    def with_(self, **changes: object) -> "Host":
        return self.model_copy(update=changes)

    @property
    def returned(self) -> bool:
        """Lost, and has registered since."""
        return self.registrations > self.registrations_when_lost

    @property
    def summary(self) -> str:
        """Its message for people."""
        return "; ".join(part for part in (self.message, self.paused_because) if part)


class HostRegistered(Record):
    """Input of the ``register`` update."""

    host_id: str
    name: str
    version: str
    boot_id: str


class HostLease(Record):
    """Input of ``hold_lease``."""

    host_id: str
    registration: int


def maintain(host: Host, level: Maintain) -> Host:
    """The host after a person has asked for ``level``; the same object when nothing changes."""
    if level == host.wanted:
        return host
    states = {
        Upkeep.NONE: (Maintenance.NONE, ""),
        Upkeep.CORDON: (Maintenance.CORDONED, level.reason or "takes no new replicas"),
        Upkeep.DRAIN: (Maintenance.DRAINING, _because(level, "looks what runs here")),
    }
    maintenance, message = states[level.mode]
    return host.with_(
        wanted=level,
        maintenance=maintenance,
        maintenance_message=message,
        maintain_generation=host.maintain_generation + 1,
    )


def leave_reason(host: Host) -> str:
    """What its instances are told when it is drained."""
    what, why = f"{host.name} is being drained", host.wanted.reason
    return f"{what}: {why}" if why else what


def look_at_drain(host: Host, placed: Sequence[str], obstacle: str) -> Host:
    """A draining host after a look at the instances that hold claims there; the same object when nothing changed.

    ``obstacle``: why their replacements are not ready, for people.
    """
    if host.maintenance is not Maintenance.DRAINING:
        return host
    if placed:
        message = _because(host.wanted, _still_here(placed, host.wanted.deadline, obstacle))
        return host if message == host.maintenance_message else host.with_(maintenance_message=message)
    message = _because(host.wanted, "nothing runs here any more")
    return host.with_(maintenance=Maintenance.DRAINED, maintenance_message=message)


def lose(host: Host, now: datetime) -> Host:
    """Declared lost; nobody has been told."""
    return host.with_(
        state=HostState.LOST,
        message=f"no sign of life; {host.message}",
        registrations_when_lost=host.registrations,
        lost_at=now,
        untold=True,
    )


def pause_replacement(host: Host, reason: str) -> Host:
    """Its instances stay its own for now; the same object when it is paused for this reason already."""
    because = (
        f"its replicas are not replaced: {reason}, so the fault is probably ours (network or control plane); "
        f"if this host is really gone: holdfast approve-replacement {host.host_id}"
    )
    if host.replacement_paused and host.paused_because == because:
        return host
    return host.with_(replacement_paused=True, paused_because=because)


def told(host: Host) -> Host:
    """All its instances know that it is lost."""
    return host.with_(untold=False, **_NOT_PAUSED)


def come_back(host: Host) -> Host:
    """Whatever was not told by now never will be. What a person asked of the host stays."""
    return host.with_(state=HostState.READY, message="", lost_at=None, untold=False, **_NOT_PAUSED)


_NOT_PAUSED = {"replacement_paused": False, "paused_because": "", "replacement_approved": False}


def describe(host: Host) -> str:
    """Markdown for an operator who has only the Temporal UI."""
    lines = [f"**{host.state}** {host.message}"]
    if host.maintenance is not Maintenance.NONE:
        lines.append(f"Maintenance: **{host.maintenance}** {host.maintenance_message}")
    if host.paused_because:
        lines.append(f"**Waits for approval** (update `approve_replacement`): {host.paused_because}")
    lines.append(f"Registrations: {host.registrations}. Next: {_following(host)}")
    return "\n\n".join(lines)


def _following(host: Host) -> str:
    if host.replacement_paused:
        return f"ask again at least every {host.timings.breaker_pause} whether its replicas may be replaced"
    if host.state is HostState.READY and host.maintenance is Maintenance.DRAINING:
        return "hold the lease; wait until its instances have left"
    return {
        HostState.READY: "hold the lease; suspect the host when heartbeats stop",
        HostState.SUSPECT: f"declare it lost unless it takes its lease up within {host.timings.lease_grace}",
        HostState.LOST: "wait for it to register again; its instances are placed elsewhere",
        HostState.FORGOTTEN: "nothing: it has ended",
    }[host.state]


def _still_here(placed: Sequence[str], deadline: datetime | None, obstacle: str) -> str:
    names = ", ".join(placed[:_NAMED])
    more = f" and {len(placed) - _NAMED} more" if len(placed) > _NAMED else ""
    parts = [
        f"{len(placed)} to go: {names}{more}",
        obstacle,
        f"they go at {deadline:%Y-%m-%d %H:%M:%S %Z} in any case" if deadline else "",
    ]
    return "; ".join(part for part in parts if part)


def _because(level: Maintain, message: str) -> str:
    return f"{level.reason}: {message}" if level.reason else message
