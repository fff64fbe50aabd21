"""What one replica needs on the cards there are, with what its like said of their memory before."""

from fleet.db import sizings
from fleet.db.session import Database
from fleet.engines.spec import EngineSpec
from fleet.evaluation.scene import of_fleet
from fleet.placement.fleet import Fleet
from fleet.placement.guess import guessed
from fleet.placement.kind import ReplicaKind
from fleet.placement.needs import Needs
from fleet.placement.sized import needs_for
from fleet.sizing.facts import Lora, ModelFacts
from fleet.sizing.known import NOTHING_KNOWN


class Sizer:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def needs(
        self,
        spec: EngineSpec,
        facts: ModelFacts | None,
        file_bytes: int,
        fleet: Fleet,
        *,
        draft: ModelFacts | None = None,
        loras: tuple[Lora, ...] = (),
    ) -> Needs:
        """``facts`` None: the model could not be read, and all that counts is its size. ``draft``: of the model that
        guesses ahead. ``loras``: of its adapters, as far as they could be read."""
        if spec.memory_bytes is not None or facts is None:
            return guessed(spec, file_bytes)
        said = await self._database.aread(lambda s: sizings.known(s, facts.fingerprint))
        known = said.get((spec.engine, spec.engine_version), NOTHING_KNOWN)
        kind = ReplicaKind(spec, facts, draft, loras, known)
        return needs_for(kind, [cards.for_sizing for cards in of_fleet(fleet, spec.placement)])
