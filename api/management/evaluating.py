"""Where evaluations get what they are made from: the fleet as it is now, and facts of models. They change nothing."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from api.state import Services
from fleet.catalog.machines import machines
from fleet.db import sizings
from fleet.db.fleet_reader import FleetReader
from fleet.errors import HoldfastError, InvalidInput, Unavailable
from fleet.evaluation.answer import Evaluation, Message
from fleet.evaluation.case import Ground
from fleet.evaluation.evaluate import evaluate
from fleet.evaluation.inventory import DeclaredInventory, every_engine, hosts_of
from fleet.evaluation.question import Described, Question
from fleet.host_client import FileFacts
from fleet.hub_facts import HubFacts
from fleet.placement.fleet import Fleet
from fleet.placement.view import HostView
from fleet.sizing.facts import Lora, ModelFacts
from fleet.sizing.files import ReadError, ReadProblem
from fleet.specs import DeploymentSpec

FLEET_AGE_S = 1.0
"""So old may be what an evaluation knows of the fleet."""
_ASKED_S = 10.0
"""So long is remembered which hosts have a model; asking a thousand takes a while."""
_MOST_ASKED = 256


@dataclass(frozen=True)
class Found:
    """A model, and where it is."""

    facts: ModelFacts
    hosts: frozenset[str] | None = None
    """That have it; None: it can be brought to any."""
    note: str = ""


@dataclass
class Evaluator:
    """One for each API process."""

    services: Services
    hubs: HubFacts
    fleet_age_s: float = FLEET_AGE_S
    _fleet: Fleet = field(default_factory=lambda: Fleet.of(()))
    _version: int = 0
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One evaluation at a time: they are of the processor alone, and some need the fleet to hold still."""
    _asked: dict[tuple[str, str], tuple[float, Found]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reader = FleetReader(self.services.database, max_age_s=self.fleet_age_s)

    async def answer(self, question: Question) -> Evaluation:
        """Raises InvalidInput and Unavailable."""
        if isinstance(question.against, Described):
            found = await self._found(question.spec)
            said = await self._on_described(question, found, question.against.inventory)
        elif question.against == "catalog":
            found = await self._found(question.spec)
            async with self._busy:
                said = await asyncio.to_thread(evaluate, question, found.facts, Ground("catalog", machines=machines()))
        else:
            found = await self._found(question.spec)
            said = await self._on_fleet(question, found)
        return _noted(said, found.note)

    async def aclose(self) -> None:
        await self.hubs.aclose()

    async def _on_fleet(self, question: Question, found: Found) -> Evaluation:
        draft, loras = await self._companions(question.spec)
        async with self._busy:
            await self._reader.look()
            known = await self.services.database.aread(lambda s: sizings.known(s, found.facts.fingerprint))
            ground = Ground("fleet", self._fleet, files=found.hosts, known=known, draft=draft, loras=loras)
            return await asyncio.to_thread(self._evaluate_now, question, found.facts, ground)

    def _evaluate_now(self, question: Question, facts: ModelFacts, ground: Ground) -> Evaluation:
        changes = self._reader.changes(self._version)
        for host_id in changes.gone:
            self._fleet.remove(host_id)
        for host in changes.hosts:
            self._fleet.update(host)
        self._version = changes.version
        return evaluate(question, facts, ground)

    async def _on_described(self, question: Question, found: Found, inventory: DeclaredInventory) -> Evaluation:
        def work() -> Evaluation:
            fleet = Fleet.of(hosts_of(inventory, every_engine()))
            return evaluate(question, found.facts, Ground("inventory", fleet))

        async with self._busy:
            return await asyncio.to_thread(work)

    # -- models --------------------------------------------------------------------------------------------------------

    async def _found(self, spec: DeploymentSpec) -> Found:
        if spec.model.source == "local":
            return await self._on_hosts(spec)
        try:
            return Found(await self.hubs.of(spec.model))
        except ReadError as error:
            raise refused(error, "spec.model.repo") from error

    async def _on_hosts(self, spec: DeploymentSpec) -> Found:
        path, selector = spec.model.path or "", spec.placement.host_selector
        key = (path, repr(sorted(selector.items())))
        known = self._asked.get(key)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        async with self._busy:
            await self._reader.look()
            hosts = [h for h in self._reader.hosts() if selector.items() <= h.labels.items()]
        found = _agreed(path, hosts, await self._ask(hosts, path))
        if len(self._asked) >= _MOST_ASKED:
            self._asked.clear()
        self._asked[key] = (time.monotonic() + _ASKED_S, found)
        return found

    async def _companions(self, spec: DeploymentSpec) -> tuple[ModelFacts | None, tuple[Lora, ...]]:
        """What hosts say of the draft model and of the adapters, as placement would hear it."""
        guesses = spec.speculative.model if spec.speculative is not None else None
        paths = [*([guesses] if guesses else []), *(lora.path for lora in spec.lora)]
        if not paths:
            return None, ()
        async with self._busy:
            await self._reader.look()
            hosts = self._reader.hosts()
        told = {path: await self._readable(hosts, path) for path in paths}
        draft = next((f.model for f in told.get(guesses or "", ()) if f.model is not None), None)
        loras = (next((f.lora for f in told[lora.path] if f.lora is not None), None) for lora in spec.lora)
        return draft, tuple(lora for lora in loras if lora is not None)

    async def _readable(self, hosts: list[HostView], path: str) -> list[FileFacts]:
        return [f for f in (await self._ask(hosts, path)).values() if f is not None and f.readable]

    async def _ask(self, hosts: list[HostView], path: str) -> dict[str, FileFacts | None]:
        addresses = (self._reader.address_of(h.host_id) for h in hosts)
        return await self.services.files.on([a for a in addresses if a is not None], path)


def refused(error: ReadError, field_: str) -> HoldfastError:
    if error.kind is ReadProblem.UNAVAILABLE:
        return Unavailable(error.message, hint=error.hint)
    return InvalidInput(error.message, field=field_, hint=error.hint or "name another model")


def _agreed(path: str, hosts: list[HostView], facts: dict[str, FileFacts | None]) -> Found:
    """What most hosts that have the model say of it."""
    told = {host_id: f for host_id, f in facts.items() if f is not None and f.model is not None and f.readable}
    models = {f.model.fingerprint: f.model for f in told.values() if f.model is not None}
    if not models:
        raise _nowhere(path, hosts, facts)
    counts = Counter(f.model.fingerprint for f in told.values() if f.model is not None)
    most = max(counts, key=lambda fingerprint: (counts[fingerprint], fingerprint))
    have = frozenset(host_id for host_id, f in told.items() if f.model is not None and f.model.fingerprint == most)
    differ = sum(counts.values()) - counts[most]
    note = f"{differ} of {len(told)} hosts with {path!r} have another model by that name; they are left out"
    return Found(models[most], have, note if differ else "")


def _nowhere(path: str, hosts: list[HostView], facts: dict[str, FileFacts | None]) -> HoldfastError:
    """Why no host can tell what the model is."""
    answered = [f for f in facts.values() if f is not None]
    unread = next((f for f in answered if f.exists and f.model_error), None)
    if unread is not None:
        return InvalidInput(unread.model_error, field="spec.model.path", hint=unread.model_hint or "name another model")
    if len(answered) < len(facts):
        silent = len(facts) - len(answered)
        return Unavailable(
            f"{silent} of {len(facts)} hosts did not answer, and no other has {path!r}",
            hint="try again in a moment, or see `holdfast hosts`",
        )
    if not hosts:
        return InvalidInput(
            f"no ready host can be asked what {path!r} is",
            field="spec.model.path",
            hint="start a host, or evaluate a model that lies where you are: holdfast evaluate --local",
        )
    names = ", ".join(sorted(h.name for h in hosts)[:10]) + (", …" if len(hosts) > 10 else "")
    return InvalidInput(
        f"no host has the model {path!r} (asked: {names})",
        field="spec.model.path",
        hint="copy it there, name an absolute path or one relative to the host's models folder, or name one on a hub",
    )


def _noted(said: Evaluation, note: str) -> Evaluation:
    if not note:
        return said
    return said.model_copy(update={"messages": [*said.messages, Message(level="warning", text=note)]})
