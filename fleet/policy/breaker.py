"""When so many hosts turn unhealthy at once that the fault is probably ours. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from fleet.states import HostState, Maintenance

FEWEST = 2
"""One host alone may always die: it says nothing about the others."""


@dataclass(frozen=True)
class HostHealth:
    """What the breaker needs to know of one host."""

    state: HostState
    lost_at: datetime | None = None
    replacement_paused: bool = False
    maintenance: Maintenance = Maintenance.NONE


@dataclass(frozen=True)
class FleetHealth:
    unhealthy: int
    total: int

    def trips(self, share: float) -> bool:
        """Whether nothing should be replaced: more than ``share`` of all, and more than one, are unhealthy."""
        return self.unhealthy >= FEWEST and self.unhealthy / self.total > share

    def __str__(self) -> str:
        return f"{self.unhealthy} of {self.total} hosts are unhealthy at once"


def examine(hosts: Iterable[HostHealth], since: datetime) -> FleetHealth:
    """Count who is unhealthy, of those who count.

    Unhealthy are the suspect (when a network breaks, all turn suspect before the first is declared lost), those that
    were lost after ``since``, and those whose replacement is paused. Hosts that are gone for longer would only dilute
    the share, and drained ones that are away were emptied to be switched off: neither counts.
    """
    counted = [host for host in hosts if _counts(host, since)]
    return FleetHealth(unhealthy=sum(h.state is not HostState.READY for h in counted), total=len(counted))


def _counts(host: HostHealth, since: datetime) -> bool:
    if host.state is HostState.FORGOTTEN:
        return False
    if host.state is HostState.READY or host.replacement_paused:
        return True
    if host.maintenance is Maintenance.DRAINED:
        return False
    return host.state is HostState.SUSPECT or (host.lost_at is not None and host.lost_at >= since)
