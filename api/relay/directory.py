"""The hosts that there are, in memory: whose key verifies a pass, which machine speaks, how it is reached."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from fleet.db import registry
from fleet.db.session import Database
from fleet.db.tables import HostRow

log = logging.getLogger("holdfast.relay")

_LOOK_EVERY_S = 0.25
_REMEMBER_MISSING_S = 1.0
_MISSING_MAX = 4096
_LOOKS_AT_ONCE = 2
"""For hosts that nobody knows: whoever makes up names must not keep all threads busy."""
_COLUMNS = (
    HostRow.id,
    HostRow.public_key,
    HostRow.boot_id,
    HostRow.address,
    HostRow.http_port,
    HostRow.reach,
    HostRow.tunnel_only,
)


@dataclass(frozen=True, slots=True)
class KnownHost:
    id: str
    public_key: str
    boot_id: str
    """Of the machine that speaks as this host; empty: it has not registered yet."""
    address: str
    port: int
    reach: str
    tunnel_only: bool


class HostDirectory:
    """All hosts, loaded again when the registry's version moves; as last known while the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._hosts: dict[str, KnownHost] = {}
        self._version = -1
        self._missing: dict[str, float] = {}
        """Hosts that there are not, and when we looked."""
        self._turn = asyncio.Semaphore(_LOOKS_AT_ONCE)

    @property
    def all(self) -> Mapping[str, KnownHost]:
        return self._hosts

    def known(self, host_id: str) -> KnownHost | None:
        """From memory only."""
        return self._hosts.get(host_id)

    async def find(self, host_id: str) -> KnownHost | None:
        """Asks the database for a host that it does not know. Raises SQLAlchemyError."""
        if (known := self._hosts.get(host_id)) is not None:
            return known
        if time.monotonic() - self._missing.get(host_id, -_REMEMBER_MISSING_S) < _REMEMBER_MISSING_S:
            return None
        async with self._turn:
            return self._hosts.get(host_id) or await self.look_up(host_id)

    async def look_up(self, host_id: str) -> KnownHost | None:
        """As it is in the database now. Raises SQLAlchemyError."""
        if "\x00" in host_id:
            return None
        query = select(*_COLUMNS).where(col(HostRow.id) == host_id)  # type: ignore[call-overload]
        row = await self._database.aread(lambda s: s.exec(query).first())
        if row is None:
            self._hosts.pop(host_id, None)
            if len(self._missing) >= _MISSING_MAX:
                self._missing.clear()
            self._missing[host_id] = time.monotonic()
            return None
        found = self._hosts[host_id] = KnownHost(*row)
        return found

    async def run(self) -> None:
        """Keep it fresh, for ever."""
        failing = False
        while True:
            try:
                await self._refresh()
                failing = False
            except SQLAlchemyError as error:
                if not failing:
                    log.warning("the database does not answer; going on with what is known: %s", error)
                failing = True
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _refresh(self) -> None:
        # The version first: what is written after it was read makes the next look load again.
        version = await self._database.aread(registry.version)
        if version == self._version:
            return
        self._hosts = await self._database.aread(_load)
        self._missing.clear()
        self._version = version


def _load(session: Session) -> dict[str, KnownHost]:
    rows = session.exec(select(*_COLUMNS)).all()  # type: ignore[call-overload]
    return {row[0]: KnownHost(*row) for row in rows}
