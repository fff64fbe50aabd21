"""How the control plane asks a host's HTTP server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from fleet.access import tickets
from fleet.model import Record


class FileFacts(Record):
    """What a host says about a model file."""

    path: str
    """Absolute."""
    exists: bool
    readable: bool = False
    size_bytes: int = 0
    is_gguf: bool = False


@dataclass(frozen=True)
class HostAddress:
    host_id: str
    address: str
    port: int
    credential_hash: str

    @property
    def base_url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}"


class HostUnreachable(Exception):
    """The host's HTTP server does not answer, or answers nonsense."""


class HostClient:
    """One per process. Calls carry a short-lived ticket that is good for that host only."""

    def __init__(self, timeout_s: float = 5.0) -> None:
        self._http = httpx.AsyncClient(timeout=timeout_s, trust_env=False)

    async def file_facts(self, host: HostAddress, path: str) -> FileFacts:
        """Raises HostUnreachable."""
        try:
            answer = await self._http.get(f"{host.base_url}/files", params={"path": path}, headers=_ticket(host))
            answer.raise_for_status()
            return FileFacts.model_validate_json(answer.content)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise HostUnreachable(f"{host.host_id} at {host.base_url}: {error!r}") from error

    @asynccontextmanager
    async def engine_log(
        self, host: HostAddress, instance_id: str, params: dict[str, str | int]
    ) -> AsyncIterator[httpx.Response]:
        """The open stream of an engine's log; the caller looks at its status. Raises HostUnreachable."""
        url = f"{host.base_url}/engines/{instance_id}/log"
        # A followed log may be silent for as long as the engine is.
        timeout = httpx.Timeout(2.0, read=None)
        try:
            async with self._http.stream("GET", url, params=params, headers=_ticket(host), timeout=timeout) as answer:
                yield answer
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HostUnreachable(f"{host.host_id} at {host.base_url}: {error!r}") from error

    async def engine_metrics(self, host: HostAddress, instance_id: str) -> str | None:
        """In Prometheus' format; None when the engine does not answer. Raises HostUnreachable."""
        try:
            answer = await self._http.get(f"{host.base_url}/engines/{instance_id}/metrics", headers=_ticket(host))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HostUnreachable(f"{host.host_id} at {host.base_url}: {error!r}") from error
        if answer.status_code not in (200, 404):
            raise HostUnreachable(f"{host.host_id} at {host.base_url} answered {answer.status_code}")
        return answer.text if answer.status_code == 200 else None

    async def aclose(self) -> None:
        await self._http.aclose()


def _ticket(host: HostAddress) -> dict[str, str]:
    return {"authorization": f"Bearer {tickets.issue(host.credential_hash, host.host_id)}"}
