"""A host's proof of life."""

from typing import Protocol

from temporalio import activity

from fleet.hosts import HostLease


class LeaseHolder(Protocol):
    async def take(self, lease: HostLease, token: bytes) -> None:
        """Heartbeat by ``token`` from now on. Returns once the token is on disk."""
        ...


class HostActivities:
    def __init__(self, holder: LeaseHolder) -> None:
        self._holder = holder

    @activity.defn(name="hold_lease")
    async def hold_lease(self, lease: HostLease) -> None:
        await self._holder.take(lease, activity.info().task_token)
        activity.raise_complete_async()

    @activity.defn(name="answer_roll_call")
    async def answer_roll_call(self) -> None:
        """That it runs is the answer."""
