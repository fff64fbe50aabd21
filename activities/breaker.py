"""Whether the replicas of a lost host may be placed elsewhere."""

from datetime import UTC, datetime, timedelta

from sqlmodel import Session, select
from temporalio import activity

from activities.contracts import BreakerContract, HostId, Replacement
from fleet.db.session import Database
from fleet.db.tables import HostRow
from fleet.policy.breaker import HostHealth, examine
from fleet.states import HostState, Maintenance


class BreakerActivities(BreakerContract):
    def __init__(self, database: Database, *, share: float, window: timedelta) -> None:
        """``share`` of all hosts (0 to 1) that may turn unhealthy within ``window``."""
        self._database = database
        self._share = share
        self._window = window

    @activity.defn(name="may_replace")
    async def may_replace(self, host: HostId) -> Replacement:
        """Reads all hosts in one transaction. The asking host has recorded before that it is lost, so it counts."""
        health = examine(await self._database.aread(_all), datetime.now(UTC) - self._window)
        if health.trips(self._share):
            activity.logger.warning("replacement of %s is paused: %s", host.host_id, health)
            return Replacement(allowed=False, reason=str(health))
        return Replacement(allowed=True)


def _all(session: Session) -> list[HostHealth]:
    rows = session.exec(select(HostRow)).all()
    return [
        HostHealth(
            state=HostState(row.state),
            lost_at=row.lost_at,
            replacement_paused=row.replacement_paused,
            maintenance=Maintenance(row.maintenance),
        )
        for row in rows
    ]
