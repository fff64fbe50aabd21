"""How the control plane asks a host's HTTP server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from fleet.access.authority import name_of_host
from fleet.access.visitor import Visitor
from fleet.model import Record
from fleet.sizing.facts import Lora, ModelFacts


class FileFacts(Record):
    """What a host says about a model file."""

    path: str
    """Absolute."""
    exists: bool
    readable: bool = False
    """A file that can be opened, or a folder with a model that can be read."""
    size_bytes: int = 0
    """Of a folder: of its weights."""
    is_gguf: bool = False
    is_folder: bool = False
    model: ModelFacts | None = None
    lora: Lora | None = None
    """Where it is an adapter, and no model."""
    model_error: str = ""
    """Why there is no ``model``, for people; empty also where the host is too old to look."""
    model_hint: str = ""


@dataclass(frozen=True)
class HostAddress:
    """Where a host's one port is, and the way there."""

    host_id: str
    address: str
    port: int
    tunnel_only: bool = False
    """Only by the tunnel that a relay holds."""
    tunnel_url: str = ""
    """Internal URL of that relay; empty: none holds one now."""

    @property
    def where(self) -> str:
        """For people, and in a URL."""
        if self.tunnel_only:
            return self.tunnel_url or "no tunnel"
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class HostUnreachable(Exception):
    """The host's HTTP server does not answer, or answers nonsense."""


class HostClient:
    """One per process. A host is known by its certificate, wherever it is; it is shown a ticket for just this call."""

    def __init__(self, visitor: Visitor, timeout_s: float = 5.0) -> None:
        self._visitor = visitor
        self._timeout = httpx.Timeout(timeout_s)
        # Connections are not kept: the next host at this address may be another one.
        once = httpx.Limits(max_keepalive_connections=0)
        self._direct = httpx.AsyncClient(verify=visitor.tls, timeout=self._timeout, limits=once, trust_env=False)

    async def file_facts(self, host: HostAddress, path: str) -> FileFacts:
        """Raises HostUnreachable."""
        async with self._get(host, "/files", params={"path": path}) as answer:
            if answer.status_code != 200:
                raise HostUnreachable(f"{host.host_id} at {host.where} answered {answer.status_code}")
            try:
                return FileFacts.model_validate_json(await answer.aread())
            except ValueError as error:
                raise HostUnreachable(f"{host.host_id} at {host.where}: {error!r}") from error

    @asynccontextmanager
    async def engine_log(
        self, host: HostAddress, instance_id: str, params: dict[str, str | int]
    ) -> AsyncIterator[httpx.Response]:
        """The open stream of an engine's log; the caller looks at its status. Raises HostUnreachable."""
        # A followed log may be silent for as long as the engine is.
        timeout = httpx.Timeout(2.0, read=None)
        path = f"/engines/{instance_id}/log"
        async with self._get(host, path, instance_id, params=params, timeout=timeout) as answer:
            yield answer

    async def engine_metrics(self, host: HostAddress, instance_id: str) -> str | None:
        """In Prometheus' format; None when the engine does not answer. Raises HostUnreachable."""
        async with self._get(host, f"/engines/{instance_id}/metrics", instance_id) as answer:
            if answer.status_code not in (200, 404):
                raise HostUnreachable(f"{host.host_id} at {host.where} answered {answer.status_code}")
            await answer.aread()
            return answer.text if answer.status_code == 200 else None

    async def aclose(self) -> None:
        await self._direct.aclose()

    @asynccontextmanager
    async def _get(
        self, host: HostAddress, path: str, instance_id: str = "", **options: Any
    ) -> AsyncIterator[httpx.Response]:
        headers = {"authorization": f"Bearer {self._visitor.host(host.host_id, instance_id)}"}
        try:
            async with self._way_to(host) as (http, base, extensions):
                url = httpx.URL(f"{base}{path}")
                async with http.stream("GET", url, headers=headers, extensions=extensions, **options) as answer:
                    yield answer
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise HostUnreachable(f"{host.host_id} at {host.where}: {error!r}") from error

    @asynccontextmanager
    async def _way_to(self, host: HostAddress) -> AsyncIterator[tuple[httpx.AsyncClient, str, dict[str, str]]]:
        """The client, the base URL, and what it must be told besides."""
        name = name_of_host(host.host_id)
        if not host.tunnel_only:
            yield self._direct, f"https://{host.where}", {"sni_hostname": name}
            return
        if not host.tunnel_url:
            raise HostUnreachable(f"{host.host_id} holds no tunnel now, and cannot be reached in another way")
        ticket = {"proxy-authorization": f"Bearer {self._visitor.tunnel(host.host_id)}"}
        relay = httpx.Proxy(host.tunnel_url, headers=ticket)
        async with httpx.AsyncClient(
            verify=self._visitor.tls, timeout=self._timeout, proxy=relay, trust_env=False
        ) as http:
            yield http, f"https://{name}", {}
