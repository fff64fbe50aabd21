"""Placing replicas: decide in memory, commit in the ledger."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from sqlmodel import Session
from temporalio import activity

from activities.contracts import PlacementContract, ReleaseRequest
from activities.known_fleet import KnownFleet
from activities.preemption import RoomMaker
from activities.sizing import Sizer
from activities.waiting import WaitingInstances
from fleet.access.sealing import Sealer, host_sealer
from fleet.db import claims, nominations, ports
from fleet.db.hosts import replicas_by_host
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, HostRow
from fleet.host_client import FileFacts
from fleet.model_files import ModelFiles
from fleet.placement.decision import Decision, Refusal, Seat
from fleet.placement.fleet import Fleet
from fleet.placement.needs import Needs
from fleet.placement.place import place
from fleet.placement.request import Member, ModelCard, Placement, PlacementRequest, PlaceResult, Unplaceable
from fleet.placement.search import Search
from fleet.placement.view import HostView
from fleet.policy.nominated import Nominated
from fleet.sizing.facts import Lora, ModelFacts

_LOOKS = 10
"""How often a lost race makes us look again before we let the workflow wait."""
_PROJECTED_SOON_S = 0.1


@dataclass(frozen=True)
class Question:
    """A request, and the fleet as it may use it."""

    request: PlacementRequest
    """With the labels and the priority that its deployment has now."""
    fleet: Fleet
    files: Mapping[str, FileFacts]
    """By host that can read the model."""
    facts: ModelFacts | None
    """None: no host could make sense of its files."""
    needs: Needs
    kept: Nominated
    known: KnownFleet

    @cached_property
    def hosts(self) -> list[HostView]:
        """Of ``fleet``, one by one."""
        return self.known.hosts(self.request.deployment, self.kept, self.files)

    def answer(self) -> Decision | Refusal:
        bound_for = [h for h in self.kept.bound_for if h in self.fleet]
        if bound_for:
            kept_for_it = Fleet.of([self.fleet.view(h) for h in bound_for])
            if (found := self.best(self.request, self.needs, kept_for_it)) is not None:
                return found
        return place(self.request, self.needs, self.fleet, files=self.files.keys())

    def best(self, request: PlacementRequest, needs: Needs, fleet: Fleet) -> Decision | None:
        """As ``answer``, of a fleet that is supposed to be."""
        return Search(request, needs, fleet, files=self.files.keys()).best()


class PlacementActivities(PlacementContract):
    def __init__(
        self, database: Database, files: ModelFiles, master: Sealer, waiting: WaitingInstances, room: RoomMaker
    ) -> None:
        self._database = database
        self._room = room
        self._known = KnownFleet(database, files)
        self._sizer = Sizer(database)
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

    async def question(self, request: PlacementRequest) -> Question:
        """As placement asks now."""
        await self._known.look(0)
        return await self._question(request)

    async def _place(self, request: PlacementRequest) -> PlaceResult:
        reason, longest = "too many others place at the same time", None
        for _ in range(_LOOKS):
            await self._known.look(longest)
            asked = await self._question(request)
            verdict = asked.answer()
            if isinstance(verdict, Refusal):
                if longest is None:  # there may be room that came a moment ago
                    longest = 0.0
                    continue
                return PlaceResult(unplaceable=await self._make_room(asked, verdict))
            try:
                return PlaceResult(placement=await self._claimed(asked, verdict))
            except claims.ClaimLost as lost:
                reason = str(lost)
                await self._known.refresh(lost.hosts)
        return PlaceResult(unplaceable=Unplaceable(reasons=(reason,)))

    async def _question(self, request: PlacementRequest) -> Question:
        request = request.model_copy(update={"labels": await self._labels(request.deployment)})
        request = await self._room.with_priority(request)
        kept = await self._room.kept_for_others(request)
        files = await self._known.files(request.spec.model_path)
        facts = next((f.model for f in files.values() if f.model is not None), None)
        size = max((f.size_bytes for f in files.values()), default=0)
        draft, loras = await self._draft(request), await self._loras(request)
        fleet = self._known.fleet(kept)
        needs = await self._sizer.needs(request.spec, facts, size, fleet, draft=draft, loras=loras)
        return Question(request, fleet, files, facts, needs, kept, self._known)

    async def _draft(self, request: PlacementRequest) -> ModelFacts | None:
        speculative = request.spec.speculative
        if speculative is None or speculative.model is None:
            return None
        found = await self._known.files(speculative.model)
        return next((f.model for f in found.values() if f.model is not None), None)

    async def _loras(self, request: PlacementRequest) -> tuple[Lora, ...]:
        found = [await self._known.files(lora.path) for lora in request.spec.lora]
        told = (next((f.lora for f in files.values() if f.lora is not None), None) for files in found)
        return tuple(lora for lora in told if lora is not None)

    async def _make_room(self, asked: Question, refusal: Refusal) -> Unplaceable:
        return await self._room.make_room(asked.request, asked.needs, asked.hosts, refusal.unplaceable, asked.best)

    async def _labels(self, deployment: str) -> dict[str, str]:
        """Of the deployment; asked for only where some host is reserved. Its first projection may be on its way."""
        for _ in range(_LOOKS if self._known.any_reserved else 0):
            row = await self._database.aread(lambda s: s.get(DeploymentRow, deployment))
            if row is not None:
                return row.labels
            await asyncio.sleep(_PROJECTED_SOON_S)
        return {}

    async def _claimed(self, asked: Question, decision: Decision) -> Placement:
        """Raises ClaimLost."""
        chosen = self._chosen(asked, decision)
        placement = await self._database.awrite(lambda s: self._commit(s, asked.request, decision, chosen))
        self._known.claimed(asked.request.instance_id, asked.request.fence, placement, asked.request.priority)
        return placement

    def _chosen(self, asked: Question, decision: Decision) -> Placement:
        """Without ports and secrets."""
        leader, *others = (self._member(asked, seat) for seat in decision.seats)
        seat = decision.seats[0]
        return Placement(
            host_id=leader.host_id,
            gpu_uuids=leader.gpu_uuids,
            memory_bytes=seat.gpu_bytes if seat.gpu_uuids else seat.ram_bytes,
            ram_bytes=seat.ram_bytes if seat.gpu_uuids else 0,
            model_path=leader.model_path,
            address=leader.address,
            sizing=decision.need.sizing,
            card=ModelCard.of(asked.facts) if asked.facts is not None else ModelCard(),
            followers=tuple(others),
        )

    def _member(self, asked: Question, seat: Seat) -> Member:
        facts, view = asked.files.get(seat.host_id), self._known.host(seat.host_id)
        return Member(
            host_id=seat.host_id,
            gpu_uuids=seat.gpu_uuids,
            address=view.fabric_address if view is not None else "",
            model_path=facts.path if facts is not None else "",
        )

    def _commit(self, session: Session, request: PlacementRequest, decision: Decision, chosen: Placement) -> Placement:
        claims.expire(session, datetime.now(UTC))
        before = claims.existing(session, request.instance_id, request.fence)
        if before is not None:
            return before
        self._check_spread(session, request, decision)
        placement = self._complete(session, request, decision, chosen)
        generations = {seat.host_id: seat.generation for seat in decision.seats}
        of = (session, request.instance_id, request.fence)
        claims.claim(*of, placement, generations, priority=request.priority)
        nominations.placed(session, request.instance_id, request.deployment, placement.hosts)
        return placement

    @staticmethod
    def _check_spread(session: Session, request: PlacementRequest, decision: Decision) -> None:
        there = replicas_by_host(session, request.deployment)
        for seat in decision.seats:
            if there.get(seat.host_id, 0) > seat.replicas_there:  # they should spread
                message = f"another replica was placed on {seat.host_id} meanwhile"
                raise claims.ClaimLost(message, (seat.host_id,))

    def _complete(
        self, session: Session, request: PlacementRequest, decision: Decision, chosen: Placement
    ) -> Placement:
        """With ports and secrets, which only their hosts can read."""
        seed = f"{request.instance_id}/{request.fence}"
        more = [
            {
                "ports": ports.pick_ports(session, seat.host_id, seat.ports, seed),
                "env_for_host": self._seal_for(session, seat.host_id, request.spec.env_sealed),
            }
            for seat in decision.seats
        ]
        followers = tuple(m.model_copy(update=u) for m, u in zip(chosen.followers, more[1:], strict=True))
        return chosen.model_copy(update={**more[0], "followers": followers})

    def _seal_for(self, session: Session, host_id: str, env: dict[str, str]) -> dict[str, str]:
        if not env:
            return {}
        sealer = host_sealer(session.get_one(HostRow, host_id).credential_hash)
        return {name: sealer.seal(self._master.open(value)) for name, value in env.items()}
