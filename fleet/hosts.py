"""A host's life: its durable state. Pure."""

from fleet.model import Record
from fleet.states import HostState
from fleet.timings import Timings


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
    projection: int = 0
    timings: Timings = Timings()

    def with_(self, **changes: object) -> "Host":
        return self.model_copy(update=changes)


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


def describe(host: Host) -> str:
    """Markdown for an operator who has only the Temporal UI."""
    following = {
        HostState.READY: "hold the lease; suspect the host when heartbeats stop",
        HostState.SUSPECT: f"declare it lost unless it takes its lease up within {host.timings.lease_grace}",
        HostState.LOST: "wait for it to register again; its instances are placed elsewhere",
        HostState.FORGOTTEN: "nothing: it has ended",
    }[host.state]
    return f"**{host.state}** {host.message}\n\nRegistrations: {host.registrations}. Next: {following}"
