"""Which hosts have a model file? Asked of the hosts themselves, all at once, and remembered for a moment."""

import asyncio
import time
from collections.abc import Sequence

from fleet.host_client import FileFacts, HostAddress, HostClient, HostUnreachable

_REMEMBERED_S = 30.0
_MOST_REMEMBERED = 10_000


class ModelFiles:
    """``None`` for a host that does not answer; such answers, and missing files, are not remembered."""

    def __init__(self, client: HostClient) -> None:
        self._client = client
        self._known: dict[tuple[str, str], tuple[float, FileFacts]] = {}

    async def on(self, hosts: Sequence[HostAddress], path: str) -> dict[str, FileFacts | None]:
        now = time.monotonic()
        known = {h.host_id: facts for h in hosts if (facts := self._remembered(h, path, now)) is not None}
        unknown = [host for host in hosts if host.host_id not in known]
        asked = await asyncio.gather(*(self._ask(host, path) for host in unknown))
        return {**known, **{host.host_id: facts for host, facts in zip(unknown, asked, strict=True)}}

    def _remembered(self, host: HostAddress, path: str, now: float) -> FileFacts | None:
        until, facts = self._known.get((host.host_id, path), (0.0, None))
        return facts if until > now else None

    async def _ask(self, host: HostAddress, path: str) -> FileFacts | None:
        try:
            facts = await self._client.file_facts(host, path)
        except HostUnreachable:
            return None
        if facts.exists:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[host.host_id, path] = (time.monotonic() + _REMEMBERED_S, facts)
        return facts
