"""What gateways have counted, for rollouts to judge by."""

from sqlmodel import Session
from temporalio import activity

from activities.contracts import TrafficContract, TrafficQuestion, TrafficReadings
from fleet.db import traffic
from fleet.db.session import Database


class TrafficActivities(TrafficContract):
    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn(name="read_traffic")
    async def read_traffic(self, question: TrafficQuestion) -> TrafficReadings:
        def read(session: Session) -> TrafficReadings:
            return TrafficReadings(
                old=traffic.read(session, question.deployment, question.old_launch),
                new=traffic.read(session, question.deployment, question.new_launch),
            )

        return await self._database.aread(read)
