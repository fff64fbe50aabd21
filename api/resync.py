"""Workflows that Temporal has lost are begun anew from the database. Those that exist are left alone.

Each may be told only by workflows that exist, so: hosts, then instances, then deployments; and what instances said
while their deployment was not there yet is repeated to it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from api.temporal_client import WorkflowClient
from fleet import ids
from fleet.db import batches, recorded
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, DeploymentRow, InstanceRow
from fleet.deployments import Deployment
from fleet.instances import Instance, InstanceNews, news_of
from fleet.resync import Revived, Rows, deployment_of, host_of, instance_of, is_gone, lost_hosts, stale_claims
from fleet.states import InstanceState
from fleet.timings import Timings

_AT_ONCE = 32
_ROUNDS = 20
"""How often instances may change while we tell their deployments how they are."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Count:
    started: int = 0
    existing: int = 0


@dataclass
class Outcome:
    hosts: Count = field(default_factory=Count)
    instances: Count = field(default_factory=Count)
    deployments: Count = field(default_factory=Count)
    batches: Count = field(default_factory=Count)
    orphans: list[str] = field(default_factory=list)
    """What nobody will ask for any more: cleaned up."""


async def lost(database: Database, workflows: WorkflowClient) -> tuple[list[str], list[str]]:
    """(deployments, hosts) that the database knows and Temporal does not. Changes nothing."""
    wanted = await database.aread(lambda s: recorded.workflows(s, instances=False))
    missing = await workflows.missing(wanted)
    rows = await database.aread(recorded.everything)
    return (
        sorted(d.name for d in rows.deployments if ids.deployment_workflow(d.name) in missing),
        sorted(h.id for h in rows.hosts if ids.host_workflow(h.id) in missing),
    )


async def resync(database: Database, workflows: WorkflowClient) -> Outcome:
    """Twice is once, and on a healthy system it changes nothing. Raises Unavailable; then do it again."""
    await workflows.prepare()
    wanted = await database.aread(recorded.workflows)
    missing = await workflows.missing(wanted)
    # Read after the look: what has ended in good order since has taken its row along.
    rows = await database.aread(recorded.everything)
    return await _Resync(database, workflows, rows, missing).run()


class _Resync:
    def __init__(self, database: Database, workflows: WorkflowClient, rows: Rows, missing: set[str]) -> None:
        self._database = database
        self._workflows = workflows
        self._rows = rows
        self._missing = missing
        self._lost = {d.name: d for d in rows.deployments if ids.deployment_workflow(d.name) in missing}
        self._outcome = Outcome()

    async def run(self) -> Outcome:
        await self._start_hosts()
        await self._start_instances()
        views = await self._start_deployments()
        await self._tell_the_news(views)
        await self._clean_up()
        await self._start_batches()
        return self._outcome

    async def _start_hosts(self) -> None:
        hosts = [h for h in map(host_of, self._rows.hosts) if h is not None]
        gone = [h for h in hosts if ids.host_workflow(h.host_id) in self._missing]
        started = await _each(gone, self._workflows.take_up_host)
        self._outcome.hosts = _count(len(hosts) - len(gone), started)

    async def _start_instances(self) -> None:
        """Only those of deployments that are begun anew: one that exists looks after its instances itself."""
        revived = _revived(self._rows, self._lost)
        gone = [r for r in revived if ids.instance_workflow(r.instance.instance_id) in self._missing]
        if stale := stale_claims(gone, self._rows.claims):
            await self._database.awrite(lambda s: recorded.give_up(s, stale))
        started = await _each([r.instance for r in gone], self._workflows.take_up_instance)
        there = [i for i in self._rows.instances if ids.instance_workflow(i.id) not in self._missing]
        self._outcome.instances = _count(len(there), started)

    async def _start_batches(self) -> None:
        """They know nobody, and nobody knows them."""
        wanted = [ids.batch_workflow(r.id) for r in await self._database.aread(batches.not_ended)]
        missing = await self._workflows.missing(wanted) if wanted else set()
        rows = await self._database.aread(batches.not_ended)  # after the look, too
        lost = [batches.state_of(r, Timings()) for r in rows if ids.batch_workflow(r.id) in missing]
        started = await _each(lost, self._workflows.start_batch)
        self._outcome.batches = _count(len(rows) - len(lost), started)

    def _has_owner(self, row: InstanceRow) -> bool:
        return any(d.name == row.deployment for d in self._rows.deployments)

    async def _start_deployments(self) -> dict[str, Instance]:
        """What the started ones know of their instances, by id."""
        rows = await self._database.aread(recorded.everything)
        instances = [r.instance for r in _revived(rows, self._lost)]
        states = [_state(row, instances) for row in rows.deployments if row.name in self._lost]
        for gone in filter(is_gone, states):
            await self._database.awrite(partial(recorded.forget_deployment, name=gone.name, run_id=gone.run_id))
            self._outcome.orphans.append(gone.name)
        left = [d for d in states if not is_gone(d)]
        started = await _each(left, self._workflows.take_up_deployment)
        self._outcome.deployments = _count(len(self._rows.deployments) - len(self._lost), started)
        begun = {d.name for d, s in zip(left, started, strict=True) if s}
        return {i.instance_id: i for i in instances if i.deployment in begun}

    async def _tell_the_news(self, told: dict[str, Instance]) -> None:
        """Whatever was recorded before its deployment began may have been said to nobody."""
        for _ in range(_ROUNDS):
            rows = await self._database.aread(recorded.everything)
            now = {r.instance.instance_id: r.instance for r in _revived(rows, self._lost)}
            await self._tell_of_lost_hosts(rows, told)
            news = [(i, _news(i, now.get(i.instance_id))) for i in told.values()]
            changed = [(i.deployment, n) for i, n in news if n != news_of(i)]
            await _each(changed, lambda c: self._workflows.tell_deployment(*c))
            told = {k: now[k] for k in told if k in now}
            if not changed:
                return

    async def _tell_of_lost_hosts(self, rows: Rows, told: dict[str, Instance]) -> None:
        """A host that was lost before its instances began has told nobody."""
        gone = lost_hosts(rows.hosts, (i.host_id for i in rows.instances))
        for row in rows.instances:
            if row.host_id is not None and row.host_id in gone and row.id in told:
                await self._workflows.tell_host_lost(row.id, row.host_id)

    async def _clean_up(self) -> None:
        """Instances that no deployment knows, and that know of none."""
        suspects = [
            i
            for i in self._rows.instances
            if ids.instance_workflow(i.id) in self._missing and i.deployment not in self._lost
        ]
        known: set[str] = set()
        for name in {i.deployment for i in suspects if self._has_owner(i)}:
            known |= await self._workflows.instances_of(name)
        for orphan in [i.id for i in suspects if i.id not in known]:
            await self._database.awrite(partial(recorded.clean_up_instance, instance_id=orphan))
            self._outcome.orphans.append(orphan)


def _revived(rows: Rows, owners: dict[str, DeploymentRow]) -> list[Revived]:
    claims: dict[str, list[ClaimRow]] = {}
    for claim in rows.claims:
        claims.setdefault(claim.instance_id, []).append(claim)
    gone = lost_hosts(rows.hosts, (i.host_id for i in rows.instances))
    return [
        instance_of(row, owners[row.deployment], claims.get(row.id, []), gone)
        for row in rows.instances
        if row.deployment in owners
    ]


def _state(row: DeploymentRow, instances: list[Instance]) -> Deployment:
    return deployment_of(row, [i for i in instances if i.deployment == row.name])


def _news(before: Instance, now: Instance | None) -> InstanceNews:
    if now is not None:
        return news_of(now)
    return news_of(before).model_copy(update={"state": InstanceState.STOPPED, "gone": True})


def _count(there: int, started: list[bool]) -> Count:
    """``started``: False for those that somebody else has begun meanwhile."""
    return Count(started=sum(started), existing=there + started.count(False))


async def _each(items: Iterable[T], call: Callable[[T], Awaitable[R]]) -> list[R]:
    """In the order of ``items``, some at a time."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(item: T) -> R:
        async with turn:
            return await call(item)

    return await asyncio.gather(*map(one, items))
