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
        facts = await asyncio.gather(*(self._ask(host, path) for host in hosts))
        return {host.host_id: fact for host, fact in zip(hosts, facts, strict=True)}

    async def _ask(self, host: HostAddress, path: str) -> FileFacts | None:
        now = time.monotonic()
        known = self._known.get((host.host_id, path))
        if known is not None and known[0] > now:
            return known[1]
        try:
            facts = await self._client.file_facts(host, path)
        except HostUnreachable:
            return None
        if facts.exists:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[host.host_id, path] = (now + _REMEMBERED_S, facts)
        return facts
