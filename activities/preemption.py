"""Making room for a replica that found none: who gives way is told so, and the room is kept meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TypeAlias

from sqlmodel import Session, col, func, select
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from fleet import ids
from fleet.db import nominations
from fleet.db.nominations import Leaver, Nominee, PlanIsStale
from fleet.db.session import Database
from fleet.db.standings import priority_of, standings
from fleet.db.tables import ClaimRow, DeploymentRow, HostRow
from fleet.deployments import InstancesLeave
from fleet.placement.needs import Needs
from fleet.placement.request import PlacementRequest, Unplaceable
from fleet.placement.view import HostView
from fleet.policy.nominated import Nominated
from fleet.policy.preemption import Preemption, kept, plan_preemption
from fleet.policy.priority import level, rank
from fleet.policy.tenants import Tenant
from fleet.policy.trial import Best, best_place
from fleet.states import ClaimState, HostState, Maintenance

_NAMED = 3

Consider: TypeAlias = Callable[[PlacementRequest, Needs, Sequence[HostView]], Awaitable[bool]]


@dataclass(frozen=True)
class _Waits:
    """What one nominee waits for."""

    leavers: tuple[Leaver, ...]
    hosts: frozenset[str]
    """Where room is kept for it."""


class RoomMaker:
    """Asked again, it says the same again and tells those who leave once more: whatever was lost in a crash is made
    up for when the nominee asks the next time."""

    def __init__(
        self, database: Database, client: Client, *, drain: timedelta, consider: Consider | None = None
    ) -> None:
        """``drain``: how long engines may finish requests. The room is kept for longer than that. ``consider``: whether
        replicas are moved instead, where nobody gives way."""
        self._database = database
        self._consider = consider
        self._client = client
        self._kept_for = 2 * drain + timedelta(minutes=2)

    async def with_priority(self, request: PlacementRequest) -> PlacementRequest:
        """With that which its deployment has now."""
        spec = await self._database.aread(lambda s: priority_of(s, request.deployment))
        return request.model_copy(update={"priority": rank(spec.level)})

    async def kept_for_others(self, request: PlacementRequest) -> Nominated:
        """What ``request`` (with its priority) has to leave alone: see ``fleet.policy.nominated.visible``."""
        now = datetime.now(UTC)
        return await self._database.aread(
            lambda s: nominations.nominated(s, request.instance_id, request.deployment, request.priority, now)
        )

    async def make_room(
        self,
        request: PlacementRequest,
        needs: Needs,
        hosts: Sequence[HostView],
        refusal: Unplaceable,
        best: Best = best_place,
    ) -> Unplaceable:
        """What ``request`` waits for now. ``hosts`` as it may use them, ``refusal``: why none of them took it."""
        now = datetime.now(UTC)
        waits = await self._database.aread(lambda s: _waits(s, request.instance_id, now))
        if waits.leavers and waits.hosts <= {h.host_id for h in hosts}:
            await self.tell(waits.leavers)
            return Unplaceable(reasons=(_text(waits.leavers, hosts),))
        if not await self._database.aread(lambda s: _entitled(s, request.deployment)):
            return await self._perhaps_moved(request, needs, hosts, refusal)
        standing = await self._database.aread(lambda s: standings(s, now))
        plan = await asyncio.to_thread(plan_preemption, request, needs, hosts, standing, best)
        if plan is None:
            why_not = kept(request, hosts, standing)
            refusal = Unplaceable(reasons=(*refusal.reasons, why_not)) if why_not else refusal
            return await self._perhaps_moved(request, needs, hosts, refusal)
        return await self._carry_out(request, hosts, plan, refusal)

    async def _perhaps_moved(
        self, request: PlacementRequest, needs: Needs, hosts: Sequence[HostView], refusal: Unplaceable
    ) -> Unplaceable:
        if self._consider is None or not await self._consider(request, needs, hosts):
            return refusal
        return Unplaceable(reasons=(*refusal.reasons, "others are being moved for it: see `holdfast defragment`"))

    async def tell(self, leavers: Iterable[Leaver]) -> None:
        """Their deployments hear that they go, and why. A level: twice is once."""
        by_deployment = groupby(sorted(leavers, key=_by), key=_by)
        await asyncio.gather(*(self._tell(name, by, why, list(some)) for (name, by, why), some in by_deployment))

    async def let_stay(self, instances: Iterable[tuple[str, str]], reason: str) -> None:
        """(Deployment, instance id) of those that were asked to go for this reason and may stay."""
        for deployment, instance_id in instances:
            await self._signal(deployment, InstancesLeave(instance_ids=(instance_id,), reason=reason, stay=True))

    async def _carry_out(
        self, request: PlacementRequest, hosts: Sequence[HostView], plan: Preemption, refusal: Unplaceable
    ) -> Unplaceable:
        now = datetime.now(UTC)
        nominee = Nominee(request.instance_id, request.deployment, request.priority, request.fence)

        def write(session: Session) -> tuple[Leaver, ...]:
            nominations.preempt(session, nominee, plan.decision, plan.victims, now=now, until=now + self._kept_for)
            return tuple(nominations.leavers(session, nominee.name, now))

        try:
            leavers = await self._database.awrite(write)
        except PlanIsStale as stale:
            return Unplaceable(reasons=(*refusal.reasons, f"room could not be made: {stale}"))
        await self.tell(leavers)
        return Unplaceable(reasons=(_text((*leavers, *map(_as_leaver, plan.leaving)), hosts),))

    async def _tell(self, deployment: str, by: datetime | None, reason: str, leavers: list[Leaver]) -> None:
        these = tuple(x.instance_id for x in leavers)
        await self._signal(deployment, InstancesLeave(instance_ids=these, reason=reason, by=by))

    async def _signal(self, deployment: str, leave: InstancesLeave) -> None:
        handle = self._client.get_workflow_handle(ids.deployment_workflow(deployment))
        try:
            await handle.signal(ids.LEAVE_SIGNAL, leave)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:  # it was deleted: its replicas go anyway
                raise


def _waits(session: Session, instance_id: str, now: datetime) -> _Waits:
    rows = nominations.of(session, instance_id, now)
    return _Waits(tuple(nominations.leavers(session, instance_id, now)), frozenset(r.host_id for r in rows))


def _entitled(session: Session, deployment: str) -> bool:
    """Whether others may have to give way to one more of its replicas: not to one that a rollout starts beside as many
    as are wanted. Replicas on hosts that are being emptied do not count."""
    row = session.get(DeploymentRow, deployment)
    if row is None or not priority_of(session, deployment).preempts:
        return False
    placed = (
        select(func.count(func.distinct(ClaimRow.instance_id)))
        .join(HostRow, col(HostRow.id) == col(ClaimRow.host_id))
        .where(col(ClaimRow.instance_id).startswith(f"{deployment}/", autoescape=True))
        .where(ClaimRow.state != ClaimState.RELEASING)
        .where(HostRow.state == HostState.READY, HostRow.maintenance == Maintenance.NONE)
    )
    return session.exec(placed).one() < row.desired_replicas


def _by(leaver: Leaver) -> tuple[str, datetime | None, str]:
    return leaver.deployment, leaver.by, leaver.reason


def _as_leaver(tenant: Tenant) -> Leaver:
    return Leaver(tenant.instance_id, tenant.deployment, tenant.hosts[0], None, "", tenant.priority)


def _text(leavers: Sequence[Leaver], hosts: Sequence[HostView]) -> str:
    """E.g. ``waits for low/1-abc (priority low) on host a to drain``."""
    names = {h.host_id: h.name for h in hosts}
    parts = [
        f"{x.instance_id} (priority {level(x.priority)}) on host {names.get(x.host_id, x.host_id)}"
        for x in leavers[:_NAMED]
    ]
    more = f" and {len(leavers) - _NAMED} more" if len(leavers) > _NAMED else ""
    moved = any(x.by is None and x.reason for x in leavers)
    return f"waits for {', '.join(parts)}{more} to {'be moved' if moved else 'drain'}"
