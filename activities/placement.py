"""Placing replicas: decide in memory, commit in the ledger."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from sqlmodel import Session
from temporalio import activity

from activities.contracts import PlacementContract, ReleaseRequest
from activities.waiting import WaitingInstances
from fleet.access.sealing import Sealer, host_sealer
from fleet.db import claims
from fleet.db.hosts import ReadyHost, ready_hosts, replicas_by_host
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, HostRow
from fleet.host_client import FileFacts
from fleet.model_files import ModelFiles
from fleet.placement.decision import Decision, Refusal
from fleet.placement.fleet import Fleet
from fleet.placement.guess import guessed
from fleet.placement.place import place
from fleet.placement.request import Placement, PlacementRequest, PlaceResult, Unplaceable
from fleet.placement.view import HostView, ModelFile

_LOOKS = 10
"""How often a lost race makes us look again before we let the workflow wait."""
_PROJECTED_SOON_S = 0.1


class PlacementActivities(PlacementContract):
    def __init__(self, database: Database, files: ModelFiles, master: Sealer, waiting: WaitingInstances) -> None:
        self._database = database
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
        free = claims.release if request.engine_gone else claims.give_up

        def give_back(session: Session) -> list[str]:
            hosts = claims.maintained_hosts_of(session, request.instance_id)
            free(session, request.instance_id, request.fence)
            return hosts

        hosts = await self._database.awrite(give_back)
        await asyncio.gather(self._waiting.wake(), self._waiting.tell_hosts(hosts))

    async def _place(self, request: PlacementRequest) -> PlaceResult:
        reason = "too many others place at the same time"
        for _ in range(_LOOKS):
            hosts = await self._hosts(request)
            labels = await self._labels(request.deployment, hosts)
            verdict = self._decide(request.model_copy(update={"labels": labels}), hosts)
            if isinstance(verdict, Refusal):
                return PlaceResult(unplaceable=verdict.unplaceable)
            chosen = self._placement(verdict, hosts)
            try:
                placement = await self._database.awrite(
                    lambda s, v=verdict, c=chosen: self._commit(s, request, v, c)  # type: ignore[misc]
                )
                return PlaceResult(placement=placement)
            except claims.ClaimLost as lost:
                reason = str(lost)
        return PlaceResult(unplaceable=Unplaceable(reasons=(reason,)))

    @staticmethod
    def _decide(request: PlacementRequest, hosts: list[HostView]) -> Decision | Refusal:
        files = {h.host_id: h.model.size_bytes for h in hosts if h.model is not None}
        needs = guessed(request.spec, max(files.values(), default=0))
        return place(request, needs, Fleet.of(hosts, request.deployment), files=files.keys())

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
        ready = await self._database.aread(lambda s: ready_hosts(s, request.deployment))
        files = await self._files.on([h.address for h in ready], request.spec.model_path)
        return [self._with_model(h, files) for h in ready]

    @staticmethod
    def _with_model(host: ReadyHost, files: dict[str, FileFacts | None]) -> HostView:
        facts = files.get(host.view.host_id)
        if facts is None or not facts.readable:
            return host.view
        return replace(host.view, model=ModelFile(facts.path, facts.size_bytes))

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
        claims.claim(session, request.instance_id, request.fence, placement, {host_id: seat.generation})
        return placement

    def _seal_for(self, session: Session, host_id: str, env: dict[str, str]) -> dict[str, str]:
        if not env:
            return {}
        sealer = host_sealer(session.get_one(HostRow, host_id).credential_hash)
        return {name: sealer.seal(self._master.open(value)) for name, value in env.items()}
