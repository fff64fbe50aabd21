"""The fleet packed for placement, as the database was a moment ago, and the models that its hosts have."""

from collections.abc import Mapping
from dataclasses import replace

from fleet.db.fleet_reader import FleetReader
from fleet.db.session import Database
from fleet.host_client import FileFacts
from fleet.model_files import ModelFiles
from fleet.placement.fleet import Fleet
from fleet.placement.request import Placement
from fleet.placement.view import HostView, ModelFile
from fleet.policy.nominated import Nominated, visible


class KnownFleet:
    """One for each controller process."""

    def __init__(self, database: Database, files: ModelFiles) -> None:
        self._reader = FleetReader(database)
        self._files = files
        self._packed = Fleet.of([])
        self._version = 0

    async def look(self, longest_s: float | None = None) -> None:
        """As it was ``longest_s`` ago at most; None: a fraction of a second."""
        await self._reader.look(longest_s)
        self._pack()

    async def refresh(self, host_ids: tuple[str, ...]) -> None:
        """What is believed of these was wrong; of all, if none is named."""
        await self._reader.refresh(host_ids)
        self._pack()

    def claimed(self, instance_id: str, fence: int, placement: Placement, priority: int) -> None:
        self._reader.claimed(instance_id, fence, placement, priority)
        self._pack()

    @property
    def any_reserved(self) -> bool:
        return any(h.reserved_for for h in self._reader.hosts())

    def fleet(self, kept: Nominated) -> Fleet:
        """Without the room that is kept for others."""
        touched = {host_id for host_id, _ in kept.bytes_on}
        hosts = [view for host_id in touched if (view := self._reader.host(host_id)) is not None]
        if not hosts:
            return self._packed
        mine = self._packed.copy()
        for view in visible(hosts, kept):
            mine.update(view)
        return mine

    def hosts(self, deployment: str, kept: Nominated, files: Mapping[str, FileFacts]) -> list[HostView]:
        """One by one, for those who look at who runs where."""
        seen = visible(self._reader.hosts(deployment), kept)
        return [replace(h, model=_model(files.get(h.host_id))) for h in seen]

    def host(self, host_id: str) -> HostView | None:
        return self._reader.host(host_id)

    async def files(self, path: str) -> dict[str, FileFacts]:
        """By host that can read what is at ``path`` there. Hosts that do not answer have nothing."""
        hosts = self._reader.hosts()
        addresses = [a for h in hosts if (a := self._reader.address_of(h.host_id)) is not None]
        found = await self._files.on(addresses, path)
        return {host_id: facts for host_id, facts in found.items() if facts is not None and facts.readable}

    def _pack(self) -> None:
        changes = self._reader.changes(self._version)
        for host in changes.hosts:
            self._packed.update(host)
        for host_id in changes.gone:
            self._packed.remove(host_id)
        self._version = changes.version


def _model(facts: FileFacts | None) -> ModelFile | None:
    return ModelFile(facts.path, facts.size_bytes) if facts is not None else None
