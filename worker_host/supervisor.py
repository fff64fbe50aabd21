"""All engines of this host: takes them over from Temporal, adopts them after a restart, stops those nobody wants."""

import asyncio
import logging
import time
from datetime import timedelta

from temporalio.exceptions import ApplicationError

from fleet.gangs import Acceptance
from fleet.instances import EngineLaunch
from fleet.inventory import EngineRef
from worker_host.acceptance import Promises, answer
from worker_host.proxy import Running
from worker_host.records import EngineRecord, pack
from worker_host.runtime.protocol import Handle
from worker_host.supervised import HostParts, SupervisedEngine

log = logging.getLogger("holdfast.host")

JANITOR_S = 30.0
_GRACE_ROUNDS = 2
"""How many rounds in a row an engine must be unknown before it is stopped: its claim may be being written."""


class Supervisor:
    def __init__(self, parts: HostParts) -> None:
        self._parts = parts
        self._engines: dict[str, SupervisedEngine] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._unknown: dict[EngineRef, int] = {}
        self._promises = Promises()

    def resume(self) -> None:
        """Go on with the engines of the host process before us."""
        for record in self._parts.records.engines():
            self._begin(record)

    async def take(self, launch: EngineLaunch, token: bytes, heartbeat: timedelta | None = None) -> None:
        """Answer for this engine by ``token`` from now on: start it, or adopt it when it runs already."""
        async with self._locks.setdefault(launch.instance_id, asyncio.Lock()):
            known = self._newest(launch)
            if known is not None and known.record.launch.fence == launch.fence:
                await known.take_token(pack(token), heartbeat)
                return
            if known is not None:
                known.stop(drain=False)
                await known.gone()
            record = await asyncio.to_thread(self._new_record, launch, token, heartbeat)
            await self._stop_strays_of(launch, keep=record.process)
            self._parts.records.save(record)
            self._begin(record)
            self._promises.keep(launch.instance_id)

    async def accept(self, launch: EngineLaunch) -> Acceptance:
        """Say whether this part of a gang can be run here; with a yes, no launch under an older fence is taken."""
        known = self._newest(launch)
        if known is not None and known.record.launch.fence == launch.fence:
            return Acceptance(runs=True)
        said = await answer(self._parts, launch)
        if said.refusal is None and self._newest(launch) is known:
            self._promises.make(launch)
        return said

    async def look(self, engine: EngineRef) -> None:
        known = self._engines.get(engine.instance_id)
        if known is not None:
            known.look()

    async def hurry(self, engine: EngineRef) -> None:
        known = self._engines.get(engine.instance_id)
        if known is not None and known.record.ref == engine:
            known.hurry()

    async def metrics(self, instance_id: str) -> str | None:
        """What the engine says of itself; None when it is not ours (any more) or does not answer."""
        known = self._engines.get(instance_id)
        return await known.metrics() if known is not None and known.record.launch.rank == 0 else None

    def where(self, instance_id: str) -> Running | None:
        """Where the engine of an instance listens; None unless it has been ready: one that loads would say no.

        None for one that leaves, too: gateways that have not heard of it yet ask another one instead. And for the
        followers of a gang: only their leader answers requests.
        """
        known = self._engines.get(instance_id)
        if known is None or known.leaving or known.record.port is None or known.record.launch.rank:
            return None
        if known.record.ready_since is None or known.record.ended:
            return None
        return Running(known.record.launch.fence, known.record.port, known.last_look)

    def records(self) -> list[EngineRecord]:
        """Of what this host answers for. May be called from a thread beside the loop."""
        return [e.record for e in list(self._engines.values())]

    def running(self) -> list[EngineRef]:
        """What this host answers for or finds running: its memory is in use."""
        strays = {ref for ref, _ in self._parts.runtimes.all()}
        # A copy: this runs in a thread beside the loop that changes it.
        return sorted(
            {e.record.ref for e in list(self._engines.values())} | strays, key=lambda r: (r.instance_id, r.fence)
        )

    async def keep_only(self, wanted: set[EngineRef], *, at_once: bool = False) -> None:
        """The janitor: stop what is not in ``wanted`` and has not been for a while (or ``at_once``)."""
        running = await asyncio.to_thread(self.running)
        self._unknown = {ref: self._unknown.get(ref, 0) + 1 for ref in running if ref not in wanted}
        doomed = [ref for ref, rounds in self._unknown.items() if at_once or rounds >= _GRACE_ROUNDS]
        await asyncio.gather(*map(self._stop_unwanted, doomed))
        live = {r.instance_id for r in running}
        await asyncio.to_thread(self._parts.logs.prune_old, live)
        answered_for = [e.record.ref for e in self._engines.values()]
        await asyncio.to_thread(self._parts.runtimes.clear_up, answered_for)

    async def let_go(self) -> None:
        """This process ends; the engines go on."""
        await asyncio.gather(*(e.let_go() for e in self._engines.values()))

    async def suspend(self) -> None:
        """This host ends, and its engines with it, until it comes back."""
        await asyncio.gather(*(e.suspend() for e in self._engines.values()))

    def _newest(self, launch: EngineLaunch) -> SupervisedEngine | None:
        """What runs of this instance. Raises ApplicationError when a newer fence is known here."""
        known = self._engines.get(launch.instance_id)
        newest = max(self._promises.newest(launch.instance_id), known.record.launch.fence if known is not None else 0)
        if newest > launch.fence:
            raise ApplicationError(
                f"{launch.instance_id} runs here under fence {newest} already", type="StaleFence", non_retryable=True
            )
        return known

    def _begin(self, record: EngineRecord) -> None:
        engine = SupervisedEngine(self._parts, record, self._forget)
        self._engines[record.launch.instance_id] = engine
        engine.begin()

    def _forget(self, engine: SupervisedEngine) -> None:
        instance_id = engine.record.launch.instance_id
        if self._engines.get(instance_id) is engine:
            del self._engines[instance_id]

    async def _stop_unwanted(self, ref: EngineRef) -> None:
        log.warning("nobody wants %s: stopping it", ref)
        known = self._engines.get(ref.instance_id)
        if known is not None and known.record.ref == ref:
            known.stop(drain=False)
            await known.gone()
            return
        await self._stop_strays({ref})

    def _new_record(self, launch: EngineLaunch, token: bytes, heartbeat: timedelta | None) -> EngineRecord:
        """With the engine's process, if it runs here already and its record was lost."""
        # Whoever heard the reports of a lost record must take ours for newer ones.
        sequence = int(time.time() * 1000)
        record = EngineRecord(launch=launch, token=pack(token), heartbeat=heartbeat, sequence=sequence)
        process = self._parts.runtimes.find(record.ref)
        port = self._parts.runtimes.of(process).port(process) if process is not None else None
        if port is None:
            return record
        attempt = self._parts.logs.latest(launch.instance_id) or 1
        return record.with_(process=process, port=port, attempt=attempt)

    async def _stop_strays_of(self, launch: EngineLaunch, keep: Handle | None) -> None:
        """Processes of this instance that no record speaks of."""
        everything = await asyncio.to_thread(self._parts.runtimes.all)
        strays = {r for r, _ in everything if r.instance_id == launch.instance_id and r.fence <= launch.fence}
        await self._stop_strays(strays, keep)

    async def _stop_strays(self, refs: set[EngineRef], keep: Handle | None = None) -> None:
        for ref, process in await asyncio.to_thread(self._parts.runtimes.all):
            if ref in refs and process != keep:
                runtime = self._parts.runtimes.of(process)
                await runtime.kill(process)
                await runtime.wait(process)
                await runtime.discard(process)
