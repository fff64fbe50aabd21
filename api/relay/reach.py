"""Whether hosts can be reached at their own port from here, and which of them hold a tunnel here: kept in the database,
where gateways read it."""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Collection

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from api.relay.directory import HostDirectory, KnownHost
from api.relay.tunnels import Tunnels
from fleet.access.authority import name_of_host
from fleet.db import registry
from fleet.db.session import Database
from fleet.db.tables import HostRow

log = logging.getLogger("holdfast.relay")

_DIAL_S = 3.0
_AGAIN_S = 60.0
_RECORD_EVERY_S = 10.0
_AT_ONCE = 16
_MISSES = 2
"""So often in a row a port must not answer before the tunnel is used instead of it."""


class Reach:
    """A host that wishes ``auto`` is dialled when it registers, when its address changes, and each minute while it
    holds a tunnel here: only then is it known to live, and only then is there another way."""

    def __init__(self, database: Database, directory: HostDirectory, tunnels: Tunnels, ca_pem: str, url: str) -> None:
        """``url``: where gateways reach this relay."""
        self._database = database
        self._directory = directory
        self._tunnels = tunnels
        self._tls = ssl.create_default_context(cadata=ca_pem)
        self._url = url
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._looked_at: dict[str, float] = {}
        self._missed: dict[str, int] = {}

    def look_at(self, host: KnownHost) -> None:
        """Soon, and at once: what was missed before counts no more."""
        if host.reach == "auto" and host.port and host.address:
            self._missed.pop(host.id, None)
            self._start(host, known_alive=True)

    async def run(self) -> None:
        """Until cancelled. The database may be away for as long as it likes."""
        failing = False
        try:
            while True:
                self._tunnels.changed.clear()
                self._look_again()
                opened = self._tunnels.opened()
                try:
                    await self._database.awrite(lambda s, o=opened: self._record(s, o))  # type: ignore[misc]
                    failing = False
                except SQLAlchemyError as error:
                    self._tunnels.opened_anew(opened)
                    if not failing:
                        log.warning("the database does not take which tunnels are here: %s", error)
                    failing = True
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._tunnels.changed.wait(), 1.0 if failing else _RECORD_EVERY_S)
        finally:
            for task in self._looking.values():
                task.cancel()

    async def forget_all(self) -> None:
        """This relay ends."""
        with contextlib.suppress(SQLAlchemyError):
            await self._database.awrite(self._forget)

    # -- ports ---------------------------------------------------------------------------------------------------

    def _look_again(self) -> None:
        now = time.monotonic()
        for host_id in self._tunnels.hosts:
            host = self._directory.known(host_id)
            if host is None:
                self._tunnels.close(host_id)
            if host is None or host.reach != "auto" or not host.port or not host.address:
                continue
            if now - self._looked_at.get(host_id, float("-inf")) >= _AGAIN_S:
                self._start(host, known_alive=False)
        for host_id in [h for h in self._looked_at if self._directory.known(h) is None]:
            self._looked_at.pop(host_id)
            self._missed.pop(host_id, None)

    def _start(self, host: KnownHost, *, known_alive: bool) -> None:
        self._looked_at[host.id] = time.monotonic()
        if (before := self._looking.get(host.id)) is not None:
            before.cancel()
        task = self._looking[host.id] = asyncio.create_task(self._look(host, misses=1 if known_alive else _MISSES))
        task.add_done_callback(lambda t: self._looking.pop(host.id) if self._looking.get(host.id) is t else None)

    async def _look(self, host: KnownHost, *, misses: int) -> None:
        async with self._turn:
            reached = await self._answers(host)
        self._missed[host.id] = 0 if reached else self._missed.get(host.id, 0) + 1
        if not reached and self._missed[host.id] < misses:
            self._looked_at[host.id] = time.monotonic() - _AGAIN_S + _RECORD_EVERY_S
            return
        try:
            await self._database.awrite(lambda s: _save(s, host, tunnel_only=not reached))
        except SQLAlchemyError:
            self._looked_at.pop(host.id, None)  # when the database is back, look again

    async def _answers(self, host: KnownHost) -> bool:
        name = name_of_host(host.id)
        opening = asyncio.open_connection(host.address, host.port, ssl=self._tls, server_hostname=name)
        try:
            _, writer = await asyncio.wait_for(opening, _DIAL_S)
        except (OSError, TimeoutError, ssl.SSLError, ValueError) as error:
            log.info("%s port %d of %s does not answer: %r", host.address, host.port, host.id, error)
            return False
        writer.transport.abort()
        return True

    # -- tunnels -------------------------------------------------------------------------------------------------

    def _forget(self, session: Session) -> None:
        gone = session.execute(update(HostRow).where(col(HostRow.tunnel_url) == self._url).values(tunnel_url=""))
        if gone.rowcount:  # type: ignore[attr-defined]
            registry.bump(session)

    def _record(self, session: Session, opened: Collection[str]) -> None:
        """Make the database say which hosts hold a tunnel here.

        ``opened``: just now, so these are the newest; else what another relay has written stands.
        """
        held = self._tunnels.hosts
        rows = session.exec(select(HostRow.id, HostRow.tunnel_url)).all()
        open_to_us = {i for i, url in rows if url in ("", self._url) or i in opened}
        stale = {i for i, url in rows if i in open_to_us and (i in held) != (url == self._url)}
        for host_id in sorted(stale):
            url = self._url if host_id in held else ""  # of another relay only if it is held here: ``opened``
            session.execute(update(HostRow).where(col(HostRow.id) == host_id).values(tunnel_url=url))
        if stale:
            registry.bump(session)


def _save(session: Session, host: KnownHost, *, tunnel_only: bool) -> None:
    """Unless the host has moved meanwhile."""
    row = session.get(HostRow, host.id, with_for_update=True)
    if row is None or (row.address, row.http_port, row.reach) != (host.address, host.port, "auto"):
        return
    if row.tunnel_only != tunnel_only:
        log.info("host %s is reached %s", host.id, "through its tunnel" if tunnel_only else "at its port")
        row.tunnel_only = tunnel_only
        session.add(row)
        registry.bump(session)
