"""A host says what it is: the transaction, and who may speak as it."""

from datetime import UTC, datetime, timedelta

import grpc
from sqlmodel import Session

from api.relay.refusal import Refused
from fleet.db import registry
from fleet.db.hosts import save_registration
from fleet.db.tables import HostRow
from fleet.hosts import Host
from fleet.inventory import Registration
from fleet.join import REASON_HEADER, Reason
from fleet.resync import host_of

QUIET_FOR = timedelta(seconds=25)
"""A machine that was heard of more recently still speaks as the host: it says something each ten seconds."""


class OtherMachine(Refused):
    """Another machine speaks as this host right now."""

    def __init__(self, row: HostRow, peer: str, at: datetime) -> None:
        text = (
            f"another machine ({row.address or 'address not known'}) speaks as host {row.id} and was heard of less "
            f"than {QUIET_FOR.total_seconds():.0f} s ago. If this one is a copy of its disk, delete the host's folder "
            "here and join with a new token; if it took the other's place, switch that one off and wait"
        )
        trailing = ((REASON_HEADER, Reason.OTHER_MACHINE.value),)
        super().__init__(grpc.StatusCode.FAILED_PRECONDITION, "other_machine", text, trailing=trailing)
        self.message = (
            f"at {at:%Y-%m-%d %H:%M} UTC another machine ({peer}) tried to speak as this host: "
            "is it a copy of this one's disk?"
        )


def register(session: Session, host_id: str, boot_id: str, registration: Registration, peer: str) -> Host | None:
    """Keep what a host says, if ``boot_id`` may speak as it; how its workflow was last heard of, if ever.

    Raises OtherMachine, or NoResultFound when the host was forgotten.
    """
    row = session.get_one(HostRow, host_id, with_for_update=True, populate_existing=True)
    now = datetime.now(UTC)
    if row.boot_id and row.boot_id != boot_id and now - row.seen_at < QUIET_FOR:
        raise OtherMachine(row, peer, now)
    known = host_of(row)
    before = (row.boot_id, row.address, row.http_port, row.reach, row.tunnel_only)
    save_registration(session, host_id, registration)
    row.boot_id = boot_id
    row.reach = registration.reach
    if row.reach != "auto":
        row.tunnel_only = row.reach == "tunnel"
    session.add(row)
    if before != (row.boot_id, row.address, row.http_port, row.reach, row.tunnel_only):
        registry.bump(session)
    return known


def warn(session: Session, host_id: str, message: str) -> None:
    """Show people that two machines speak as one host."""
    row = session.get(HostRow, host_id)
    if row is not None and row.message != message:
        row.message = message
        session.add(row)
