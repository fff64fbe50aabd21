"""Placing replicas: decide in memory, commit in the ledger."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

from sqlmodel import Session
from temporalio import activity

from activities.contracts import PlacementContract, ReleaseRequest
from activities.preemption import RoomMaker
from activities.waiting import WaitingInstances
from fleet.access.sealing import Sealer, host_sealer
from fleet.db import claims, nominations
from fleet.db.fleet_reader import FleetReader
from fleet.db.hosts import replicas_by_host
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, HostRow
from fleet.model_files import ModelFiles
from fleet.placement.decision import Decision, Refusal
from fleet.placement.fleet import Fleet
from fleet.placement.guess import guessed
from fleet.placement.needs import Needs
from fleet.placement.place import place
from fleet.placement.request import Placement, PlacementRequest, PlaceResult, Unplaceable
from fleet.placement.search import Search
from fleet.placement.view import HostView, ModelFile
from fleet.policy.nominated import Nominated, visible

_LOOKS = 10
"""How often a lost race makes us look again before we let the workflow wait."""
_PROJECTED_SOON_S = 0.1


@dataclass(frozen=True)
class Question:
    """A request, and the fleet as it may use it."""

    request: PlacementRequest
    """With the labels and the priority that its deployment has now."""
    hosts: list[HostView]
    kept: Nominated

    @cached_property
    def files(self) -> dict[str, int]:
        """Size of the model's file by host that has it."""
        return {h.host_id: h.model.size_bytes for h in self.hosts if h.model is not None}

    @cached_property
    def needs(self) -> Needs:
        return guessed(self.request.spec, max(self.files.values(), default=0))

    def answer(self) -> Decision | Refusal:
        bound_for = [h for h in self.hosts if h.host_id in self.kept.bound_for]
        if bound_for and isinstance(found := self._on(bound_for), Decision):
            return found
        return self._on(self.hosts)

    def best(self, request: PlacementRequest, needs: Needs, fleet: Fleet) -> Decision | None:
        """As ``answer``, of a fleet that is supposed to be."""
        return Search(request, needs, fleet, files=self.files.keys()).best()

    def _on(self, hosts: Collection[HostView]) -> Decision | Refusal:
        fleet = Fleet.of(list(hosts), self.request.deployment)
        return place(self.request, self.needs, fleet, files=self.files.keys())


class PlacementActivities(PlacementContract):
    def __init__(
        self, database: Database, files: ModelFiles, master: Sealer, waiting: WaitingInstances, room: RoomMaker
    ) -> None:
        self._database = database
        self._room = room
        self._fleet = FleetReader(database)
        self._files = files
        self._master = master
        self._waiting = waiting

    @activity.defn(name="place_instance")
    async def place_instance(self, request: PlacementRequest) -> PlaceResult:
        try:
            before = await self._database.aread(lambda s: claims.existing(s, request.instance_id, request.fence))
            if before is not None:
                return PlaceResult(placement=before)
            return await self._place(request)
        except claims.StaleFence as stale:
            return PlaceResult(newer_fence=stale.newest)

    @activity.defn(name="release_claim")
    async def release_claim(self, request: ReleaseRequest) -> None:
        def give_back(session: Session) -> list[str]:
            hosts = claims.maintained_hosts_of(session, request.instance_id)
            of = (session, request.instance_id, request.fence)
            gone = claims.hosts_of(*of) if request.engine_gone else request.hosts_gone
            claims.release(*of, gone_from=gone)
            return hosts

        hosts = await self._database.awrite(give_back)
        await asyncio.gather(self._waiting.wake(), self._waiting.tell_hosts(hosts))

    async def _place(self, request: PlacementRequest) -> PlaceResult:
        reason = "too many others place at the same time"
        for _ in range(_LOOKS):
            asked = await self.question(request)
            verdict = asked.answer()
            if isinstance(verdict, Refusal):
                waits = await self._room.make_room(
                    asked.request, asked.needs, asked.hosts, verdict.unplaceable, asked.best
                )
                return PlaceResult(unplaceable=waits)
            chosen = self._placement(verdict, asked.hosts)
            try:
                placement = await self._database.awrite(
                    lambda s, a=asked.request, v=verdict, c=chosen: self._commit(s, a, v, c)  # type: ignore[misc]
                )
                return PlaceResult(placement=placement)
            except claims.ClaimLost as lost:
                reason = str(lost)
        return PlaceResult(unplaceable=Unplaceable(reasons=(reason,)))

    async def question(self, request: PlacementRequest) -> Question:
        hosts = await self._hosts(request)
        labels = await self._labels(request.deployment, hosts)
        request = await self._room.with_priority(request.model_copy(update={"labels": labels}))
        kept = await self._room.kept_for_others(request)
        return Question(request, visible(hosts, kept), kept)

    @staticmethod
    def _placement(decision: Decision, hosts: list[HostView]) -> Placement:
        seat = decision.seats[0]
        model = next(h.model for h in hosts if h.host_id == seat.host_id)
        return Placement(
            host_id=seat.host_id,
            gpu_uuids=seat.gpu_uuids,
            memory_bytes=seat.gpu_bytes if seat.gpu_uuids else seat.ram_bytes,
            model_path=model.path if model else "",
        )

    async def _labels(self, deployment: str, hosts: list[HostView]) -> dict[str, str]:
        """Of the deployment; asked for only where some host is reserved. Its first projection may be on its way."""
        for _ in range(_LOOKS if any(h.reserved_for for h in hosts) else 0):
            row = await self._database.aread(lambda s: s.get(DeploymentRow, deployment))
            if row is not None:
                return row.labels
            await asyncio.sleep(_PROJECTED_SOON_S)
        return {}

    async def _hosts(self, request: PlacementRequest) -> list[HostView]:
        await self._fleet.look(0)
        hosts = self._fleet.hosts(request.deployment)
        addresses = [a for h in hosts if (a := self._fleet.address_of(h.host_id)) is not None]
        found = await self._files.on(addresses, request.spec.model_path)
        files = {i: ModelFile(f.path, f.size_bytes) for i, f in found.items() if f is not None and f.readable}
        return [replace(h, model=files.get(h.host_id)) for h in hosts]

    def _commit(self, session: Session, request: PlacementRequest, decision: Decision, chosen: Placement) -> Placement:
        claims.expire(session, datetime.now(UTC))
        before = claims.existing(session, request.instance_id, request.fence)
        if before is not None:
            return before
        seat = decision.seats[0]
        host_id = seat.host_id
        if replicas_by_host(session, request.deployment).get(host_id, 0) > seat.replicas_there:
            raise claims.ClaimLost(f"another replica was placed on {host_id} meanwhile")  # they should spread
        placement = chosen.model_copy(
            update={"env_for_host": self._seal_for(session, host_id, request.spec.env_sealed)}
        )
        claims.claim(
            session,
            request.instance_id,
            request.fence,
            placement,
            {host_id: seat.generation},
            priority=request.priority,
        )
        nominations.placed(session, request.instance_id, request.deployment, placement.hosts)
        return placement

    def _seal_for(self, session: Session, host_id: str, env: dict[str, str]) -> dict[str, str]:
        if not env:
            return {}
        sealer = host_sealer(session.get_one(HostRow, host_id).credential_hash)
        return {name: sealer.seal(self._master.open(value)) for name, value in env.items()}
